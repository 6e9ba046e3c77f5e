"""Executes a build plan: one path for ``tensorrt`` and ``tensorrt_rtx``, the module being an argument.

Which attribute of the bindings a generation has is decided by the plan: code that touches one that not all have stands under
``if plan.FIELD``, and TensorRT objects are annotated with their class, so that a test can hold every attribute against the
real bindings of each generation. Enumeration members are named by the plan.
"""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol

from gft_edge.calibration.cache import load_cache
from gft_edge.errors import ArtifactError, CheckFailed, ConfigError
from gft_edge.export.onnx.dialects import TRT8_OPSET, export_command
from gft_edge.export.tensorrt.build_plan import BuildPlan, engine_key
from gft_edge.export.tensorrt.interrupts import Interrupted, interrupts_held
from gft_edge.export.tensorrt.planning import for_version
from gft_edge.files import replacing, require_writable, write_json
from gft_edge.hardware.environment import has_nvidia_driver, missing_extra
from gft_edge.hardware.tensorrt_versions import RTX, generation
from gft_edge.locks import locked
from gft_edge.manifest import MANIFEST, MODEL, Artifact, FileInfo, register_files
from gft_edge.runtime.engine_files import engine_files
from gft_edge.runtime.trt_messages import error_logger, explain, require

if TYPE_CHECKING:
    import tensorrt


class Watch(Protocol):
    """Receives the progress of a build."""

    def start(self, phase: str, parent: str | None, steps: int) -> None:
        """A phase begins, inside another one or not."""
        ...

    def step(self, phase: str, step: int) -> None:
        """A step of a phase is done."""
        ...

    def finish(self, phase: str) -> None:
        """A phase ends."""
        ...


class Unwatched:
    """Ignores progress."""

    def start(self, phase: str, parent: str | None, steps: int) -> None:
        """Nothing."""

    def step(self, phase: str, step: int) -> None:
        """Nothing."""

    def finish(self, phase: str) -> None:
        """Nothing."""


def load_module(plan: BuildPlan) -> ModuleType:
    """Imports TensorRT or TensorRT-RTX.

    Raises:
        MissingExtraError: it is not installed, or its libraries are not.
        ConfigError: TensorRT without a driver; only RTX compiles without.
    """
    try:
        trt = importlib.import_module(plan.module)
    except (ImportError, OSError):
        raise missing_extra(plan.module, generation(RTX if plan.rtx else plan.generation).extra) from None
    if not plan.rtx and not has_nvidia_driver():
        raise ConfigError(
            f"build --target {plan.target}: TensorRT times its kernels on the GPU, and there is no NVIDIA driver here; "
            "build on the device, or look at the plan with --plan"
        )
    return trt


def build_engine(artifact: Artifact, plan: BuildPlan, watch: Watch | None = None) -> dict[str, Any]:
    """Builds an engine into the artefact's ``engines`` folder and enters it in the manifest.

    Args:
        artifact: its model.onnx is what gets compiled.
        plan: how.
        watch: receives the build's progress.

    Returns:
        what KEY.json says: key, versions, plan, sizes, hashes.

    Raises:
        MissingExtraError: TensorRT is not installed.
        ConfigError: the installed TensorRT is not of the plan's generation, needs another dialect of the graph, there is
            no driver, or the artefact cannot be written to (found before anything is compiled).
        KeyboardInterrupt: Ctrl-C; nothing is written then.
        CheckFailed: lint finds errors in the graph for this target.
        ArtifactError: the compiler refused the graph (with its messages).
    """
    trt = load_module(plan)
    plan = for_version(plan, trt.__version__)
    require_dialect(artifact, plan)
    model = artifact.file(MODEL)
    _require_clean(model, plan)
    key = engine_key(plan, trt.__version__)
    if artifact.member:
        key = f"{key}_{artifact.member}"
    engine, sidecar = engine_files(key)
    for name in (engine, sidecar, MANIFEST):
        require_writable(artifact.path / name)
    blob, layers = compile_plan(trt, model, plan, watch or Unwatched())
    with locked(
        artifact.path
    ):  # another build of the same engine must not change the file between its hash and its record
        return _store(artifact, plan, key, trt.__version__, blob, layers)


