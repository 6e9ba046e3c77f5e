"""Engines, caches and context models of a bundle against its graph and its device."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from onnx import helper

from gft_edge.bundle import ARTIFACT
from gft_edge.errors import ArtifactError
from gft_edge.export.graph.loading import load_graph
from gft_edge.export.lint_deployment.bundles.subject import PLAN, BundleSubject, profile
from gft_edge.export.lint_deployment.shared.rule import Problem, Problems, rule
from gft_edge.files import read_json, sha256
from gft_edge.hardware.this_device import same_module
from gft_edge.manifest import MODEL
from gft_edge.runtime.backends.caches import CARD
from gft_edge.runtime.backends.engine_files import engine_files

_BUILD = "build it on the device: gft-edge build"
_SM = re.compile(r"_sm(\d+)")


def _records(subject: BundleSubject) -> Iterator[tuple[str, Path, dict[str, Any]]]:
    """Yields key, file and content of every engine record in the manifest."""
    for name in subject.artifact.manifest.files:
        path = subject.path / ARTIFACT / name
        if name.startswith("engines/") and name.endswith(".json") and path.is_file():
            try:
                yield Path(name).stem, path, read_json(path, "engine record")
            except ArtifactError:
                continue  # the engine's check refuses it


@rule(
    "BU010",
    "engine of another graph",
    "an engine holds the weights it was built from; TensorRT does not compare it with model.onnx.",
)
def engine_graph(subject: BundleSubject) -> Problems:
    """Yields engines that were built from another graph, or whose record is of another engine."""
    for key, path, record in _records(subject):
        engine, _ = engine_files(key)
        if record.get("model_sha256") not in subject.graph_hashes:
            found = str(record.get("model_sha256"))[:12]
            yield Problem(
                "model_sha256",
                f"engine {key} was built from graph {found}, which is not in the artefact",
                _BUILD,
                0,
                path,
            )
        info = subject.artifact.manifest.files.get(engine)
        if info is None or record.get("engine_sha256") != info.sha256 or record.get("key") != key:
            yield Problem("engine_sha256", f"the record is not of {engine}", _BUILD, 0, path)


@rule(
    "BU011",
    "engine of another board",
    "an engine runs on the GPU model and the TensorRT that built it (TensorRT, engine compatibility).",
)
def engine_device(subject: BundleSubject) -> Problems:
    """Yields engines for another device or TensorRT than the bundle's."""
    device, plan = subject.device, subject.json(PLAN) or {}
    for key, path, record in _records(subject):
        built_for = record.get("device")
        found = profile(str(built_for or ""))
        if device and built_for and (found is None or not same_module(found, device)):
            yield Problem(
                "device", f"engine {key} was built on {built_for}, the bundle is for {device.name}", _BUILD, 0, path
            )
        version, planned = str(record.get("version") or ""), str(plan.get("tensorrt") or "")
        if planned and version and version.split(".")[:2] != planned.split(".")[:2]:
            message = f"engine {key} was built by TensorRT {version}, the bundle is for {planned}"
            yield Problem("version", message, _BUILD, 0, path)


@rule(
    "BU012",
    "engine of another batch or precision",
    "a profile takes its own sizes alone; fewer bits compute other values.",
)
def engine_build(subject: BundleSubject) -> Problems:
    """Yields engines with a profile or precision that the manifest does not have."""
    manifest = subject.artifact.manifest
    low, _, high = manifest.batch
    for key, path, record in _records(subject):
        if record.get("precision") not in (None, manifest.precision):
            message = f"engine {key} is {record['precision']}, the artefact is {manifest.precision}"
            yield Problem("precision", message, _BUILD, 0, path)
        batch = record.get("batch")
        if isinstance(batch, list) and len(batch) == 3 and not low <= batch[0] <= batch[2] <= high:
            message = f"engine {key} takes {batch[0]} to {batch[2]} images, the artefact {low} to {high}"
            yield Problem("batch", message, _BUILD, 0, path)


