"""Sessions of ONNX Runtime on a GPU: the CUDA, TensorRT and TensorRT-RTX providers, their options, caches and profiles.

Names of options are those in the libraries of onnxruntime-gpu 1.31.1 and onnxruntime-ep-nv-tensorrt-rtx 0.5.0. Not verified on
hardware: without a GPU only the refusals, the options and, on the CPU, the bound session run.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from gft_edge.errors import ArtifactError, ConfigError, MissingExtraError
from gft_edge.hardware.devices import Device
from gft_edge.hardware.environment import REMEDIES, has_nvidia_driver, missing_extra
from gft_edge.hardware.tensorrt_versions import require_rtx_capability
from gft_edge.manifest import MODEL, Artifact, Batch, HighPrecision, Precision, TensorInfo
from gft_edge.runtime.backends.assignment import CPU, RECORD_ASSIGNMENT, assignment, require_provider_runs
from gft_edge.runtime.backends.bound_session import BoundSession
from gft_edge.runtime.backends.caches import Cache, machine_mark, open_cache
from gft_edge.runtime.backends.sessions import Session, SessionOptions, require_interface
from gft_edge.runtime.backends.table import ALLOW_CPU, CUDA_GRAPH, backend_of_module, require_settings, switch


@dataclass(frozen=True)
class Provider:
    """A provider of ONNX Runtime.

    Attributes:
        backend: its row of the backend table.
        name: in ONNX Runtime.
        package: distribution that holds it.
        plugin: module that ONNX Runtime loads it from; empty where it is a part of ONNX Runtime.
        options: that it reads.
        prefix: of its options for profiles; empty where it has none.
        graph_option: that switches CUDA graphs on.
        beside: providers for the nodes that it does not take.
        device: ONNX Runtime's name of its memory, empty where inputs are left to ONNX Runtime.
    """

    backend: str
    name: str
    package: str
    plugin: str
    options: frozenset[str]
    prefix: str
    graph_option: str
    beside: tuple[str, ...]
    device: str


def _names(prefix: str, words: str) -> frozenset[str]:
    return frozenset(prefix + word for word in words.split())


CUDA = Provider(
    "onnxruntime-cuda",
    "CUDAExecutionProvider",
    "onnxruntime-gpu",
    "",
    _names(
        "",
        "device_id has_user_compute_stream user_compute_stream gpu_mem_limit arena_extend_strategy cudnn_conv_algo_search "
        "cudnn_conv_use_max_workspace cudnn_conv1d_pad_to_nc1d do_copy_in_default_stream enable_cuda_graph enable_cudnn use_tf32 "
        "enable_skip_layer_norm_strict_mode fuse_conv_bias prefer_nhwc sdpa_kernel tunable_op_enable tunable_op_tuning_enable "
        "tunable_op_max_tuning_duration_ms use_ep_level_unified_stream",
    ),
    "",
    "enable_cuda_graph",
    (CPU,),
    "cuda",
)
TENSORRT = Provider(
    "onnxruntime-tensorrt",
    "TensorrtExecutionProvider",
    "onnxruntime-gpu",
    "",
    _names("", "device_id has_user_compute_stream user_compute_stream")
    | _names(
        "trt_",
        "auxiliary_streams bf16_enable build_heuristics_enable builder_optimization_level context_memory_sharing_enable "
        "cuda_graph_enable detailed_build_log dla_core dla_enable dump_ep_context_model dump_subgraphs engine_cache_enable "
        "engine_cache_path engine_cache_prefix engine_hw_compatible ep_context_embed_mode ep_context_file_path "
        "extra_plugin_lib_paths force_sequential_engine_build force_timing_cache fp16_enable int8_calibration_table_name "
        "int8_enable int8_use_native_calibration_table layer_norm_fp32_fallback load_user_initializer "
        "max_partition_iterations max_workspace_size min_subgraph_size op_types_to_exclude preview_features "
        "profile_max_shapes profile_min_shapes profile_opt_shapes sparsity_enable tactic_sources timing_cache_enable "
        "timing_cache_path weight_stripped_engine_enable onnx_model_folder_path",
    ),
    "trt_",
    "trt_cuda_graph_enable",
    ("CUDAExecutionProvider", CPU),
    "cuda",
)
RTX = Provider(
    "onnxruntime-rtx",
    "NvTensorRTRTXExecutionProvider",
    "onnxruntime-ep-nv-tensorrt-rtx",
    "onnxruntime_ep_nv_tensorrt_rtx",
    _names("", "device_id has_user_compute_stream user_compute_stream user_aux_stream_array enable_cuda_graph")
    | _names(
        "nv_",
        "max_workspace_size max_shared_mem_size dump_subgraphs detailed_build_log profile_min_shapes profile_opt_shapes "
        "profile_max_shapes multi_profile_enable use_external_data_initializer runtime_cache_path op_types_to_exclude "
        "length_aux_stream_array weight_streaming_budget",
    ),
    "nv_",
    "enable_cuda_graph",
    (CPU,),
    "",
)
PROVIDERS = (CUDA, TENSORRT, RTX)


def open_cuda_provider(artifact: Artifact, options: SessionOptions, module: str) -> Session:
    """Opens an artefact in the CUDA provider; see :func:`open_provider`."""
    return open_provider(CUDA, artifact, options, module)


def open_tensorrt_provider(artifact: Artifact, options: SessionOptions, module: str) -> Session:
    """Opens an artefact in the TensorRT provider; see :func:`open_provider`."""
    return open_provider(TENSORRT, artifact, options, module)


def open_rtx_provider(artifact: Artifact, options: SessionOptions, module: str) -> Session:
    """Opens an artefact in the TensorRT-RTX provider; see :func:`open_provider`."""
    return open_provider(RTX, artifact, options, module)


def open_provider(provider: Provider, artifact: Artifact, options: SessionOptions, module: str) -> Session:
    """Opens the model of an artefact on a GPU by a provider of ONNX Runtime.

    Raises:
        MissingExtraError: ONNX Runtime, or a build of it with the provider, is not installed.
        ConfigError: an unknown setting, no driver, a GPU that the provider does not support, or a graph that would run on
            the CPU.
        ArtifactError: missing, changed or contradictory file, or one that the provider refuses.
    """
    model = artifact.file(MODEL)
    cache = functools.partial(_cache, provider, artifact)
    session = open_graph(provider, model, artifact.manifest, options.settings, module, cache)
    if options.as_described:
        require_interface(session, artifact)
    return session


class GraphFacts(Protocol):
    """What the options of a provider depend on; a manifest has it."""

    @property
    def batch(self) -> Batch:
        """Smallest, usual and largest number of images of a request."""

    @property
    def inputs(self) -> tuple[TensorInfo, ...]:
        """The only input."""

    @property
    def precision(self) -> Precision:
        """Arithmetic of the linear layers."""

    @property
    def rest(self) -> HighPrecision:
        """Arithmetic of the others."""


def open_graph(
    provider: Provider,
    model: Path,
    facts: GraphFacts,
    settings: Mapping[str, str],
    module: str,
    cache_of: Callable[[ModuleType, Device], Cache | None] = lambda ort, gpu: None,
) -> Session:
    """Opens an ONNX file on a GPU by a provider of ONNX Runtime.

    Args:
        provider: one of :data:`PROVIDERS`.
        model: the file, which the caller has checked.
        facts: of the graph.
        settings: of the ``--backend`` argument.
        module: ONNX Runtime.
        cache_of: returns the folder for engines and kernels; none by default.

    Raises:
        MissingExtraError, ConfigError, ArtifactError: as :func:`open_provider`.
    """
    switches = backend_settings(provider, settings)
    ort = _onnxruntime(provider, module)
    if not has_nvidia_driver():
        raise ConfigError(
            f"backend {provider.backend}: runs on an NVIDIA GPU, and there is no NVIDIA driver here; run it on the device, or "
            "with --backend onnxruntime"
        )
    cache = cache_of(ort, _this_gpu(provider))
    wanted = provider_options(provider, facts, settings, cache)
    made = create_session(ort, provider, str(model), wanted)
    found = assignment(made)
    require_provider_runs(provider.backend, provider.name, found, switches[ALLOW_CPU])
    if cache is not None:
        cache.close()
    record = {
        "version": ort.__version__,
        "provider": provider.name,
        "providers": list(found.providers),
        "nodes": found.counts or None,
        "provider_options": dict(wanted),
        "ignored_options": ignored_options(made, provider, wanted),
        "cache": "none" if cache is None else cache.state,
        "transfers": "input and outputs are copied in every request",
    }
    runs = BoundSession(ort, made, provider.device, switches[CUDA_GRAPH]) if provider.device else made
    outputs = tuple(output.name for output in made.get_outputs())
    return Session(provider.backend, record, outputs, runs, made.get_inputs()[0].name)


def backend_settings(provider: Provider, settings: Mapping[str, str]) -> dict[str, bool]:
    """Returns our switches of a ``--backend`` argument.

    Raises:
        ConfigError: a name that neither we nor the provider know, or a switch that is neither on nor off.
    """
    require_settings(provider.backend, settings, (CUDA_GRAPH, ALLOW_CPU, *sorted(provider.options)))
    return {name: switch(settings, name) for name in (CUDA_GRAPH, ALLOW_CPU)}


def provider_options(
    provider: Provider, facts: GraphFacts, settings: Mapping[str, str], cache: Cache | None
) -> dict[str, str]:
    """Returns the options of a provider for a graph: profile of its batch sizes, types of its graph, caches, the user's own.

    Args:
        provider: one of :data:`PROVIDERS`.
        facts: of the graph.
        settings: of the ``--backend`` argument; they replace ours.
        cache: folder for engines, kernels and timings; None for none.
    """
    found = {"device_id": "0"}
    low, usual, high = facts.batch
    if provider.prefix and low < high:
        image = facts.inputs[0]
        for word, size in (("min", low), ("opt", usual), ("max", high)):
            shape = "x".join(map(str, (size, *image.shape[1:])))
            found[f"{provider.prefix}profile_{word}_shapes"] = f"{image.name}:{shape}"
    if provider is TENSORRT:
        # Its networks are weakly typed: a type that no flag allows is not used.
        for name, wanted in (
            ("fp16", facts.rest == "fp16"),
            ("bf16", facts.rest == "bf16"),
            ("int8", facts.precision in ("int8", "int8-weights")),
        ):
            found |= {f"trt_{name}_enable": "1"} if wanted else {}
    if provider is TENSORRT and cache is not None:
        found |= {"trt_engine_cache_enable": "1", "trt_engine_cache_path": str(cache.path)}
        found |= {"trt_timing_cache_enable": "1", "trt_timing_cache_path": str(cache.path)}
    if provider is RTX and cache is not None:
        found["nv_runtime_cache_path"] = str(cache.path)
    if provider is CUDA and facts.rest == "fp32":
        found["use_tf32"] = "0"
    if switch(settings, CUDA_GRAPH):
        found[provider.graph_option] = "1"
    return found | {name: value for name, value in settings.items() if name in provider.options}


def create_session(ort: ModuleType, provider: Provider, model: str, wanted: Mapping[str, str]) -> Any:
    """Creates a session on a provider, without ONNX Runtime's own retry on the CPU.

    Raises:
        ConfigError: the plugin finds no GPU that it supports.
        ArtifactError: ONNX Runtime or the provider refuses the graph or an option.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry(RECORD_ASSIGNMENT, "1")
    try:
        if provider.plugin:
            devices = _plugin_devices(ort, provider)
            options.add_provider_for_devices(devices, dict(wanted))
            return ort.InferenceSession(model, options, enable_fallback=0)
        chain = [(provider.name, dict(wanted)), *provider.beside]
        return ort.InferenceSession(model, options, providers=chain, enable_fallback=0)
    except ConfigError:
        raise
    except Exception as error:  # ONNX Runtime raises a dozen classes that share no public base
        raise ArtifactError(
            f"{model}: {provider.name} of ONNX Runtime {ort.__version__} cannot open it ({_short(error)})"
        ) from None


