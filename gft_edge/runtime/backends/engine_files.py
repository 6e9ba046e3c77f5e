"""Engine files of an artefact: their names, and the checks before one is loaded.

An engine is native code: deserialising it executes it. Nothing here imports TensorRT.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gft_edge.errors import ArtifactError
from gft_edge.files import read_json
from gft_edge.manifest import MODEL, Artifact, FileInfo
from gft_edge.storage.seals import read_sealed


@dataclass(frozen=True)
class EngineHost:
    """The software and hardware that will load an engine.

    Args:
        module: ``"tensorrt"``, ``"tensorrt_rtx"`` or ``"torch_tensorrt"``.
        version: of that module, None where the module itself checks it.
        compute_capability: of the GPU, for example ``"8.7"``.
        device: its name, None where only the compute capability is known.
    """

    module: str
    version: str | None
    compute_capability: str
    device: str | None = None


def engine_files(key: str) -> tuple[str, str]:
    """Returns the names of an engine and its record inside an artefact."""
    return f"engines/{key}.engine", f"engines/{key}.json"


FLAVOURS = {"tensorrt": "trt", "tensorrt_rtx": "rtx", "torch_tensorrt": "torch"}
"""Module that runs an engine: how the engine's key begins."""


def build_command(artifact: Artifact, host: EngineHost) -> str:
    """Returns the command that builds an engine of the artefact for a host, ready for a shell."""
    place = shlex.quote(str(artifact.path))
    if host.module == "torch_tensorrt":
        return f"gft-edge build CKPT --target torch-tensorrt --out {place}"
    if host.module == "tensorrt_rtx":
        return f"gft-edge build {place} --target rtx --compute-capability {host.compute_capability}"
    return f"gft-edge build {place} --target {host.device or 'this-gpu'}"


def check_engine(artifact: Artifact, key: str, host: EngineHost) -> tuple[Path, dict[str, Any]]:
    """Checks, before it is deserialised, that an engine belongs to the artefact and fits this machine.

    Args:
        artifact: with the engine in its manifest.
        key: of the engine.
        host: the software and hardware that will load it.

    Returns:
        path of the engine, and its record.

    Raises:
        ArtifactError: not in the manifest, changed, made from another graph, or for another machine; with the command
            that builds it again.
    """
    engine, sidecar = engine_files(key)
    command = build_command(artifact, host)

    def refuse(reason: str) -> ArtifactError:
        return ArtifactError(f"engine {key}: {reason}; not loaded. Build it again: {command}")

    for name in (engine, sidecar):
        if name not in artifact.manifest.files:
            raise refuse(f"{name} is not in the artefact's manifest")
        path = artifact.path / name
        if not path.is_file():
            raise refuse(f"{path.name} is missing")
        if FileInfo.of(path) != artifact.manifest.files[name]:
            raise refuse(f"{path.name} was changed since it was written (its hash differs)")
    record = read_json(artifact.path / sidecar, "engine record")
    info = artifact.manifest.files
    identity = (key, info[engine].sha256, info[MODEL].sha256)
    require_fit(record, identity, "the artefact's model.onnx", host, refuse)
    return artifact.path / engine, record


def engine_beside(graph: Path, key: str) -> tuple[Path, Path]:
    """Returns the places of an engine of an ONNX file of another program and of its record: beside the file."""
    return graph.with_name(f"{graph.stem}_{key}.engine"), graph.with_name(f"{graph.stem}_{key}.json")


def keys_beside(graph: Path, module: str) -> list[str]:
    """Returns the keys of the engines beside an ONNX file that a module runs."""
    start = f"{graph.stem}_"
    names = [path.stem.removeprefix(start) for path in graph.parent.glob("*.engine") if path.name.startswith(start)]
    return sorted(name for name in names if name.startswith(FLAVOURS[module]))


def check_engine_beside(graph: Path, model_sha256: str, key: str, host: EngineHost) -> tuple[Path, dict[str, Any]]:
    """As :func:`check_engine` for an engine beside an ONNX file, which no manifest lists: its sealed record holds the hashes of
    graph and engine. That detects mix-ups and damage; it is no signature.

    Args:
        graph: the ONNX file.
        model_sha256: of it.
        key: of the engine.
        host: the software and hardware that will load it.

    Raises:
        ArtifactError: missing, changed, made from another graph, or for another machine.
    """
    engine, sidecar = engine_beside(graph, key)
    target = f"rtx --compute-capability {host.compute_capability}" if host.module == "tensorrt_rtx" else "this-gpu"

    def refuse(reason: str) -> ArtifactError:
        return ArtifactError(
            f"engine {engine}: {reason}; not loaded. Build it again: gft-edge build {shlex.quote(str(graph))} --target {target}"
        )

    for path in (engine, sidecar):
        if not path.is_file():
            raise refuse(f"{path.name} is missing")
    try:
        record = read_sealed(sidecar, "engine record", "build the engine again")
    except ArtifactError as error:
        raise refuse(str(error)) from None
    require_fit(record, (key, FileInfo.of(engine).sha256, model_sha256), graph.name, host, refuse)
    return engine, record


def require_fit(
    record: Mapping[str, Any],
    identity: tuple[str, str, str],
    graph: str,
    host: EngineHost,
    refuse: Callable[[str], ArtifactError],
) -> None:
    """Refuses an engine whose record names another file, graph, software or GPU.

    Args:
        record: of the engine.
        identity: key, sha256 of the engine and sha256 of the graph.
        graph: its name in messages.
        host: the software and hardware that will load it.
        refuse: returns the error for a reason.
    """
    key, engine_sha256, model_sha256 = identity
    facts = {
        "key": (key, "the record is of engine {}"),
        "engine_sha256": (engine_sha256, "the record is of another file"),
        "model_sha256": (model_sha256, f"it was built from another graph than {graph}"),
        "module": (host.module, "it was built by {}, not " + host.module),
        "version": (host.version, f"it was built by {host.module} {{}}, here is {host.version}"),
    }
    if host.version is None:
        del facts["version"]
    for field, (expected, reason) in facts.items():
        if record.get(field) != expected:
            raise refuse(reason.format(record.get(field)))
    named = record.get("compute_capabilities")
    capabilities = [str(capability) for capability in named] if isinstance(named, list) else []
    if host.compute_capability not in capabilities:
        raise refuse(
            f"it is for compute capability {', '.join(capabilities) or 'unknown'}, this GPU has {host.compute_capability}"
        )
    built_for = record.get("device")
    if built_for is not None and host.device is not None and _hardware(str(built_for)) != _hardware(host.device):
        raise refuse(f"it was built on {built_for}, this is {host.device}")


def _hardware(device: str) -> str:
    """Returns the name of the module; a "super" profile is the same module at higher clocks."""
    return device.removesuffix("-super")
