"""Finds the results in a run's folder by the contents of the files, and checks them.

A file that looks like a result but cannot be used is not an error: the page and the terminal show its name and the reason.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from gft_edge.benchmarks.measuring.bench_files import SCHEMA as BENCH_SCHEMA
from gft_edge.config.model import GFTConfig
from gft_edge.errors import ArtifactError, GFTEdgeError
from gft_edge.manifest import MANIFEST, MODEL, Artifact, load_artifact
from gft_edge.report.results import forms
from gft_edge.report.results.checks import TEXT, checked, printable, read_object
from gft_edge.report.results.records import KINDS, MAPS, OTHER_KINDS, VERIFICATION, log_rows, usable_bench
from gft_edge.storage.filekinds import describe_file

DEPTH = 6
"""Levels of folders below the run's folder that are searched."""
MOST_FILES = 5000
CONFIG = "config.json"


@dataclass(frozen=True)
class Unused:
    """A file that looks like a result but cannot be used, and the reason."""

    file: str
    why: str


@dataclass(frozen=True)
class FoundArtifact:
    """An artefact with its records, each checked against its form."""

    artifact: Artifact
    engines: tuple[Mapping[str, Any], ...] = ()
    verifications: tuple[Mapping[str, Any], ...] = ()
    maps: tuple[Mapping[str, Any], ...] = ()
    quantization: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class FoundCheckpoint:
    """A checkpoint folder: its model, its training, and the rows of its log."""

    model: GFTConfig
    labels: tuple[str, ...]
    steps: int | None
    start: str
    data: str
    log: tuple[Mapping[str, Any], ...] = ()
    quantization: Mapping[str, Any] | None = None


Named = tuple[str, Mapping[str, Any]]
"""Path of a file relative to the run's folder, and its entries."""


@dataclass
class RunFiles:
    """Everything usable in a run's folder, by kind.

    Attributes:
        folder: of the run.
        artifacts, checkpoints: by the path of their folder, relative to the run's.
        evaluations, predictions, benches, sensitivities, controls, fronts, verifications: files of the verbs' ``--out``.
        cards, ranges, selections: of calibration.
        record: of the steps, written by demo.
        unused: files that cannot be used.
    """

    folder: Path
    artifacts: dict[str, FoundArtifact] = field(default_factory=dict)
    checkpoints: dict[str, FoundCheckpoint] = field(default_factory=dict)
    evaluations: list[Named] = field(default_factory=list)
    predictions: list[Named] = field(default_factory=list)
    benches: list[Named] = field(default_factory=list)
    sensitivities: list[Named] = field(default_factory=list)
    controls: list[Named] = field(default_factory=list)
    fronts: list[Named] = field(default_factory=list)
    verifications: list[Named] = field(default_factory=list)
    cards: list[Named] = field(default_factory=list)
    ranges: list[Named] = field(default_factory=list)
    selections: list[Named] = field(default_factory=list)
    record: Mapping[str, Any] | None = None
    unused: list[Unused] = field(default_factory=list)

    @property
    def is_empty(self) -> bool:
        """Returns True if the folder contains nothing that a page can show."""
        lists = (
            self.evaluations,
            self.predictions,
            self.benches,
            self.sensitivities,
            self.controls,
            self.fronts,
            self.verifications,
        )
        return not (self.artifacts or self.checkpoints or any(lists) or any((self.cards, self.ranges, self.selections)))