def _store(artifact: Artifact, plan: BuildPlan, key: str, version: str, blob: bytes, layers: Any) -> dict[str, Any]:
    engine, sidecar = engine_files(key)
    with replacing(artifact.path / engine) as temporary:
        temporary.write_bytes(blob)
    written = FileInfo.of(artifact.path / engine)
    record = {
        "key": key,
        "module": plan.module,
        "version": version,
        "device": None if plan.rtx else plan.target,
        "compute_capabilities": list(plan.compute_capabilities),
        "batch": list(plan.batch),
        "precision": plan.precision,
        "plan": plan.to_json(),
        "model_sha256": artifact.manifest.files[MODEL].sha256,
        "engine_sha256": written.sha256,
        "engine_bytes": written.size,
        "layers": layers,
        "evidence": "compiled; not yet run on a GPU",
    }
    write_json(artifact.path / sidecar, record)
    register_files(artifact, [engine, sidecar])
    return record


def _require_clean(model: Path, plan: BuildPlan) -> None:
    from gft_edge.export.graph.loading import load_graph
    from gft_edge.export.lint.linter import lint

    errors = lint(load_graph(model), plan.platform).errors
    if errors:
        more = f" and {len(errors) - 1} more" if len(errors) > 1 else ""
        raise CheckFailed(
            f"build {model}: {errors[0].rule} {errors[0].node}: {errors[0].message}{more}; gft-edge lint {model} tells why"
        )


def compile_plan(trt: ModuleType, model: Path, plan: BuildPlan, watch: Watch) -> tuple[bytes, int]:
    """Parses and compiles; returns the serialized engine and the number of network layers.

    Raises:
        ArtifactError: parse or build failed, with what the compiler said and the node it named.
        ConfigError: a compute capability the compiler does not know.
        KeyboardInterrupt: Ctrl-C. TensorRT swallows what is raised in its callbacks, so the signal is held back meanwhile,
            and generations that tell their progress are asked to stop.
    """
    with interrupts_held() as interrupted:
        return _compile(trt, model, plan, watch, interrupted)


def _compile(
    trt: ModuleType, model: Path, plan: BuildPlan, watch: Watch, interrupted: Interrupted
) -> tuple[bytes, int]:
    messages: list[str] = []
    logger = error_logger(trt, messages)
    builder = trt.Builder(logger)
    network = builder.create_network(_network_flags(trt, plan))
    require(network, f"build {model}: {trt.__name__} {trt.__version__} made no network", messages)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(model)):
        errors = [parser.get_error(i) for i in range(parser.num_errors)]
        detail = "; ".join(_parser_error(error) for error in errors) or explain(messages)
        raise ArtifactError(f"build {model}: {trt.__name__} {trt.__version__} cannot parse the graph: {detail}")
    config = builder.create_builder_config()
    require(config, f"build {model}: {trt.__name__} {trt.__version__} made no builder configuration", messages)
    _configure(trt, config, plan)
    if plan.profile:
        profile = builder.create_optimization_profile()
        for name, shapes in plan.profile.items():
            profile.set_shape(name, *shapes)
        if config.add_optimization_profile(profile) < 0:
            raise ArtifactError(f"build {model}: batch {plan.batch} does not fit the graph: {explain(messages)}")
        if plan.calibrator:
            config.set_calibration_profile(profile)
    if plan.progress:
        config.progress_monitor = _monitor(trt, watch, interrupted)
    if plan.timing_cache:
        _use_timing_cache(config, plan.timing_cache)
    blob: Any = None if interrupted else builder.build_serialized_network(network, config)
    if interrupted:
        raise KeyboardInterrupt
    require(blob, f"build {model}: {trt.__name__} {trt.__version__} refused the graph", messages)
    if plan.timing_cache:
        _keep_timing_cache(config, plan.timing_cache)
    return bytes(blob), int(network.num_layers)


def _network_flags(trt: ModuleType, plan: BuildPlan) -> int:
    mask = 0
    for name in plan.network_flags:
        mask |= 1 << int(getattr(trt.NetworkDefinitionCreationFlag, name))
    return mask


