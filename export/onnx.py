"""From a checkpoint to an ONNX artefact: one graph, static token budget, only the batch dynamic."""

from __future__ import annotations

import logging
import platform
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxscript
import onnxslim
import torch
from torch import Tensor, nn
from torch.export import Dim

from gft_edge import __version__
from gft_edge.budget import TokenBudget
from gft_edge.calibration.modules import without_quantizers
from gft_edge.checkpoint import Checkpoint
from gft_edge.errors import ArtifactError, ConfigError
from gft_edge.export.modules import exportable
from gft_edge.export.rewrite import rewrite
from gft_edge.files import new_folder, replacing, write_json
from gft_edge.manifest import (
    GOLDEN,
    MANIFEST,
    MODEL,
    Artifact,
    DeploymentManifest,
    FileInfo,
    MapsMode,
    TensorInfo,
    load_artifact,
)
from gft_edge.model.gft import GFTOutput, check_budget

OPSET = 20
MAX_BATCH = 1024
"""Upper end of the batch axis that the exported graph is checked for; engines set their own."""


class _Graph(nn.Module):
    """The function that is traced: image to logits and, with maps, importance and kept positions of each stage."""

    def __init__(self, model: nn.Module, budget: TokenBudget, maps: MapsMode) -> None:
        super().__init__()
        self.model, self.budget, self.maps = exportable(model), budget, maps

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, H, W) to the graph's outputs."""
        if self.maps == "none":
            return (self.model(image, self.budget),)
        out = self.model(image, self.budget, maps=True)
        stages = [t for stage in out.stages for t in (stage.importance, stage.kept.to(torch.int32))]
        return (out.logits, *stages)


def graph_outputs(budget: TokenBudget, num_classes: int, maps: MapsMode) -> tuple[TensorInfo, ...]:
    """Names, types, shapes and meanings of the graph's outputs."""
    outputs = [TensorInfo("logits", "float32", ("batch", num_classes), "class scores before softmax")]
    if maps == "compact":
        for stage, (n, k) in enumerate(zip(budget.stage_inputs, budget.keep)):
            meaning = f"GALA importance of the patches entering stage {stage}, rows sum to 1"
            outputs.append(TensorInfo(f"importance_{stage}", "float32", ("batch", n), meaning))
            meaning = f"patches kept by stage {stage}, positions on the original grid in raster order"
            outputs.append(TensorInfo(f"kept_{stage}", "int32", ("batch", k), meaning))
    return tuple(outputs)


def export_graph(model: nn.Module, budget: TokenBudget, maps: MapsMode = "none") -> onnx.ModelProto:
    """Traces a model at one token budget.

    Args:
        model: a focal GFT, quantized or not.
        budget: compiled into the graph as constants.
        maps: ``"none"`` or ``"compact"``; with none the graph holds no trace of them.

    Returns:
        opset 20; input ``image`` (batch, 3, H, W) float32; the same model and arguments give the same bytes.
    """
    config: Any = model.config
    names = [output.name for output in graph_outputs(budget, config.num_classes, maps)]
    example = torch.zeros(2, 3, config.image_size, config.image_size)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            _Graph(model, budget, maps),
            (example,),
            dynamo=True,
            opset_version=OPSET,
            input_names=["image"],
            output_names=names,
            dynamic_shapes={"image": {0: Dim("batch", min=1, max=MAX_BATCH)}},
            verbose=False,
        )
    if program is None:
        raise RuntimeError("torch.onnx.export returned nothing")
    return _canonical(rewrite(onnxslim.slim(program.model_proto)))


def _canonical(model: onnx.ModelProto) -> onnx.ModelProto:
    """Removes what depends on the machine (source paths, versions in metadata) and checks the graph."""
    model.producer_name, model.producer_version = "gft_edge", __version__
    model.doc_string = ""
    model.graph.name, model.graph.doc_string = "gft", ""
    del model.metadata_props[:]
    for element in (*model.graph.node, *model.graph.value_info, *model.graph.input, *model.graph.output):
        element.doc_string = ""
        del element.metadata_props[:]
    for initializer in model.graph.initializer:
        initializer.doc_string = ""
        del initializer.metadata_props[:]
    onnx.checker.check_model(model, full_check=True)
    return model