@rule(
    "BU013",
    "cache that is older than its graph",
    "caches hold compiled engines; ONNX Runtime asks to delete them when the model changes.",
)
def stale_cache(subject: BundleSubject) -> Problems:
    """Yields caches whose card is of another graph, and files of caches without a card that were written before the graph."""
    graph = subject.path / ARTIFACT / MODEL
    written = graph.stat().st_mtime if graph.is_file() else 0.0
    for path in _caches(subject):
        card = path.with_name(CARD)
        if path.name == CARD:
            facts = _card(path).get("facts")
            found = facts.get("model_sha256") if isinstance(facts, dict) else None
            if found is not None and found not in subject.graph_hashes:
                yield Problem("model_sha256", "is that of another graph", f"delete {path.parent}", 0, path)
        elif not card.is_file() and path.stat().st_mtime < written:
            message = f"{path.name} was written before {MODEL}: it is of another graph"
            yield Problem(path.name, message, f"delete {path}", 0, path)


def _card(path: Path) -> dict[str, Any]:
    try:
        return read_json(path, "card of a cache")
    except ArtifactError:
        return {}


@rule(
    "BU014",
    "cache of another GPU",
    "ONNX Runtime writes the compute capability into the name of a cached engine; timing caches are of one device.",
)
def cache_device(subject: BundleSubject) -> Problems:
    """Yields caches whose name is of another GPU or TensorRT than the bundle's."""
    device = subject.device
    plan = subject.json(PLAN) or {}
    stem = str(plan.get("timing_cache") or "").removesuffix(".cache")
    for path in _caches(subject):
        if device and (match := _SM.search(path.name)) and match[1] != device.compute_capability.replace(".", ""):
            message = f"{path.name} is of compute capability {match[1]}, {device.title} has {device.compute_capability}"
            yield Problem(path.name, message, f"delete {path}", 0, path)
        if stem and path.suffix == ".cache" and path.parent.name == "caches" and not path.name.startswith(stem):
            message = f"{path.name} is no cache of this plan, whose caches begin with {stem}"
            yield Problem(path.name, message, f"delete {path}", 0, path)


def _caches(subject: BundleSubject) -> Iterator[Path]:
    folder = subject.path / ARTIFACT / "caches"
    yield from (path for path in sorted(folder.rglob("*")) if path.is_file()) if folder.is_dir() else ()


@rule(
    "BU015",
    "context model of another engine",
    "ONNX Runtime only warns when a context model is for another GPU, and executes the engine it names.",
)
def context(subject: BundleSubject) -> Problems:
    """Yields context models whose engine, graph or GPU is not that of the artefact's record."""
    for name in subject.artifact.manifest.files:
        path = subject.path / ARTIFACT / name
        if not name.endswith("_ctx.onnx") or not path.is_file():
            continue
        model = load_graph(path)
        node = model.graph.node[0]
        facts = {entry.key: entry.value for entry in model.metadata_props}
        attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        key = facts.get("gft_edge_engine", "")
        record = next((content for found, _, content in _records(subject) if found == key), None)
        if record is None:
            yield Problem("gft_edge_engine", f"names engine {key!r}, which is not in the artefact", _BUILD, 0, path)
            continue
        if facts.get("gft_edge_model_sha256") not in subject.graph_hashes:
            yield Problem("gft_edge_model_sha256", "is of another graph than the artefact's", _BUILD, 0, path)
        content = attributes.get("ep_cache_context", b"")
        found = hashlib.sha256(content).hexdigest() if attributes.get("embed_mode") else _hash(path.parent, content)
        if found != record.get("engine_sha256"):
            yield Problem("ep_cache_context", f"loads another engine than {key}", _BUILD, 0, path)
        architecture = attributes.get("hardware_architecture", b"").decode(errors="replace")
        known = [str(each).replace(".", "") for each in record.get("compute_capabilities") or ()]
        if architecture not in known:
            message = f"is {architecture!r}, engine {key} is for {', '.join(known)}"
            yield Problem("hardware_architecture", message, _BUILD, 0, path)


def _hash(folder: Path, name: bytes) -> str:
    path = folder / name.decode(errors="replace")
    return sha256(path) if path.is_file() and path.parent == folder else ""