def ignored_options(session: Any, provider: Provider, wanted: Mapping[str, str]) -> list[str]:
    """Returns the options that the provider does not report back with the value that was asked for; none where it reports none."""
    told = session.get_provider_options().get(provider.name)
    if not told:
        return []
    return sorted(name for name, value in wanted.items() if not _same(told.get(name), value))


def _same(told: str | None, wanted: str) -> bool:
    words = {"true": "1", "false": "0"}
    return told is not None and words.get(told.lower(), told) == words.get(wanted.lower(), wanted)


def _onnxruntime(provider: Provider, module: str) -> ModuleType:
    if provider.plugin:
        return _with_plugin(provider, module)
    try:
        ort = importlib.import_module(module)
    except (ImportError, OSError):
        # Not the ONNX Runtime of the extra, which lacks the provider.
        raise missing_extra(provider.package, "onnx") from None
    if provider.name not in ort.get_available_providers():
        raise MissingExtraError(
            provider.package,
            "onnx",
            f"whose {provider.name} the onnxruntime {ort.__version__} here lacks (it has "
            f"{', '.join(ort.get_available_providers())})",
            REMEDIES[provider.package],
        )
    return ort


def _with_plugin(provider: Provider, module: str) -> ModuleType:
    ort = backend_of_module(module).import_module()
    try:
        plugin = importlib.import_module(provider.plugin)
    except (ImportError, OSError):
        raise missing_extra(provider.package, "onnx") from None
    with contextlib.suppress(Exception):  # a second registration is an error; without a first one no device is found
        ort.register_execution_provider_library(plugin.get_ep_name(), plugin.get_library_path())
    return ort


def _plugin_devices(ort: ModuleType, provider: Provider) -> list[Any]:
    devices = [device for device in ort.get_ep_devices() if device.ep_name == provider.name]
    if not devices:
        raise ConfigError(
            f"backend {provider.backend}: {provider.package} finds no GPU that it supports; take --backend onnxruntime-cuda or "
            "tensorrt"
        )
    return devices[:1]


def _this_gpu(provider: Provider) -> Device:
    from gft_edge.hardware.this_device import device_here

    device = device_here().profile
    if provider is RTX:
        require_rtx_capability(device.compute_capability, f"backend {provider.backend} on {device.title}")
    return device


def _cache(provider: Provider, artifact: Artifact, ort: ModuleType, gpu: Device) -> Cache | None:
    if not provider.prefix:
        return None
    facts = {
        "model": artifact.manifest.files[MODEL].sha256,
        "onnxruntime": str(ort.__version__),
        "gpu": f"{gpu.name} {gpu.compute_capability}",
        "machine": machine_mark(),
    }
    return open_cache(artifact, artifact.own(provider.backend), facts)


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
