"""Target ``triton``: model repositories for Triton Inference Server.

    models/                    for the onnxruntime backend; starts as it is
      gft_147-98-49/           the artefact's graph; one model per budget
      gft_147-98-49_pixels/    ensemble: pixels of the network's size, normalised, then the model; not for graphs that take pixels
      gft_normalize/           its first step
    models-tensorrt/           the same names for the tensorrt backend; starts when its engines are in their places
    client.py

The server stops when it cannot load a model of its repository, so models that wait for an engine have their own repository.
Keys: https://docs.nvidia.com/deeplearning/triton-inference-server/user-guide/docs/user_guide/model_configuration.html and the
README of triton-inference-server/onnxruntime_backend (parameters of the TensorRT accelerator).
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import onnx

from gft_edge.bundle import ARTIFACT
from gft_edge.errors import ConfigError
from gft_edge.export.deploy.normalize_graph import IMAGE, PIXELS, normalize_graph
from gft_edge.export.deploy.options import BundleOptions
from gft_edge.export.deploy.triton import client as triton_client
from gft_edge.export.deploy.triton.config import CONFIG, TYPES, messages, write_model_config
from gft_edge.export.deploy.triton.texts import engine_readme, readme
from gft_edge.manifest import MODEL, Artifact, DeploymentManifest, TensorInfo, load_artifact
from gft_edge.storage.external_data import external_files

REPOSITORY, TENSORRT_REPOSITORY = "models", "models-tensorrt"
NORMALIZE, LABELS, VERSION, PLAN = "gft_normalize", "labels.txt", "1", "model.plan"
QUEUE_DELAY_US = 500
"""The server waits this long for requests that it can join, microseconds."""
WITHOUT_ONNXRUNTIME = ("bf16", "fp8")
"""Precisions that ONNX Runtime does not compute on a CPU, and on a GPU only in part: these have no model for its backend."""
_MODES = {"fp32": "FP32", "fp16": "FP16", "bf16": "BF16", "int8": "INT8", "int8-weights": "INT8"}
"""``precision_mode`` of the TensorRT accelerator by precision of the artefact."""


def check(artifact: Artifact, options: BundleOptions) -> None:
    """Refuses an artefact or options that Triton cannot serve.

    Raises:
        ConfigError: batches start above 1, an accelerator without effect, or a type that Triton does not have.
        MissingExtraError: tritonclient is not installed.
    """
    messages()
    manifest, where = artifact.manifest, f"artefact {artifact.path}"
    low, _, high = manifest.batch
    if manifest.static_batch is None and low > 1:
        raise ConfigError(
            f"{where}: takes {low} to {high} images, Triton sends any number up to the largest; export with --batch 1:N:{high}"
        )
    if options.accelerator and _unsupported(manifest) is not None:
        raise ConfigError(
            f"{where}: has no model for the onnxruntime backend, which does not compute {_unsupported(manifest)}; accelerator "
            f"{options.accelerator!r} has no effect; leave it out, or export with --precision fp16"
        )
    for tensor in (*manifest.inputs, *manifest.outputs, *(t for m in manifest.family.values() for t in m.outputs)):
        if tensor.dtype not in TYPES:
            raise ConfigError(f"{where}: {tensor.name} is {tensor.dtype}, which Triton has no type for")


def write_files(folder: Path, artifact: Artifact, options: BundleOptions) -> dict[str, Any]:
    """Writes the repositories, the client and the README.

    Args:
        folder: of the bundle.
        artifact: that is bundled.
        options: ``accelerator`` decides where the onnxruntime backend computes.

    Returns:
        facts of the record: repositories, and for each budget its model and the model that takes pixels.

    Raises:
        ArtifactError: a file of the artefact is missing or changed.
    """
    manifest = artifact.manifest
    backends = {TENSORRT_REPOSITORY: "tensorrt"}
    if _unsupported(manifest) is None:
        backends = {REPOSITORY: "onnxruntime", **backends}
    models = {}
    for budget in (manifest.budget.id, *manifest.family):
        member = load_artifact(f"{artifact.path}@{budget}")
        name = model_name(budget)
        models[budget] = {"model": name, "pixels": f"{name}_pixels" if takes_normalized(manifest) else name}
        for repository, backend in backends.items():
            _write_model(folder / repository / name, member, backend, options)
            if takes_normalized(manifest):
                _write_ensemble(folder / repository / models[budget]["pixels"], member, name)
                if not (folder / repository / NORMALIZE).exists():
                    _write_normalize(folder / repository / NORMALIZE, manifest, options)
    shutil.copyfile(str(triton_client.__file__), folder / "client.py")
    default = models[manifest.budget.id]["pixels"]
    text = readme(manifest, next(iter(backends)), models, default, _unsupported(manifest))
    (folder / "README.md").write_text(text, encoding="utf-8")
    return {"repositories": backends, "models": models, "default": default}


def model_name(budget: str) -> str:
    """Returns the name of the model of a budget."""
    return f"gft_{budget}"


def takes_normalized(manifest: DeploymentManifest) -> bool:
    """Returns whether the graph takes normalised images, and so needs an ensemble to take pixels."""
    return manifest.inputs[0].name == IMAGE and manifest.inputs[0].dtype == "float32"


def _unsupported(manifest: DeploymentManifest) -> str | None:
    """Returns the type of the graph that the onnxruntime backend does not compute, None if it computes all."""
    return next((p for p in (manifest.precision, manifest.rest) if p in WITHOUT_ONNXRUNTIME), None)


def _write_model(folder: Path, artifact: Artifact, backend: str, options: BundleOptions) -> None:
    """Writes the model of one budget for one backend."""
    manifest = artifact.manifest
    config = _config(folder.name, manifest, manifest.inputs, manifest.outputs)
    config.backend = backend
    _add_batching(config, manifest)
    version = folder / VERSION
    version.mkdir(parents=True)
    if backend == "onnxruntime":
        _add_instances(config, options)
        if options.accelerator == "tensorrt":
            _add_tensorrt(config, manifest)
        model = artifact.file(MODEL)
        shutil.copyfile(model, version / "model.onnx")
        for location in sorted(external_files(model)):
            (version / location).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(artifact.file(location), version / location)
    else:
        config.instance_group.add(kind=messages().ModelInstanceGroup.KIND_GPU, count=1)
        place = f"{folder.parent.name}/{folder.name}/{VERSION}/{PLAN}"
        (version / "README.md").write_text(engine_readme(manifest, ARTIFACT, artifact.member, place), encoding="utf-8")
    for size in sorted({1, manifest.batch[1], manifest.batch[2]}) if config.max_batch_size else [1]:
        warm_up = config.model_warmup.add(name=f"batch {size}", batch_size=size)
        image = warm_up.inputs[manifest.inputs[0].name]
        image.data_type, image.zero_data = config.input[0].data_type, True
        image.dims.extend(config.input[0].dims)
    _save(folder, config, manifest)


def _write_normalize(folder: Path, manifest: DeploymentManifest, options: BundleOptions) -> None:
    """Writes the first step of the ensembles; it runs in ONNX Runtime in both repositories, on the CPU unless a GPU is there."""
    batch: int | str = manifest.static_batch or "batch"
    spec = manifest.preprocess
    pixels = TensorInfo(PIXELS, "uint8", (batch, spec.height, spec.width, 3), "")
    config = _config(
        folder.name, manifest, (pixels,), (TensorInfo(IMAGE, "float32", (batch, 3, spec.height, spec.width), ""),)
    )
    config.backend = "onnxruntime"
    _add_instances(config, options)
    (folder / VERSION).mkdir(parents=True)
    onnx.save(normalize_graph(spec, batch), folder / VERSION / "model.onnx")
    _save(folder, config, manifest)


def _write_ensemble(folder: Path, artifact: Artifact, model: str) -> None:
    """Writes the ensemble of one budget."""
    manifest, spec = artifact.manifest, artifact.manifest.preprocess
    pixels = TensorInfo(PIXELS, "uint8", (manifest.static_batch or "batch", spec.height, spec.width, 3), "")
    config = _config(folder.name, manifest, (pixels,), manifest.outputs)
    config.platform = "ensemble"
    first = config.ensemble_scheduling.step.add(model_name=NORMALIZE, model_version=-1)
    first.input_map[PIXELS], first.output_map[IMAGE] = PIXELS, "normalized"
    second = config.ensemble_scheduling.step.add(model_name=model, model_version=-1)
    second.input_map[manifest.inputs[0].name] = "normalized"
    for output in manifest.outputs:
        second.output_map[output.name] = output.name
    (folder / VERSION).mkdir(parents=True)
    (folder / VERSION / "README.md").write_text(
        "An ensemble has no file; the server wants the folder of its version.\n"
    )
    _save(folder, config, manifest)


def _config(
    name: str, manifest: DeploymentManifest, inputs: tuple[TensorInfo, ...], outputs: tuple[TensorInfo, ...]
) -> Any:
    """Returns a configuration with name, batches, inputs and outputs, the label file on the class scores."""
    types = messages()
    config = types.ModelConfig(name=name, max_batch_size=0 if manifest.static_batch else manifest.batch[2])
    config.version_policy.latest.num_versions = 1
    for entries, tensors in ((config.input, inputs), (config.output, outputs)):
        for tensor in tensors:
            entry = entries.add(name=tensor.name, data_type=types.DataType.Value(TYPES[tensor.dtype]))
            shape = tensor.shape[1:] if config.max_batch_size else tensor.shape
            entry.dims.extend(int(axis) for axis in shape)
            # With a static batch the server ranks the classes of all images as one list, so that its labels would be wrong.
            if tensor is manifest.outputs[0] and manifest.static_batch in (None, 1):
                entry.label_filename = LABELS
    facts = {
        "gft_edge_budget": manifest.budget.id,
        "gft_edge_preprocess": manifest.preprocess.id,
        "gft_edge_checkpoint": manifest.checkpoint_sha256,
    }
    for key, value in facts.items():
        config.parameters[key].string_value = value
    return config


def _add_batching(config: Any, manifest: DeploymentManifest) -> None:
    """Lets the server join requests to the usual and the largest number of images."""
    if config.max_batch_size > 1:
        config.dynamic_batching.preferred_batch_size.extend(sorted({manifest.batch[1], manifest.batch[2]} - {1}))
        config.dynamic_batching.max_queue_delay_microseconds = QUEUE_DELAY_US


def _add_instances(config: Any, options: BundleOptions) -> None:
    kinds = messages().ModelInstanceGroup
    kind = {"": kinds.KIND_AUTO, "cpu": kinds.KIND_CPU}.get(options.accelerator, kinds.KIND_GPU)
    config.instance_group.add(kind=kind, count=1)


def _add_tensorrt(config: Any, manifest: DeploymentManifest) -> None:
    """Lets ONNX Runtime compute with TensorRT; engines are kept in the container, below /tmp."""
    accelerator = config.optimization.execution_accelerators.gpu_execution_accelerator.add(name="tensorrt")
    image = manifest.inputs[0]
    cache = f"/tmp/gft_edge_{config.name}"
    parameters = {
        "precision_mode": _MODES[manifest.precision],
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": cache,
    }
    if not manifest.static_batch:
        for word, size in zip(("min", "opt", "max"), manifest.batch):
            parameters[f"trt_profile_{word}_shapes"] = f"{image.name}:{'x'.join(map(str, (size, *image.shape[1:])))}"
    for key, value in parameters.items():
        accelerator.parameters[key] = value


def _save(folder: Path, config: Any, manifest: DeploymentManifest) -> None:
    """Writes configuration and, where an output names it, the label file: a class per line."""
    write_model_config(folder / CONFIG, config)
    if any(output.label_filename for output in config.output):
        text = "".join(f"{label}\n" for label in manifest.labels)
        (folder / LABELS).write_text(text, encoding="utf-8", newline="\n")