def _configure(trt: ModuleType, config: tensorrt.IBuilderConfig, plan: BuildPlan) -> None:
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, plan.workspace_bytes)
    config.builder_optimization_level = plan.optimization_level
    config.max_aux_streams = plan.max_aux_streams
    config.profiling_verbosity = getattr(trt.ProfilingVerbosity, plan.profiling_verbosity)
    for name in plan.builder_flags:
        config.set_flag(getattr(trt.BuilderFlag, name))
    for name in plan.cleared_flags:
        config.clear_flag(getattr(trt.BuilderFlag, name))
    if plan.hardware_compatibility:
        config.hardware_compatibility_level = getattr(trt.HardwareCompatibilityLevel, plan.hardware_compatibility)
    if plan.dla_core is not None:
        config.default_device_type = trt.DeviceType.DLA
        config.DLA_core = plan.dla_core
    if plan.calibrator:
        config.int8_calibrator = _calibrator(trt, plan)
    if plan.rtx:
        _set_compute_capabilities(trt, config, plan.compute_capabilities)


def _set_compute_capabilities(trt: ModuleType, config: tensorrt.IBuilderConfig, capabilities: Sequence[str]) -> None:
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


def _calibrator(trt: ModuleType, plan: BuildPlan) -> Any:
    """Gives TensorRT the ranges of a calibration cache, and no data: a missing tensor is an error, not a guess."""
    cache = load_cache(Path(plan.calibration_cache or "")).dumps()  # without what an editor added

    class Cached(getattr(trt, plan.calibrator or "")):  # type: ignore[misc]
        def get_batch_size(self) -> int:
            return plan.batch[1]

        def get_batch(self, names: Sequence[str]) -> None:
            return None

        def read_calibration_cache(self) -> bytes:
            return cache

        def write_calibration_cache(self, cache: bytes) -> None:
            pass

    return Cached()


def _monitor(trt: ModuleType, watch: Watch, interrupted: Interrupted) -> tensorrt.IProgressMonitor:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            with _noting(interrupted):
                watch.start(phase_name, parent_phase, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            with _noting(interrupted):
                watch.step(phase_name, step)
            return not interrupted

        def phase_finish(self, phase_name: str) -> None:
            with _noting(interrupted):
                watch.finish(phase_name)

    return Monitor()


@contextlib.contextmanager
def _noting(interrupted: Interrupted) -> Iterator[None]:
    """Keeps a Ctrl-C from crossing the compiler as an exception, which loses it."""
    try:
        yield
    except KeyboardInterrupt:
        interrupted.note()


def timing_cache_file(name: str) -> Path:
    """Where timings are kept from build to build: in the user's cache folder."""
    root = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(root) / "gft-edge" / name


def _use_timing_cache(config: tensorrt.IBuilderConfig, name: str) -> None:
    file = timing_cache_file(name)
    cache = config.create_timing_cache(file.read_bytes() if file.is_file() else b"")
    if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):
        empty = config.create_timing_cache(b"")  # of another driver or damaged: measured anew
        config.set_timing_cache(empty, ignore_mismatch=False)


def _keep_timing_cache(config: tensorrt.IBuilderConfig, name: str) -> None:
    cache = config.get_timing_cache()
    if cache is not None:
        with replacing(timing_cache_file(name)) as temporary:
            temporary.write_bytes(bytes(cache.serialize()))


def _parser_error(error: tensorrt.ParserError) -> str:
    """Node and words of a parser error; 8.6 knows the node's number only."""
    name = getattr(error, "node_name", None)
    return f"node {(name() if name is not None else '') or error.node()}: {error.desc()}"


def require_dialect(artifact: Artifact, plan: BuildPlan) -> None:
    """Refuses to build for TensorRT 8.6 what its parser does not read; newer ones read both dialects.

    Raises:
        ConfigError: with the command that exports the checkpoint in the dialect needed.
    """
    low, high = generation(plan.generation).opsets
    if high > TRT8_OPSET or (artifact.manifest.dialect == "trt8" and plan.opset <= high):
        return
    raise ConfigError(
        f"build {artifact.path}: TensorRT {plan.tensorrt} needs dialect trt8 (opset {low} to {high}), this graph is of "
        f"{artifact.manifest.dialect} (opset {plan.opset}); export it again: {export_command(artifact, 'trt8')}"
    )
