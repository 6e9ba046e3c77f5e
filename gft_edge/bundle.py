"""The bundle: a folder for one place of use, with an artefact, the files of the target and a record that hashes all of them.

    bundle/
      bundle.json      sealed: schema, target, device, identity of the artefact, facts of the target, hash and size of every file
      bundle.sig       optional: detached Ed25519 signature of bundle.json
      artifact/        the artefact, with its own sealed manifest; engines built on the device enter that manifest
      ...              files of the target, all of them in bundle.json

Nothing here needs more than NumPy.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shlex
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from gft_edge.config.reader import load_dataclass
from gft_edge.errors import ArtifactError, ConfigError
from gft_edge.files import canonical_json
from gft_edge.manifest import BUNDLE_RECORD, MANIFEST, Artifact, load_artifact, split_member
from gft_edge.manifest_schema import DeploymentManifest, FileInfo, safe_name
from gft_edge.storage.seals import read_sealed, write_sealed
from gft_edge.storage.unpack import names_in, unpack

SCHEMA = 1
RECORD = BUNDLE_RECORD
SIGNATURE = "bundle.sig"
ARTIFACT = "artifact"
ADDED = ("engines/", "reports/", "caches/")
"""Folders of the artefact that a device writes to after the bundle was made."""
FREE = ("reports/", "caches/")
"""Those whose files need no entry in the manifest: they are data, or checked by the reader of the cache. Engines are code."""

MADE_ON_DEVICE = "made_on_device"
"""Fact with the names of files that the target's own program writes into the bundle and reads without checks: nvinfer's engine."""
ID_DIGITS = 16

Target = Literal["jetson", "deepstream", "triton", "onnxruntime"]
TARGETS: tuple[Target, ...] = get_args(Target)


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk, with its record read.

    Attributes:
        path: the folder.
        target: place of use.
        device: name of a device profile, empty for any.
        artifact_sha256: see :func:`artifact_sha256`.
        facts: values that the target's own tools need; plain JSON.
        files: every file outside the artefact, by relative path.
    """

    path: Path
    target: Target
    artifact_sha256: str
    device: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, FileInfo] = field(default_factory=dict)

    @property
    def artifact_id(self) -> str:
        """Identity of the artefact, see :func:`artifact_id`."""
        return self.artifact_sha256[:ID_DIGITS]

    def file(self, name: str) -> Path:
        """Checks size and hash of a file outside the artefact; returns its path.

        Raises:
            ArtifactError: not in the record, missing, or changed since the bundle was made.
        """
        info, path = self.files.get(name), self.path / name
        if info is None:
            raise ArtifactError(f"bundle {self.path}: {name} is not in {RECORD}; make the bundle again")
        if not path.is_file():
            raise ArtifactError(f"bundle {self.path}: {name} is missing; copy the bundle again")
        if path.stat().st_size != info.size or FileInfo.of(path) != info:
            raise ArtifactError(f"bundle {self.path}: {name} was changed since the bundle was made (its hash differs)")
        return path

    def artifact(self) -> Artifact:
        """Reads the artefact of the bundle; its files are checked by :meth:`Artifact.file`.

        Raises:
            ArtifactError: missing, damaged, or another artefact than the one that was bundled.
        """
        artifact = load_artifact(self.path / ARTIFACT)
        found = artifact_sha256(artifact.manifest)
        if found != self.artifact_sha256:
            raise ArtifactError(
                f"bundle {self.path}: holds artefact {found[:ID_DIGITS]}, its record names {self.artifact_id}; copy it again"
            )
        return artifact

    def check(self) -> Artifact:
        """Checks every file of the bundle and returns its artefact; a further file may only be a copy of an engine of it.

        Raises:
            ArtifactError: a file is missing, changed, a link, a pipe, or in no record.
        """
        present = set(self._walk(self.path))
        artifact = self.artifact()
        for name in artifact.manifest.files:
            artifact.file(name)
        for name in self.files:
            self.file(name)
        known = {RECORD, SIGNATURE, f"{ARTIFACT}/{MANIFEST}", *self.files}
        known |= {f"{ARTIFACT}/{name}" for name in artifact.manifest.files}
        made = self.facts.get(MADE_ON_DEVICE, ())
        known |= {str(name) for name in made if not str(name).startswith(ARTIFACT)} if isinstance(made, list) else set()
        engines = [info for name, info in artifact.manifest.files.items() if name.startswith("engines/")]
        for name in sorted(present - known):
            free = name.startswith(tuple(f"{ARTIFACT}/{folder}" for folder in FREE))
            # Servers read copies of engines from their own folders.
            if not free and FileInfo.of(self.path / name) not in engines:
                raise ArtifactError(f"bundle {self.path}: {name} is in no record; remove it")
        return artifact

    def _walk(self, folder: Path) -> Iterator[str]:
        """Yields the name of every file.

        Raises:
            ArtifactError: a link, pipe or device: it would be read, and written, wherever it leads.
        """
        with os.scandir(folder) as found:
            entries = sorted(found, key=lambda entry: entry.name)
        for entry in entries:
            name = Path(entry.path).relative_to(self.path).as_posix()
            if entry.is_symlink():
                raise ArtifactError(f"bundle {self.path}: {name} is a link; put the file itself in its place")
            if entry.is_dir(follow_symlinks=False):
                yield from self._walk(Path(entry.path))
            elif entry.is_file(follow_symlinks=False):
                yield name
            else:
                raise ArtifactError(f"bundle {self.path}: {name} is a pipe or device; remove it")


