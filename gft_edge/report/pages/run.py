"""Report page of a run: one offline HTML file, made only from the files in the run's folder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gft_edge.errors import ArtifactError
from gft_edge.files import replacing
from gft_edge.report.pages import claims
from gft_edge.report.pages.bench import points
from gft_edge.report.pages.claims import LeftOut
from gft_edge.report.pages.hero import hero
from gft_edge.report.pages.html import render
from gft_edge.report.pages.models import colors_of, display_names, evaluated, graphs, tradeoff
from gft_edge.report.pages.sections import sections
from gft_edge.report.pages.tables import Cell, table
from gft_edge.report.pages.view import Section, View
from gft_edge.report.results.run_files import RunFiles, Unused, find

PAGE = "report.html"


@dataclass(frozen=True)
class Written:
    """Path of a page, the parts it has no data for, and the files that cannot be used."""

    page: Path
    left_out: tuple[LeftOut, ...]
    unused: tuple[Unused, ...]


def write_page(run: Path) -> Written:
    """Writes ``report.html`` into a run's folder.

    Results are found by the contents of the files, not by their names: artefacts with their engines and records, checkpoints
    with their logs, and the files that evaluate, bench, predict, controls, calibrate, quantize, sensitivity and verify write.

    Raises:
        ArtifactError: the folder does not exist, or holds nothing that a page can show.
    """
    found = find(run)
    if found.is_empty:
        raise ArtifactError(f"run {run}: {_nothing(found)}")
    data = collect(found)
    html = render("page.html.j2", data)
    with replacing(run / PAGE) as temporary:
        temporary.write_text(html, encoding="utf-8")
    return Written(run / PAGE, tuple(data["left_out"]), tuple(found.unused))


def _nothing(found: RunFiles) -> str:
    if found.unused:
        first = found.unused[0]
        more = f" ({len(found.unused)} files cannot be used)" if len(found.unused) > 1 else ""
        return f"holds nothing that a page can show; {first.file}: {first.why}{more}"
    return (
        "holds no artefact, checkpoint or result file; write one into it, "
        "for example with gft-edge export --out DIR or gft-edge evaluate --out FILE"
    )


def collect(found: RunFiles) -> dict[str, Any]:
    """Returns the data of the template, from the files of a run."""
    names = display_names(found)
    colors = colors_of(found, names)
    rows = evaluated(found, names)
    benches = [point for _, bench in sorted(found.benches, key=lambda pair: pair[0]) for point in points(bench, colors)]
    view = View(found, names, colors, rows, benches, tradeoff(rows, benches, graphs(found, names), colors))
    shown, left_out = sections(view), claims.left_out(view)
    return {
        "title": claims.title(view, shown),
        "kind": "Report of a run",
        "contents": claims.contents(view),
        "run": found.record,
        "verdicts": claims.verdicts(view),
        "cards": claims.cards(view),
        "hero": hero(view),
        "sections": [*shown, *_about(view, left_out)],
        "left_out": left_out,
    }


def _about(view: View, left_out: Sequence[LeftOut]) -> Iterator[Section]:
    """Yields the sections about the page itself: evidence, steps, missing parts."""
    found, evidence = view.found, claims.evidence(view)
    if evidence:
        yield Section("Evidence for each claim", table=evidence, name="evidence")
    steps = _steps(found)
    if steps and found.record:
        data = {"steps": steps, "machine": found.record["machine"], "versions": _versions(found)}
        yield Section("Steps of the run", "steps", data, name="steps")
    if left_out or found.unused:
        yield Section("Missing parts", "left_out", {"parts": left_out, "unused": found.unused}, name="left-out")


def _steps(found: RunFiles) -> Any:
    if found.record is None or not found.record["steps"]:
        return None
    return [(step["title"], f"{step['seconds']:.1f} s", step["command"]) for step in found.record["steps"]]


def _versions(found: RunFiles) -> Any:
    if found.record is None:
        return None
    rows = [
        (name, Cell(version) if version else Cell("not installed", "soft"))
        for name, version in found.record["versions"].items()
    ]
    return table(("tool", "version"), rows) if rows else None
