"""What all sections of a run's page read, and what a section is."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gft_edge.report.pages.models import Evaluated, Tradeoff, place
from gft_edge.report.results.checks import printable
from gft_edge.report.results.run_files import FoundArtifact, RunFiles


@dataclass(frozen=True)
class View:
    """What all sections read: the files of a run, names and colours of its models, and figures derived from several files."""

    found: RunFiles
    names: Mapping[str, str]
    colors: Mapping[str, str]
    rows: Sequence[Evaluated]
    benches: Sequence[Mapping[str, Any]]
    tradeoff: Tradeoff | None

    @property
    def artifacts(self) -> list[tuple[str, FoundArtifact]]:
        """Artefacts by name, the demo's in the order of its story."""
        pairs = [(self.names[path], entry) for path, entry in self.found.artifacts.items()]
        return sorted(pairs, key=lambda pair: place(pair[0]))

    @property
    def verifications(self) -> list[tuple[str, Mapping[str, Any]]]:
        """Verification records by name: those in artefacts, and those of artefacts that are not here."""
        records = [
            (name if record["artifact"].partition("@")[0] == name else record["artifact"] or name, record)
            for name, entry in self.artifacts
            for record in entry.verifications
        ]
        have = {name for name, _ in records}
        return records + [(r["artifact"], r) for _, r in self.found.verifications if r["artifact"] not in have]


@dataclass(frozen=True)
class Section:
    """A section of the page.

    Args:
        title: its heading, without number.
        kind: name of its macro.
        data: what the macro shows.
    """

    title: str
    kind: str
    data: Mapping[str, Any] = field(default_factory=dict)

    @property
    def anchor(self) -> str:
        """What links to the section name."""
        return re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")


def verdict_of(record: Mapping[str, Any]) -> str:
    """The verdict of a verification record; of one without, whether it passed."""
    return record["verdict"] or ("pass" if record["passed"] else "fail")


def name_of_folder(folder: Path) -> str:
    """The name of a run: of its folder."""
    return printable(folder.resolve().name) or "run"
