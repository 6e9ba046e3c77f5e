"""Compiles an artefact's graph into a TensorRT engine; one path for ``tensorrt`` and ``tensorrt_rtx``."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from gft_edge.errors import ArtifactError, ConfigError, MissingExtraError
from gft_edge.files import replacing, write_json
from gft_edge.manifest import MODEL, Artifact, FileInfo, register_files

FLAVOURS = {"rtx": ("tensorrt_rtx", "rtx")}
"""Target of the command line: module to import and the extra that brings it."""

COMPUTE_CAPABILITIES = ("8.0", "8.6", "8.9", "12.0")
"""What an RTX engine is compiled for by default: data-centre Ampere, Ampere, Ada, Blackwell."""

WORKSPACE_BYTES = 1 << 30


@dataclass(frozen=True)
class EngineSpec:
    """What to build.

    Args:
        flavour: ``"rtx"``.
        compute_capabilities: of the GPUs the engine must run on, for example ``("8.6", "8.9")``.
        batch: smallest, usual and largest batch size.

    Raises:
        ConfigError: unknown flavour, malformed or unsupported capability, batch sizes out of order.
    """

    flavour: str = "rtx"
    compute_capabilities: tuple[str, ...] = COMPUTE_CAPABILITIES
    batch: tuple[int, int, int] = (1, 1, 8)

    def __post_init__(self) -> None:
        if self.flavour not in FLAVOURS:
            raise ConfigError(f"unknown target {self.flavour!r}; there are: {', '.join(FLAVOURS)}")
        if not self.compute_capabilities:
            raise ConfigError("build: needs at least one compute capability, for example 8.6")
        for capability in self.compute_capabilities:
            major, dot, minor = capability.partition(".")
            if not (major.isdigit() and dot and minor.isdigit()):
                raise ConfigError(f"compute capability {capability!r}: expected two numbers, for example 8.6")
            if (int(major), int(minor)) < (8, 0):
                raise ConfigError(
                    f"compute capability {capability}: TensorRT-RTX has no FP32 matrix products below 8.0, and this graph "
                    "keeps LayerNorm, softmax and importance in FP32; use 8.0 or newer"
                )
        low, usual, high = self.batch
        if not 1 <= low <= usual <= high:
            raise ConfigError(f"batch {low}:{usual}:{high}: expected 1 <= smallest <= usual <= largest")


def key(spec: EngineSpec, version: str, precision: str) -> str:
    """File name of an engine: flavour, version, compute capabilities, precision, batch."""
    capabilities = "-".join(f"sm{c.replace('.', '')}" for c in spec.compute_capabilities)
    low, usual, high = spec.batch
    return f"{spec.flavour}{version}_{capabilities}_{precision}_b{low}-{usual}-{high}"


def build_engine(
    artifact: Artifact, spec: EngineSpec, tell: Callable[[str], None] = lambda line: None
) -> dict[str, Any]:
    """Builds an engine into the artefact's ``engines`` folder and enters it in the manifest.

    Args:
        artifact: its model.onnx is what gets compiled.
        spec: for what.
        tell: receives the builder's phases as they begin.

    Returns:
        what KEY.json says: key, versions, options, sizes, hashes.

    Raises:
        MissingExtraError: TensorRT is not installed.
        ArtifactError: the compiler refused the graph (with its messages).
    """
    module, extra = FLAVOURS[spec.flavour]
    try:
        trt = importlib.import_module(module)
    except ImportError:
        raise MissingExtraError(module, extra) from None
    manifest = artifact.manifest
    plan, layers = compile_onnx(trt, artifact.file(MODEL), spec, tell)
    name = key(spec, trt.__version__, manifest.precision)
    engine, sidecar = f"engines/{name}.engine", f"engines/{name}.json"
    with replacing(artifact.path / engine) as temporary:
        temporary.write_bytes(plan)
    written = FileInfo.of(artifact.path / engine)
    record = {
        "key": name,
        "module": module,
        "version": trt.__version__,
        "compute_capabilities": list(spec.compute_capabilities),
        "batch": list(spec.batch),
        "precision": manifest.precision,
        "workspace_bytes": WORKSPACE_BYTES,
        "model_sha256": manifest.files[MODEL].sha256,
        "engine_sha256": written.sha256,
        "engine_bytes": written.size,
        "layers": layers,
        "evidence": "compiled; not yet run on a GPU",
    }
    write_json(artifact.path / sidecar, record)
    register_files(artifact, [engine, sidecar])
    return record


def compile_onnx(trt: ModuleType, model: Path, spec: EngineSpec, tell: Callable[[str], None]) -> tuple[bytes, int]:
    """Parses and compiles; returns the serialized engine and the number of network layers.

    Raises:
        ArtifactError: parse or build failed, with what the compiler said.
    """
    messages: list[str] = []
    logger = _logger(trt, messages)
    builder = trt.Builder(logger)
    strongly_typed = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(strongly_typed)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(model)):
        errors = [parser.get_error(i) for i in range(parser.num_errors)]
        detail = "; ".join(f"node {e.node_name() or e.node()}: {e.desc()}" for e in errors) or _last(messages)
        raise ArtifactError(f"build {model}: {trt.__name__} {trt.__version__} cannot parse the graph: {detail}")
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, WORKSPACE_BYTES)
    config.progress_monitor = _progress_monitor(trt, tell)
    profile = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        rest = tuple(tensor.shape)[1:]
        profile.set_shape(tensor.name, *((size, *rest) for size in spec.batch))
    config.add_optimization_profile(profile)
    _set_compute_capabilities(trt, config, spec.compute_capabilities)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise ArtifactError(f"build {model}: {trt.__name__} {trt.__version__} refused the graph: {_last(messages)}")
    return bytes(plan), int(network.num_layers)


def _set_compute_capabilities(trt: ModuleType, config: Any, capabilities: Sequence[str]) -> None:
    known = {n[2:]: n for n in dir(trt.ComputeCapability) if n.startswith("SM") and n[2:].isdigit()}
    config.num_compute_capabilities = len(capabilities)
    for index, capability in enumerate(capabilities):
        member = known.get(capability.replace(".", ""))
        if member is None:
            names = ", ".join(f"{digits[:-1]}.{digits[-1]}" for digits in sorted(known, key=int))
            raise ConfigError(
                f"compute capability {capability}: {trt.__name__} {trt.__version__} cannot compile for it; it knows {names}"
            )
        config.set_compute_capability(getattr(trt.ComputeCapability, member), index)


def _logger(trt: ModuleType, messages: list[str]) -> Any:
    class Collector(trt.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                messages.append(message)

    return Collector()


def _last(messages: list[str]) -> str:
    return "; ".join(messages[-3:]) or "no message was given"


def _progress_monitor(trt: ModuleType, tell: Callable[[str], None]) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            if parent_phase is None:
                tell(f"{phase_name} ({num_steps} steps)")

        def phase_finish(self, phase_name: str) -> None:
            pass

        def step_complete(self, phase_name: str, step: int) -> bool:
            return True  # False would cancel the build

    return Monitor()