def find(folder: Path) -> RunFiles:
    """Reads every result in a folder and its subfolders.

    Raises:
        ArtifactError: the folder does not exist.
    """
    if not folder.is_dir():
        problem = f"is {describe_file(folder)}" if folder.is_file() else "no such folder"
        raise ArtifactError(
            f"run {folder}: {problem}; give the folder that holds the results of a run, or files that gft-edge bench --out wrote "
            "(of a log of trtexec: bench --trtexec-log FILE --out FILE.json)"
        )
    found = RunFiles(folder)
    for directory, names in _folders(folder):
        relative = directory.relative_to(folder).as_posix()
        if any(name in (".", relative) or relative.startswith(f"{name}/") for name in found.artifacts):
            continue  # the manifest lists the files of an artefact
        if MANIFEST in names and _has_keys(directory / MANIFEST, "files"):
            _attempt(found, f"{relative}/{MANIFEST}", partial(_read_artifact, found, relative, directory))
            continue
        for name in names:
            label = (directory / name).relative_to(folder).as_posix()
            if name.endswith(".json"):
                _attempt(found, label, partial(_read_file, found, label, directory / name))
            elif CONFIG not in names:
                found.unused.append(Unused(printable(label), f"its folder has no {CONFIG} of a finished checkpoint"))
    for label in list(found.checkpoints):
        _read_log(found, label)
    return found


def _folders(root: Path) -> Iterator[tuple[Path, list[str]]]:
    """Yields folders with their JSON files, the run's first; follows links, but reads no folder twice."""
    seen: set[str] = set()
    count = 0
    for where, folders, files in os.walk(root, followlinks=True):
        directory = Path(where)
        real = os.path.realpath(where)
        if real in seen or len(directory.relative_to(root).parts) > DEPTH:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        names = sorted(n for n in files if n.endswith((".json", ".jsonl")) and not n.startswith("."))
        count += len(names)
        if count > MOST_FILES:
            return
        yield directory, names


def _attempt(found: RunFiles, label: str, read: Callable[[], Any]) -> Any:
    """Returns the result of ``read``; on an error lists the file as unused and returns None."""
    try:
        return read()
    except (GFTEdgeError, OSError, ValueError, OverflowError, IndexError, RecursionError) as error:
        text = str(error) or type(error).__name__
        found.unused.append(Unused(printable(label), printable(text).splitlines()[0][:300]))
        return None


def _has_keys(path: Path, *keys: str) -> bool:
    """Returns whether a JSON object has these keys; true for an unreadable file, so that it is listed as unused."""
    try:
        data = read_object(path)
    except GFTEdgeError:
        return True
    return all(key in data for key in keys)


def _read_file(found: RunFiles, label: str, file: Path) -> None:
    """Reads a file into the list of its kind.

    Raises:
        ArtifactError: the file is malformed, or of a kind that no page shows.
    """
    data = read_object(file)
    keys = frozenset(data)
    if data.get("schema") == BENCH_SCHEMA and data.get("source") == "merge":
        return  # written by report
    if any(kind <= keys for kind in OTHER_KINDS):
        return
    if {"model", "labels", "preprocess"} <= keys:
        folder = Path(label).parent.as_posix()
        found.checkpoints[folder] = _checkpoint(data, label)
        return
    if {"steps", "machine"} <= keys:
        found.record = checked(data, forms.RUN, "record of the run")
        return
    if "results" in keys and keys & {"machine", "schema"}:
        found.benches.append((label, usable_bench(file)))
        return
    for kind in KINDS:
        if kind.keys <= keys:
            getattr(found, kind.place).append((label, kind.read(data)))
            return
    raise ArtifactError("is not a result that a page shows: its keys match no result of gft-edge")


def _read_artifact(found: RunFiles, label: str, directory: Path) -> None:
    """Adds an artefact with its engines, verification records, maps and quantization.

    Raises:
        ArtifactError: the manifest cannot be used.
    """
    artifact = load_artifact(directory)
    manifest = artifact.manifest
    if MODEL not in manifest.files:
        raise ArtifactError(f"has no {MODEL}; export it again")
    parts: dict[str, list[Mapping[str, Any]]] = {"engines": [], "verifications": [], "maps": []}
    for name in sorted(manifest.files):
        if name.endswith(".json") and name.startswith(("engines/", "reports/")):
            _attempt(found, f"{label}/{name}", partial(_read_part, artifact, name, parts))
    quantization = None
    if manifest.quantization is not None:
        read = partial(checked, manifest.quantization, forms.QUANTIZATION, "quantization")
        quantization = _attempt(found, f"{label}/{MANIFEST}", read)
    found.artifacts[label] = FoundArtifact(
        artifact, quantization=quantization, **{k: tuple(v) for k, v in parts.items()}
    )


