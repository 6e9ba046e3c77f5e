"""Compiles a build plan: one code path for ``tensorrt`` and ``tensorrt_rtx``, the module is an argument.

The plan decides which attributes of the bindings are used: code for an attribute that some generations lack stands under
``if plan.FIELD``, and TensorRT objects are annotated with their class, so that a test can compare every attribute with the real
bindings of each generation. The plan also names the members of enumerations.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from gft_edge.calibration.cache import load_cache
from gft_edge.errors import ArtifactError, ConfigError
from gft_edge.export.tensorrt.build_plan import BuildPlan
from gft_edge.export.tensorrt.interrupts import Interrupted, interrupts_held
from gft_edge.files import replacing
from gft_edge.hardware.environment import has_nvidia_driver
from gft_edge.runtime.backends.table import backend_of_module
from gft_edge.runtime.backends.trt_messages import error_logger, explain, require

if TYPE_CHECKING:
    import tensorrt

BuildProgress = Callable[[str, int, int], None]
"""Called with the name of a step of the compiler, how much of it is done, and its total; steps may nest."""


def load_module(plan: BuildPlan) -> ModuleType:
    """Imports TensorRT or TensorRT-RTX.

    Raises:
        MissingExtraError: it is not installed, or its libraries are not.
        ConfigError: TensorRT without a driver, which only RTX can compile without.
    """
    trt = backend_of_module(plan.module).import_module()
    if not plan.rtx and not has_nvidia_driver():
        raise ConfigError(
            f"--target {plan.target}: TensorRT times its kernels on the GPU, and there is no NVIDIA driver here; "
            "build on the device, or print the plan with --plan"
        )
    return trt


def compile_plan(
    trt: ModuleType, model: Path, plan: BuildPlan, progress: BuildProgress | None = None
) -> tuple[bytes, int]:
    """Parses and compiles; returns the serialized engine and the number of network layers.

    Raises:
        ArtifactError: parse or build failed, with the messages of the compiler and the node it named.
        ConfigError: a compute capability that the compiler does not know.
        KeyboardInterrupt: Ctrl-C. TensorRT swallows exceptions of its callbacks, so the signal is held back meanwhile; a
            generation that reports progress is asked to stop.
    """
    with interrupts_held() as interrupted:
        return _compile(trt, model, plan, progress or _ignore, interrupted)


def _ignore(step: str, done: int, total: int) -> None:
    pass


def _compile(
    trt: ModuleType, model: Path, plan: BuildPlan, progress: BuildProgress, interrupted: Interrupted
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
        config.progress_monitor = _monitor(trt, progress, interrupted)
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
    """Returns a calibrator with the ranges of a cache and without data: a missing tensor is an error, not a guess."""
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


def _monitor(trt: ModuleType, progress: BuildProgress, interrupted: Interrupted) -> tensorrt.IProgressMonitor:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.totals: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self.totals[phase_name] = num_steps
            with _noting(interrupted):
                progress(phase_name, 0, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            total = self.totals.get(phase_name, 0)
            if step + 1 < total:
                with _noting(interrupted):
                    progress(phase_name, step + 1, total)
            return not interrupted

        def phase_finish(self, phase_name: str) -> None:
            total = self.totals.pop(phase_name, 0)
            with _noting(interrupted):
                progress(phase_name, total, total)

    return Monitor()


@contextlib.contextmanager
def _noting(interrupted: Interrupted) -> Iterator[None]:
    """Notes a Ctrl-C instead of raising it through the compiler, which loses it."""
    try:
        yield
    except KeyboardInterrupt:
        interrupted.note()


def timing_cache_file(name: str) -> Path:
    """Returns the place of a timing cache: in the user's cache folder, kept from build to build."""
    root = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(root) / "gft-edge" / name


def _use_timing_cache(config: tensorrt.IBuilderConfig, name: str) -> None:
    file = timing_cache_file(name)
    cache = config.create_timing_cache(file.read_bytes() if file.is_file() else b"")
    if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):
        empty = config.create_timing_cache(b"")  # of another driver or damaged: measured again
        config.set_timing_cache(empty, ignore_mismatch=False)


def _keep_timing_cache(config: tensorrt.IBuilderConfig, name: str) -> None:
    cache = config.get_timing_cache()
    if cache is not None:
        with replacing(timing_cache_file(name)) as temporary:
            temporary.write_bytes(bytes(cache.serialize()))


def _parser_error(error: tensorrt.ParserError) -> str:
    """Returns node and message of a parser error; 8.6 has the node's number only."""
    name = getattr(error, "node_name", None)
    return f"node {(name() if name is not None else '') or error.node()}: {error.desc()}"
