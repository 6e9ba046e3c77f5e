"""Plans, scripts and options of a bundle against its artefact."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from gft_edge.bundle import ARTIFACT
from gft_edge.errors import did_you_mean
from gft_edge.export.lint_deployment.bundles.subject import PLAN, BundleSubject, line_with
from gft_edge.export.lint_deployment.shared.rule import Problem, Problems, rule
from gft_edge.manifest import DeploymentManifest

PROVIDERS = "providers.json"
_AGAIN = "make the bundle again: gft-edge bundle"
_SHAPES = re.compile(r"--(min|opt|max)Shapes=(\"?)([\w.:]+):(\d+(?:x\d+)*)\2")
_PROFILE = re.compile(r"([\w.:]+):(\d+(?:x\d+)*)")
_FLAG = re.compile(r"--(fp16|int8|bf16|fp8|best)\b")
_ORT_OPTIONS = {
    "TensorrtExecutionProvider": """device_id trt_max_workspace_size trt_fp16_enable trt_bf16_enable trt_int8_enable
        trt_engine_cache_enable trt_engine_cache_path trt_engine_cache_prefix trt_timing_cache_enable trt_timing_cache_path
        trt_force_timing_cache trt_profile_min_shapes trt_profile_opt_shapes trt_profile_max_shapes trt_cuda_graph_enable
        trt_dump_ep_context_model trt_ep_context_file_path trt_ep_context_embed_mode trt_builder_optimization_level
        trt_detailed_build_log trt_layer_norm_fp32_fallback trt_context_memory_sharing_enable trt_dla_enable trt_dla_core
        trt_max_partition_iterations trt_min_subgraph_size trt_dump_subgraphs trt_auxiliary_streams trt_engine_hw_compatible
        trt_sparsity_enable trt_tactic_sources trt_build_heuristics_enable trt_int8_calibration_table_name
        trt_int8_use_native_calibration_table trt_op_types_to_exclude trt_preview_features has_user_compute_stream
        user_compute_stream""",
    "NvTensorRTRTXExecutionProvider": """device_id nv_runtime_cache_path enable_cuda_graph nv_profile_min_shapes
        nv_profile_opt_shapes nv_profile_max_shapes nv_max_workspace_size nv_max_shared_mem_size nv_dump_subgraphs
        nv_detailed_build_log nv_cuda_graph_enable nv_multi_profile_enable nv_use_external_data_initializer
        has_user_compute_stream user_compute_stream""",
}
"""Options by provider, from the pages of the TensorRT and TensorRT-RTX execution providers."""


@rule(
    "BU020",
    "profile of another input",
    "trtexec ends with 'Cannot find input tensor' for a name, and with an empty profile for a size.",
)
def script_shapes(subject: BundleSubject) -> Problems:
    """Yields shapes in scripts whose name or size is not the artefact's."""
    for path, number, line in _script_lines(subject):
        for match in _SHAPES.finditer(line):
            yield from _shape_problems(subject, f"--{match[1]}Shapes", match[3], match[4], number, path)


@rule(
    "BU021",
    "precision of another graph",
    "--int8 and --fp16 let a weakly typed build compute with fewer bits than the artefact was verified with.",
)
def script_precision(subject: BundleSubject) -> Problems:
    """Yields flags of trtexec for a precision that the artefact does not have."""
    manifest, flags = subject.artifact.manifest, (subject.json(PLAN) or {}).get("builder_flags", ())
    for path, number, line in _script_lines(subject):
        for match in _FLAG.finditer(line):
            if match[1] not in _types(manifest) and match[1].upper() not in flags:
                message = f"is set, the artefact is {manifest.precision} with {manifest.rest}"
                yield Problem(match[0], message, f"no {match[0]}", number, path)


@rule("BU022", "plan of another artefact or board", "build.sh and the build on the board do what plan.json says.")
def plan(subject: BundleSubject) -> Problems:
    """Yields entries of the plan that are not those of the artefact, the record or the device."""
    found = subject.json(PLAN)
    if found is None:
        return
    manifest, facts, path = subject.artifact.manifest, subject.bundle.facts, subject.path / PLAN
    wanted = {
        "precision": manifest.precision,
        "rest": manifest.rest,
        "batch": list(manifest.batch),
        "opset": manifest.opset,
        "dialect": manifest.dialect,
        "target": subject.device.name if subject.device else found.get("target"),
        "tensorrt": facts.get("tensorrt", found.get("tensorrt")),
    }
    for key, value in wanted.items():
        if found.get(key) != value:
            yield Problem(
                key, f"is {found.get(key)!r}, the bundle has {value!r}", _AGAIN, line_with(path, f'"{key}"'), path
            )
    for name, shapes in (found.get("profile") or {}).items():
        for word, shape in zip(("min", "opt", "max"), shapes):
            line = line_with(path, f'"{name}"')
            yield from _shape_problems(subject, f"profile ({word})", name, "x".join(map(str, shape)), line, path)