def _read_part(artifact: Artifact, name: str, parts: Mapping[str, list[Mapping[str, Any]]]) -> None:
    """Reads a record of an artefact into the list of its kind; ignores other files of reports/."""
    data = read_object(artifact.file(name))
    if name.startswith("engines/"):
        parts["engines"].append(checked(data, forms.ENGINE, "file"))
    elif VERIFICATION.keys <= set(data):
        record = VERIFICATION.read(data)
        manifest = artifact.manifest
        graphs = {MODEL, *(member.model for member in manifest.family.values())} & set(manifest.files)
        if record["model_sha256"] not in {None, *(manifest.files[graph].sha256 for graph in graphs)}:
            raise ArtifactError("describes another graph than the artefact's; verify again")
        parts["verifications"].append(record)
    elif MAPS.keys <= set(data):
        parts["maps"].append(MAPS.read(data))


def _checkpoint(data: Mapping[str, Any], where: str) -> FoundCheckpoint:
    recipe = _within(data, "provenance", "recipe")
    steps, start, name = (
        _within(data, "metrics").get("steps"),
        _within(recipe, "train").get("init"),
        _within(recipe, "data").get("name"),
    )
    labels = checked(data["labels"], [TEXT], "labels")
    model = GFTConfig.from_json(checked(data["model"], forms.ANY_OBJECT, "model"))
    if len(labels) != model.num_classes:
        raise ArtifactError(f"labels: {len(labels)} for {model.num_classes} classes")
    quantization = data.get("quantization")
    return FoundCheckpoint(
        model=model,
        labels=tuple(labels),
        steps=steps if isinstance(steps, int) and not isinstance(steps, bool) and steps > 0 else None,
        start=printable(start) if isinstance(start, str) else "",
        data=printable(name) if isinstance(name, str) else "",
        quantization=None if quantization is None else checked(quantization, forms.QUANTIZATION, "quantization"),
    )


def _within(data: Mapping[str, Any], *keys: str) -> Mapping[str, Any]:
    """Returns the object below the keys; an empty one if it is missing."""
    for key in keys:
        value = data.get(key)
        data = value if isinstance(value, dict) else {}
    return data


def _read_log(found: RunFiles, label: str) -> None:
    """Adds the rows of a checkpoint's training log: the last row of each step, in order of steps."""
    folder = found.folder / label
    for file in sorted(folder.glob("*.jsonl")):
        rows = _attempt(found, file.relative_to(found.folder).as_posix(), partial(log_rows, file))
        if rows:
            found.checkpoints[label] = replace(found.checkpoints[label], log=tuple(rows))
            return


def picture(folder: Path, beside: Path, name: str) -> Path | None:
    """Returns the path of a picture that a record names, inside the run's folder; None if it is missing.

    Args:
        folder: of the run.
        beside: folder of the record.
        name: path as written: relative to the record, or to the working folder of the verb.
    """
    parts = [part for part in as_path(name).parts if part not in ("/", ".", "..")]
    if "\0" in name or not parts:
        return None
    root = folder.resolve()
    for start in range(len(parts)):
        for base in (beside, folder):
            candidate = base.joinpath(*parts[start:])
            if candidate.is_file() and candidate.resolve().is_relative_to(root):
                return candidate
    return None


def as_path(name: str) -> PurePosixPath:
    """Returns a path that a record names; without a slash, backslashes separate its parts (Windows)."""
    return PurePosixPath(name if "/" in name else name.replace("\\", "/"))
