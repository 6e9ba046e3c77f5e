"""The data that all sections of a run's page read, and the parts of a page."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gft_edge.report.pages.models import Evaluated, Tradeoff, place
from gft_edge.report.pages.tables import Table
from gft_edge.report.results.checks import printable
from gft_edge.report.results.run_files import FoundArtifact, RunFiles


@dataclass(frozen=True)
class View:
    """The files of a run, names and colours of its models, and figures derived from several files."""

    found: RunFiles
    names: Mapping[str, str]
    colors: Mapping[str, str]
    rows: Sequence[Evaluated]
    benches: Sequence[Mapping[str, Any]]
    tradeoff: Tradeoff | None

    @property
    def artifacts(self) -> list[tuple[str, FoundArtifact]]:
        """Artefacts by name; those of the demo come first, in the demo's order."""
        pairs = [(self.names[path], entry) for path, entry in self.found.artifacts.items()]
        return sorted(pairs, key=lambda pair: place(pair[0]))

    @property
    def verifications(self) -> list[tuple[str, Mapping[str, Any]]]:
        """Verification records by name: those inside artefacts, then those of artefacts outside this folder."""
        records = [
            (name if record["artifact"].partition("@")[0] == name else record["artifact"] or name, record)
            for name, entry in self.artifacts
            for record in entry.verifications
        ]
        have = {name for name, _ in records}
        return records + [(r["artifact"], r) for _, r in self.found.verifications if r["artifact"] not in have]


@dataclass(frozen=True)
class Figure:
    """A drawing and its caption.

    Args:
        svg: markup, as a function of :mod:`gft_edge.report.figures` returns it.
        caption: plain text; none if empty.
    """

    svg: str
    caption: str = ""


@dataclass(frozen=True)
class Section:
    """A section of a page: the output of a macro, then text, figures and a table; each part is optional.

    A section of these parts needs no template, so a new figure takes its function and its section.

    Args:
        title: heading, without number.
        kind: name of its macro; none if empty.
        data: argument of the macro.
        text: a paragraph of plain text.
        figures: in order.
        table: below the figures.
        name: anchor of links; derived from the title if empty.
    """

    title: str
    kind: str = ""
    data: Mapping[str, Any] = field(default_factory=dict)
    text: str = ""
    figures: tuple[Figure, ...] = ()
    table: Table | None = None
    name: str = ""

    @property
    def anchor(self) -> str:
        """Target of links to the section."""
        return self.name or re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")


def verdict_of(record: Mapping[str, Any]) -> str:
    """Returns the verdict of a verification record; a record without a verdict passed or failed."""
    return record["verdict"] or ("pass" if record["passed"] else "fail")


def name_of_folder(folder: Path) -> str:
    """Returns the name of a run, which is the name of its folder."""
    return printable(folder.resolve().name) or "run"