@rule(
    "BU023",
    "option that the provider does not have",
    "ONNX Runtime refuses the session for an unknown option of a provider.",
)
def unknown_options(subject: BundleSubject) -> Problems:
    """Yields unknown providers and options."""
    path = subject.path / PROVIDERS
    for provider, options in _providers(subject).items():
        known = _ORT_OPTIONS.get(provider)
        if known is None and provider not in ("CPUExecutionProvider", "CUDAExecutionProvider"):
            message = f"is no execution provider{did_you_mean(provider, _ORT_OPTIONS)}"
            yield Problem(provider, message, _AGAIN, line_with(path, provider), path)
        for option in options if known else ():
            if option not in (known or "").split():
                message = f"is no option of {provider}{did_you_mean(option, (known or '').split())}"
                yield Problem(option, message, _AGAIN, line_with(path, option), path)


@rule(
    "BU024",
    "options of another graph",
    "ONNX Runtime builds another engine at the first request whose shape is outside the profile.",
)
def options_profile(subject: BundleSubject) -> Problems:
    """Yields shapes in the options whose name or size is not the artefact's, and flags of another precision."""
    path, manifest = subject.path / PROVIDERS, subject.artifact.manifest
    for options in _providers(subject).values():
        for option, value in options.items():
            line = line_with(path, f'"{option}"')
            if option.endswith("_shapes"):
                for match in _PROFILE.finditer(str(value)):
                    yield from _shape_problems(subject, option, match[1], match[2], line, path)
            kind = next((k for k in ("fp16", "bf16", "int8") if option == f"trt_{k}_enable"), None)
            if kind and str(value) in ("1", "True", "true") and kind not in _types(manifest):
                message = f"is set, the artefact is {manifest.precision} with {manifest.rest}"
                yield Problem(option, message, f"no {option}", line, path)


@rule(
    "BU025",
    "cache outside the bundle",
    "a cache elsewhere is shared with other models and stays when the bundle is replaced.",
)
def cache_place(subject: BundleSubject) -> Problems:
    """Yields cache paths that lead out of the bundle, or to where no file may be added."""
    path = subject.path / PROVIDERS
    for options in _providers(subject).values():
        for option, value in options.items():
            if option.endswith("cache_path") and not _is_free(str(value)):
                message = f"is {value!r}, files may be added below {ARTIFACT}/caches/ alone"
                yield Problem(option, message, f"{ARTIFACT}/caches/...", line_with(path, f'"{option}"'), path)


@rule("BU026", "graph that the bundle does not have", "programs open the graphs that providers.json names.")
def models(subject: BundleSubject) -> Problems:
    """Yields graphs named in the options that are not there."""
    path = subject.path / PROVIDERS
    named = (subject.json(PROVIDERS) or {}).get("models")
    for budget, name in named.items() if isinstance(named, dict) else ():
        if not (subject.path / str(name)).is_file():
            yield Problem("models", f"{budget}: {name} does not exist", _AGAIN, line_with(path, str(name)), path)


def _providers(subject: BundleSubject) -> dict[str, dict[str, object]]:
    found = (subject.json(PROVIDERS) or {}).get("providers")
    return (
        {name: options for name, options in found.items() if isinstance(options, dict)}
        if isinstance(found, dict)
        else {}
    )


def _is_free(value: str) -> bool:
    return value.startswith(f"{ARTIFACT}/caches") and ".." not in Path(value).parts


def _script_lines(subject: BundleSubject) -> Iterator[tuple[Path, int, str]]:
    """Yields the lines of the shell scripts that are no comments."""
    for path in subject.named(".sh"):
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").split("\n"), 1):
            if not line.lstrip().startswith("#"):
                yield path, number, line


def _shape_problems(subject: BundleSubject, key: str, name: str, dims: str, line: int, path: Path) -> Problems:
    """Yields a shape whose name, size or batch is not the artefact's; the members of a family have the same input."""
    manifest = subject.artifact.manifest
    image, sizes, (low, _, high) = manifest.inputs[0], [int(size) for size in dims.split("x")], manifest.batch
    if name != image.name:
        message = f"names {name!r}, the input of the graph is {image.name!r}"
        yield Problem(key, message, f"{key}={image.name}:...", line, path)
    elif sizes[1:] != list(image.shape[1:]):
        wanted = "x".join(map(str, image.shape[1:]))
        message = f"has {dims}, the graph takes {wanted} per image"
        yield Problem(key, message, f"{key}={name}:{sizes[0]}x{wanted}", line, path)
    elif not low <= sizes[0] <= high:
        message = f"has batch {sizes[0]}, the artefact takes {low} to {high}"
        yield Problem(key, message, f"{key}={name}:{high}x...", line, path)


def _types(manifest: DeploymentManifest) -> tuple[str, str]:
    """Returns the types that the artefact computes in, as flags name them."""
    return manifest.precision.removesuffix("-weights"), manifest.rest
