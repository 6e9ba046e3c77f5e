"""The artefact: a folder with a manifest that describes and hashes every file in it.

The schema of the manifest is in :mod:`gft_edge.manifest_schema`; its names can be imported from here too.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gft_edge.errors import ArtifactError
from gft_edge.files import sha256
from gft_edge.manifest_schema import (
    IMAGE,
    LOGITS,
    PIXELS,
    PROBABILITIES,
    QUANTIZED,
    SCHEMA,
    Batch,
    DeploymentManifest,
    Dialect,
    FileInfo,
    HighPrecision,
    InputKind,
    MapsMode,
    Member,
    Precision,
    TensorInfo,
    batch_problems,
    input_kind,
    safe_name,
    static_batch,
)
from gft_edge.storage.external_data import external_files
from gft_edge.storage.filekinds import describe_file
from gft_edge.storage.locks import locked
from gft_edge.storage.seals import read_sealed, write_sealed

__all__ = [
    "BUNDLE_RECORD",
    "GOLDEN",
    "IMAGE",
    "LOGITS",
    "MANIFEST",
    "MODEL",
    "PIXELS",
    "PROBABILITIES",
    "QUANTIZED",
    "SCHEMA",
    "WEIGHTS",
    "Artifact",
    "Batch",
    "DeploymentManifest",
    "Dialect",
    "FileInfo",
    "HighPrecision",
    "InputKind",
    "MapsMode",
    "Member",
    "Precision",
    "TensorInfo",
    "batch_problems",
    "input_kind",
    "load_artifact",
    "register_files",
    "split_member",
    "static_batch",
]

MANIFEST = "manifest.json"
MODEL = "model.onnx"
GOLDEN = "golden.npz"
BUNDLE_RECORD = "bundle.json"
"""Stands beside an artefact that is in a bundle; see :mod:`gft_edge.bundle`."""
WEIGHTS = "weights.bin"
"""Weights that the graphs of a family share."""


@dataclass(frozen=True)
class Artifact:
    """An artefact on disk, with its manifest read.

    Attributes:
        path: the folder.
        manifest: its content; for a member of a family with that member's budget, outputs and graph.
        member: id of the member's budget, empty for the artefact itself.
    """

    path: Path
    manifest: DeploymentManifest
    member: str = ""

    def file(self, name: str) -> Path:
        """Checks size and hash of a file, and for a graph those of every file that it reads; returns its path.

        Raises:
            ArtifactError: not in the manifest, missing, or changed since it was written.
        """
        info = self.manifest.files.get(name)
        path = self.path / self._on_disk(name)
        if info is None:
            raise ArtifactError(f"artefact {self.path}: {name} is not in its manifest; export it again")
        if not path.is_file():
            raise ArtifactError(f"artefact {self.path}: {path.name} is missing; export it again")
        if path.stat().st_size != info.size or sha256(path) != info.sha256:
            raise ArtifactError(
                f"artefact {self.path}: {path.name} was changed since it was written (its hash differs)"
            )
        if name == MODEL:
            for location in sorted(external_files(path)):
                if location not in self.manifest.files:
                    raise ArtifactError(
                        f"artefact {self.path}: {path.name} reads {location!r}, which is not in its manifest; export it again"
                    )
                self.file(location)
        return path

    def own(self, name: str) -> str:
        """Returns the name of a file to write for this artefact or member; members do not overwrite each other's."""
        path = Path(name)
        return str(path.with_name(f"{path.stem}-{self.member}{path.suffix}")) if self.member else name

    def _on_disk(self, name: str) -> str:
        member = self.manifest.family.get(self.member)
        return name if member is None else {MODEL: member.model, GOLDEN: member.golden}.get(name, name)

    @property
    def address(self) -> str:
        """Path that :func:`load_artifact` opens as the same artefact or member."""
        return f"{self.path}@{self.member}" if self.member else str(self.path)

    @property
    def name(self) -> str:
        """Name of the folder, or of the bundle that it is in, with the member's budget, for tables."""
        place = self.path.resolve()
        folder = place.parent.name if (place.parent / BUNDLE_RECORD).is_file() else place.name
        return f"{folder}@{self.member}" if self.member else folder


def split_member(path: str | Path) -> tuple[Path, str]:
    """Returns folder and member of ``"folder@147-98-49"``; no member if the whole path is a folder."""
    folder, _, member = str(path).rpartition("@")
    return (Path(folder), member) if folder and not Path(path).is_dir() else (Path(path), "")


def load_artifact(path: str | Path) -> Artifact:
    """Reads and checks an artefact's manifest; :meth:`Artifact.file` checks the other files.

    Args:
        path: folder; ``folder@147-98-49`` for a member of a family.

    Raises:
        ArtifactError: no such folder or member, no manifest, or a damaged one.
    """
    folder, name = split_member(path)
    if folder.is_file():
        raise ArtifactError(
            f"artefact {folder}: is {describe_file(folder)}; an artefact is a folder, made with gft-edge export"
        )
    if not folder.is_dir():
        kind = "is the checkpoint of the package" if str(folder) == "builtin" else "no such folder"
        raise ArtifactError(f"artefact {folder}: {kind}; make one with gft-edge export")
    file = folder / MANIFEST
    if not file.is_file():
        is_checkpoint = all((folder / name).is_file() for name in ("config.json", "model.safetensors"))
        kind = f"has no {MANIFEST}; make one with gft-edge export"
        if is_checkpoint:
            kind = f"is a checkpoint; make an artefact of it with gft-edge export {shlex.quote(str(folder))}"
        elif (folder / "quantization.json").is_file():
            kind = (
                "is a quantized ONNX file of another program, no artefact; gft-edge adopt takes the weights that it came from, and "
                "lint, verify, bench, build and evaluate take the folder"
            )
        raise ArtifactError(f"artefact {folder}: {kind}")
    for inside in sorted(folder.iterdir()):
        if inside.is_symlink() and not inside.is_file():  # reports and engines would be written wherever it leads
            raise ArtifactError(f"artefact {folder}: {inside.name} is a link out of it; put a folder in its place")
    manifest = DeploymentManifest.from_json(
        read_sealed(file, "manifest", "export the artefact again"), f"manifest {file}"
    )
    if not name or name == manifest.budget.id:
        return Artifact(folder, manifest)
    member = manifest.family.get(name)
    missing = [] if member is None else [n for n in (member.model, member.golden) if n not in manifest.files]
    if member is None or missing:
        known = ", ".join((manifest.budget.id, *manifest.family))
        raise ArtifactError(f"artefact {folder}: has no graph of budget {name}; there are: {known}")
    files = {**manifest.files, MODEL: manifest.files[member.model], GOLDEN: manifest.files[member.golden]}
    return Artifact(folder, replace(manifest, budget=member.budget, outputs=member.outputs, files=files), name)


def register_files(artifact: Artifact, names: list[str], parity: dict[str, Any] | None = None) -> Artifact:
    """Adds files of the folder to the manifest, or updates their hashes, and writes it.

    The manifest is read again first, under the folder's lock, so that entries of other processes stay. A caller that writes files
    which others may write too takes the lock (:func:`gft_edge.storage.locks.locked`) before it writes them.
    """
    with locked(artifact.path):
        whole = load_artifact(artifact.path).manifest
        files = {**whole.files, **{safe_name(n): FileInfo.of(artifact.path / n) for n in names}}
        manifest = replace(whole, files=files, parity={**whole.parity, **(parity or {})})
        write_sealed(artifact.path / MANIFEST, manifest.to_json())
    return load_artifact(f"{artifact.path}@{artifact.member}" if artifact.member else artifact.path)
