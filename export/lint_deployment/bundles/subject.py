"""A bundle with its artefact, its texts and the graphs outside the artefact."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gft_edge.bundle import Bundle, load_bundle
from gft_edge.errors import ConfigError
from gft_edge.hardware.devices import Device, device
from gft_edge.manifest import MODEL, Artifact, DeploymentManifest, load_artifact

LABELS = "labels.txt"
PLAN = "plan.json"


@dataclass(frozen=True)
class BundleSubject:
    """A bundle and its artefact.

    Args:
        bundle: its record.
        artifact: in it.
    """

    bundle: Bundle
    artifact: Artifact

    @property
    def path(self) -> Path:
        """Folder of the bundle."""
        return self.bundle.path

    @functools.cached_property
    def manifests(self) -> tuple[DeploymentManifest, ...]:
        """Manifest of the artefact and those of its members."""
        members = (load_artifact(f"{self.artifact.path}@{name}") for name in self.artifact.manifest.family)
        return (self.artifact.manifest, *(member.manifest for member in members))

    @property
    def device(self) -> Device | None:
        """Profile of the bundle's device; None for any device, and for one that this version does not know."""
        return profile(self.bundle.device)

    @property
    def graph_hashes(self) -> frozenset[str]:
        """Hashes of the graphs of the artefact."""
        return frozenset(manifest.files[MODEL].sha256 for manifest in self.manifests)

    def named(self, name: str) -> Iterator[Path]:
        """Yields the files of the record, outside the artefact, whose name or ending is this one and which are there."""
        for file in sorted(self.bundle.files):
            path = self.path / file
            if (path.name == name or (name.startswith(".") and path.suffix == name)) and path.is_file():
                yield path

    def json(self, name: str) -> dict[str, Any] | None:
        """Returns the content of a JSON file of the bundle; None if there is none that can be read."""
        try:
            data = json.loads((self.path / name).read_bytes())
        except (OSError, ValueError):
            return None
        return data if isinstance(data, dict) else None


def profile(name: str) -> Device | None:
    """Returns the profile of a device; None for no name, and for one that this version does not know."""
    try:
        return device(name) if name else None
    except ConfigError:
        return None


def read_bundle(path: Path) -> BundleSubject:
    """Reads a bundle and checks every file.

    Raises:
        ArtifactError: no bundle, a damaged record, or a file that is not the one of the record.
    """
    bundle = load_bundle(path)
    return BundleSubject(bundle, bundle.check())


def line_with(path: Path, text: str) -> int:
    """Returns the first line of a file that holds a text, 0 for none."""
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    return next((number for number, line in enumerate(lines, 1) if text in line), 0)