def artifact_id(manifest: DeploymentManifest) -> str:
    """Returns the first 16 digits of :func:`artifact_sha256`, a name for tables and messages."""
    return artifact_sha256(manifest)[:ID_DIGITS]


def artifact_sha256(manifest: DeploymentManifest) -> str:
    """Returns a hash over everything that stays the same when engines, caches or reports are added to an artefact."""
    data = manifest.to_json()
    del data["parity"]
    data["files"] = {name: info for name, info in data["files"].items() if not name.startswith(ADDED)}
    return hashlib.sha256(canonical_json(data).encode()).hexdigest()


def is_bundle(path: Path) -> bool:
    """Returns whether a folder holds a bundle's record."""
    return (path / RECORD).is_file()


def load_bundle(path: str | Path) -> Bundle:
    """Reads a bundle's record; :meth:`Bundle.check` checks the files.

    Raises:
        ArtifactError: no such folder, no record, or a damaged one.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise ArtifactError(f"bundle {folder}: no such folder; make one with gft-edge bundle")
    if not is_bundle(folder):
        raise ArtifactError(f"bundle {folder}: has no {RECORD}; make one with gft-edge bundle")
    data = read_sealed(folder / RECORD, "bundle record", "copy the bundle again")
    where = f"bundle record {folder / RECORD}"
    if data.pop("schema", None) != SCHEMA:
        raise ArtifactError(f"{where}: this version reads schema {SCHEMA}")
    if data.get("target") not in TARGETS:
        raise ArtifactError(f"{where}: target {data.get('target')!r} is none of {', '.join(TARGETS)}")
    try:
        files = {
            safe_name(name): load_dataclass(FileInfo, info, f"{where}: {name}") for name, info in data["files"].items()
        }
        return Bundle(folder, data["target"], data["artifact_sha256"], data["device"], data["facts"], files)
    except (KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(f"{where}: incomplete or malformed ({error!r})") from None
    except ConfigError as error:
        raise ArtifactError(str(error)) from None


def open_artifact(path: str | Path) -> Artifact:
    """Reads an artefact, or checks a bundle and reads the artefact in it; every verb that takes an artefact calls this.

    Args:
        path: folder of an artefact or of a bundle; ``folder@147-98-49`` for a member of a family.

    Raises:
        ArtifactError: neither, damaged, changed, or without that member.
    """
    folder, member = split_member(path)
    refuse_zip(folder)
    if not is_bundle(folder):
        return load_artifact(path)
    artifact = load_bundle(folder).check()
    return load_artifact(f"{artifact.path}@{member}") if member else artifact


@contextlib.contextmanager
def opened_bundle(path: str | Path) -> Iterator[Bundle]:
    """Yields a bundle of a folder, or of a zip, which is unpacked into a temporary folder until the block ends.

    The files are not checked: call :meth:`Bundle.check`.

    Raises:
        ArtifactError: neither, a damaged or dangerous zip, or no record in it.
    """
    if not is_zip(Path(path)):
        yield load_bundle(path)
        return
    with tempfile.TemporaryDirectory(prefix="gft-edge-") as temporary:
        folder = Path(temporary) / "bundle"
        unpack(Path(path), folder)
        if not is_bundle(folder):
            raise ArtifactError(
                f"zip {path}: has no {RECORD} at its top; zip the content of the bundle, not its folder"
            )
        yield load_bundle(folder)


def is_zip(path: Path) -> bool:
    """Returns whether a path is a file that begins like a zip, or is named like one."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(4) == b"PK\3\4" or path.suffix.lower() == ".zip"


def refuse_zip(path: Path) -> None:
    """Refuses the zip of a bundle where only a folder can be used: engines and reports are added to it.

    Raises:
        ArtifactError: with the command that checks and unpacks it.
    """
    if is_zip(path) and RECORD in names_in(path):
        command = f"gft-edge selftest {shlex.quote(str(path))} --unpack DIR"
        raise ArtifactError(f"bundle {path}: is a zip; check and unpack it: {command}")


def write_record(folder: Path, target: Target, device: str = "", facts: Mapping[str, Any] | None = None) -> None:
    """Writes the record of a bundle whose files are all in place, among them the artefact.

    Args:
        folder: with ``artifact/`` and the files of the target.
        target, device, facts: see :class:`Bundle`.

    Raises:
        ArtifactError: the artefact is damaged.
    """
    artifact = load_artifact(folder / ARTIFACT)
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    own = [name for name in names if not name.startswith(f"{ARTIFACT}/") and name not in (RECORD, SIGNATURE)]
    record = {
        "schema": SCHEMA,
        "target": target,
        "device": device,
        "artifact_sha256": artifact_sha256(artifact.manifest),
        "facts": dict(facts or {}),
        "files": {name: asdict(FileInfo.of(folder / name)) for name in own},
    }
    write_sealed(folder / RECORD, record)