@torch.no_grad()
def reference_outputs(
    model: nn.Module, images: npt.NDArray[np.float32], budget: TokenBudget
) -> dict[str, npt.NDArray[Any]]:
    """What PyTorch computes: logits, importance_i and kept_i under the names and types of the graph."""
    out: GFTOutput = model(torch.from_numpy(images), budget, maps=True)
    arrays: dict[str, npt.NDArray[Any]] = {"logits": out.logits.numpy()}
    for stage, maps in enumerate(out.stages):
        arrays[f"importance_{stage}"] = maps.importance.numpy()
        arrays[f"kept_{stage}"] = maps.kept.numpy().astype(np.int32)
    return arrays


def tool_versions() -> dict[str, str]:
    """Versions of everything that shapes the graph."""
    return {
        "gft_edge": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "onnx": onnx.__version__,
        "onnxscript": onnxscript.__version__,
        "onnxslim": onnxslim.__version__,
        "numpy": np.__version__,
    }


def export_artifact(
    checkpoint: Checkpoint,
    out: Path,
    golden_images: npt.NDArray[np.float32],
    budget: TokenBudget | None = None,
    maps: MapsMode = "none",
) -> Artifact:
    """Writes an artefact folder: model.onnx, golden.npz, manifest.json.

    Args:
        checkpoint: quantized or not.
        out: new or empty folder.
        golden_images: preprocessed, (B, 3, H, W); stored with the outputs of the FP32 PyTorch model and, for a
            quantized checkpoint, the logits of the quantized one.
        budget: the configuration's own by default.
        maps: which importance outputs the graph has.

    Raises:
        ConfigError: ``out`` is not empty, or the budget does not fit the model.
        ArtifactError: the graph's outputs are not those of the manifest.
    """
    info = checkpoint.info
    budget = budget or info.model.budget
    check_budget(budget, info.model)
    if maps != "none" and info.model.is_baseline:
        raise ConfigError(
            f"export: a model of variant {info.model.variant!r} has no stages, hence no maps; leave out --maps"
        )
    quantized = info.quantization is not None
    logging.getLogger("onnxslim").setLevel(logging.ERROR)
    with new_folder(out) as folder:
        reference = without_quantizers(checkpoint.model)
        golden = {"images": golden_images, **reference_outputs(reference, golden_images, budget)}
        if quantized:
            golden["logits_quantized"] = reference_outputs(checkpoint.model, golden_images, budget)["logits"]
        graph = export_graph(checkpoint.model, budget, maps)
        (folder / MODEL).write_bytes(graph.SerializeToString(deterministic=True))
        save_npz(folder / GOLDEN, golden)
        outputs = graph_outputs(budget, info.model.num_classes, maps)
        _check_interface(graph, outputs)
        side = info.model.image_size
        manifest = DeploymentManifest(
            model=info.model,
            labels=info.labels,
            preprocess=info.preprocess,
            budget=budget,
            precision="int8" if quantized else "fp32",
            maps=maps,
            opset=OPSET,
            inputs=(TensorInfo("image", "float32", ("batch", 3, side, side), "RGB, normalised as preprocess says"),),
            outputs=outputs,
            checkpoint_sha256=checkpoint.sha256,
            quantization=info.quantization,
            tools=tool_versions(),
            files={name: FileInfo.of(folder / name) for name in (MODEL, GOLDEN)},
        )
        write_json(folder / MANIFEST, manifest.to_json())
    return load_artifact(out)


def _check_interface(graph: onnx.ModelProto, outputs: Sequence[TensorInfo]) -> None:
    """The graph's outputs are the manifest's, every shape static but the batch."""
    types = {"float32": onnx.TensorProto.FLOAT, "int32": onnx.TensorProto.INT32}
    for value, expected in zip(graph.graph.output, outputs, strict=True):
        tensor = value.type.tensor_type
        shape = tuple(d.dim_param or d.dim_value for d in tensor.shape.dim)
        if value.name != expected.name or tensor.elem_type != types[expected.dtype] or shape != expected.shape:
            raise ArtifactError(f"export: output {value.name} is {shape}, expected {expected.name} {expected.shape}")


def save_npz(path: Path, arrays: dict[str, npt.NDArray[Any]]) -> None:
    """Arrays under fixed names and times, so that the same arrays give the same bytes."""
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)  # numpy stamps every entry with 1980-01-01
