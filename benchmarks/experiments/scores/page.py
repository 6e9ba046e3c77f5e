"""The page of the studies in Markdown; each study replaces its own section and leaves the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gft_edge.benchmarks.experiments.markdown import render, table
from gft_edge.benchmarks.experiments.scores.candidates import COLUMN, NOTES
from gft_edge.errors import ArtifactError, ConfigError
from gft_edge.files import replacing

TEMPLATES = Path(__file__).parent
SECTIONS = ("untrained-elpv-dataset", "untrained-stamps", "trained", "map")
PICTURE = "SCORES-map.svg"
FULL_PROBE = "probe"
Row = Mapping[str, Any]


def around(page: Path, name: str) -> tuple[str, str]:
    """Returns what stands before and after a section of the page; a page that is not there begins with empty sections.

    Raises:
        ConfigError: the file is another page.
        ArtifactError: it cannot be read.
    """
    try:
        text = page.read_text(encoding="utf-8")
    except FileNotFoundError:
        marks = {section: _marks(section) for section in SECTIONS}
        text = render(TEMPLATES / "page.md.j2", marks=marks, notes=_notes())
    except (OSError, ValueError) as error:
        raise ArtifactError(f"page {page}: cannot be read ({error})") from None
    begin, end = _marks(name)
    before, found_begin, rest = text.partition(begin)
    _, found_end, after = rest.partition(end)
    if not (found_begin and found_end):
        raise ConfigError(
            f"page {page}: has no section {name!r} of this study; give the name of another file, or of a new one"
        )
    return before, after


def update(page: Path, name: str, text: str) -> None:
    """Replaces one section of the page and leaves the others.

    Raises:
        ConfigError, ArtifactError: as :func:`around`.
        OutputError: it cannot be written.
    """
    before, after = around(page, name)
    begin, end = _marks(name)
    with replacing(page) as temporary:
        temporary.write_text(f"{before}{begin}\n{text.strip()}\n{end}{after}", encoding="utf-8")


def _marks(name: str) -> tuple[str, str]:
    return f"<!-- {name}: begin -->", f"<!-- {name}: end -->"


def _notes() -> str:
    header = ("name", "ranks patches by", "adds to a static graph, besides TopK and Gather")
    return table(header, [(name, *note) for name, note in NOTES.items()])


def untrained(data: Mapping[str, Any]) -> str:
    """Returns the section on the backbone that was never pruned, with one set of images."""
    shares = [
        {**at, "table": score_table({FULL_PROBE: at["rows"]}, [FULL_PROBE], data["has_marks"])} for at in data["shares"]
    ]
    return render(TEMPLATES / "untrained.md.j2", data=data, probes=_probes(data), shares=shares, **_tables(data))


def _probes(data: Mapping[str, Any]) -> str:
    """Returns the table of probes with other penalties."""
    others, cosine = data["other_probes"], data["probe_free"]
    header = ("patches", "cosine", *(f"penalty {other['decay']:g}" for other in others))
    every = ("every patch", "1.000", *(f"{other['full']:.1%}" for other in others))
    names = sorted(cosine, key=lambda name: -cosine[name])
    rows = [(name, f"{cosine[name]:.3f}", *(f"{other['top1'][name]:.1%}" for other in others)) for name in names]
    return table(header, [every, *rows])


def trained(data: Mapping[str, Any]) -> str:
    """Returns the section on a trained checkpoint."""
    return render(TEMPLATES / "trained.md.j2", data=data, **_tables(data))


def payoff(data: Mapping[str, Any]) -> str:
    """Returns the section on where choosing pays; the picture lies beside the page as :data:`PICTURE`."""
    shares = list(dict.fromkeys(cell["share"] for cell in data["cells"]))
    keys = dict.fromkeys((cell["mark_share"], cell["first"]) for cell in data["cells"])
    cells = {(cell["mark_share"], cell["first"], cell["share"]): cell for cell in data["cells"]}
    header = ("mark", "first selection", *(f"{100 * share:g} % kept" for share in shares))
    rows = [
        (f"{100 * mark:g} %", f"block {first}", *(_gain(cells[mark, first, share]) for share in shares))
        for mark, first in keys
    ]
    full = ", ".join(f"{value:.1%} with marks of {100 * float(mark):g} %" for mark, value in data["full"].items())
    return render(TEMPLATES / "map.md.j2", data=data, table=table(header, rows), full=full, picture=PICTURE)


def _gain(cell: Row) -> str:
    low, high = (100 * bound for bound in cell["gain"]["interval"])
    return f"{100 * cell['gain']['value']:+.1f} ({low:+.1f} to {high:+.1f}) of {100 * cell['headroom']['value']:.1f}"


def _tables(data: Mapping[str, Any]) -> dict[str, Any]:
    readings = list(data["full"])
    marks = data["has_marks"]
    return {
        "full": {name: f"{at['top1']:.1%} ({_percent(at['interval'])})" for name, at in data["full"].items()},
        "overall": score_table(data["overall"], readings, marks),
        "findings": {name: findings(rows) for name, rows in data["overall"].items()},
        "settings": [
            {**at, "table": score_table(at["rows"], readings, marks), "title": setting_title(at)}
            for at in data["settings"]
        ],
    }


def setting_title(at: Mapping[str, Any]) -> str:
    """Returns the heading of a setting."""
    stages = at["stages"]
    blocks = f"block {stages[0]}" if len(stages) == 1 else f"blocks {', '.join(map(str, stages))}"
    return f"Selecting in {blocks}: {at['budget']} patches, {at['share']:.1%} at the end"


def score_table(rows: Mapping[str, Sequence[Row]], readings: Sequence[str], has_marks: bool) -> str:
    """Returns a Markdown table, one line per candidate and one group of columns per classifier; the better ones first.

    Args:
        rows: by classifier, the candidates in the same order.
        readings: names of the classifiers; the first one orders the candidates, and the controls come last.
        has_marks: whether recall and G are known.
    """
    header = ["patches"]
    for reading in readings:
        header += [reading, "over random", f"over {COLUMN}"]
    header.append("agreement")
    if has_marks:
        header += ["of the mark kept", "G"]
    first = rows[readings[0]]
    order = sorted(range(len(first)), key=lambda place: (first[place]["kind"] == "control", -first[place]["top1"]))
    lines = []
    for place in order:
        row = first[place]
        cells = [f"**{row['name']}**" if row["kind"] == "product" else row["name"]]
        for reading in readings:
            own = rows[reading][place]
            cells += [f"{own['top1']:.1%}", _points(own["over_random"]), _points(own["over_column"])]
        cells.append(f"{row['agreement']:.1%}")
        if has_marks:
            cells += ["" if row["recall"] is None else f"{row['recall']:.0%}", _g(row["gain"])]
        lines.append(cells)
    return table(header, lines)


def findings(rows: Sequence[Row]) -> str:
    """Returns which candidates differ from random patches and from the column mean, beyond their intervals, as sentences."""
    scores = [row for row in rows if row["kind"] != "control"]
    best = max(scores, key=lambda row: row["top1"])
    parts = [
        f"Best: `{best['name']}`, {best['top1']:.1%}",
        f"better than {COLUMN}: {_named(scores, 'over_column', 1)}",
        f"worse than {COLUMN}: {_named(scores, 'over_column', -1)}",
        f"better than random patches: {_named(scores, 'over_random', 1)}",
        f"worse than random patches: {_named(scores, 'over_random', -1)}",
    ]
    return "; ".join(parts) + "."


def _named(rows: Sequence[Row], what: str, sign: int) -> str:
    """Returns the names of the rows whose whole interval lies on one side of zero."""
    names = [
        f"`{row['name']}`" for row in rows if row[what] is not None and min(sign * b for b in row[what]["interval"]) > 0
    ]
    return ", ".join(names) or "none"


def _points(estimate: Mapping[str, Any] | None) -> str:
    if estimate is None:
        return ""
    low, high = (100 * bound for bound in estimate["interval"])
    return f"{100 * estimate['value']:+.1f} ({low:+.1f} to {high:+.1f})"


def _g(estimate: Mapping[str, Any] | None) -> str:
    if estimate is None:
        return ""
    low, high = estimate["interval"]
    return f"{estimate['value']:.2f} ({low:.2f} to {high:.2f})"


def _percent(interval: Sequence[float]) -> str:
    return f"{interval[0]:.1%} to {interval[1]:.1%}"
