"""From a checkpoint to an ONNX artefact: one graph, static token budget, only the batch dynamic."""

from __future__ import annotations

import contextlib
import gc
import logging
import platform
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
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
from gft_edge.checkpoint import Checkpoint
from gft_edge.constants import OPSET
from gft_edge.data.trained import TRAINED, write_trained
from gft_edge.errors import ArtifactError, ConfigError
from gft_edge.export.graph.dtypes import torch_dtype
from gft_edge.export.onnx.dialects import TRACED_OPSET, TRT8_OPSET, require_trt8, to_trt8
from gft_edge.export.onnx.interface import graph_input, graph_outputs
from gft_edge.export.onnx.plain_modules import exportable
from gft_edge.export.onnx.rewrite import rewrite
from gft_edge.export.onnx.weights import lift_weights, put_back, share_weights
from gft_edge.files import new_folder, replacing
from gft_edge.manifest import (
    GOLDEN,
    MANIFEST,
    MODEL,
    QUANTIZED,
    WEIGHTS,
    Artifact,
    Batch,
    DeploymentManifest,
    Dialect,
    FileInfo,
    HighPrecision,
    InputKind,
    MapsMode,
    Member,
    Precision,
    TensorInfo,
    batch_problems,
    load_artifact,
)
from gft_edge.model.gft import GFTOutput, StageMaps, check_budget
from gft_edge.preprocess import PreprocessSpec
from gft_edge.quant.modules import without_quantizers
from gft_edge.runtime.finite import require_finite
from gft_edge.seals import write_sealed

BF16_OPSET = 22
"""The first whose convolutions take bfloat16."""
MAX_BATCH = 1024
"""Upper end of the batch axis that the exported graph is checked for; engines set their own."""


@dataclass(frozen=True)
class GraphOptions:
    """What a graph looks like.

    Args:
        maps: ``"none"``; ``"compact"``: importance and positions of the kept patches per stage; ``"dense"``: importance of
            all stages on the patch grid. With none the graph holds no trace of them.
        rest: precision of everything that is not quantized, but for the importance path.
        input: ``"float"``: normalised (batch, 3, H, W) float32; ``"uint8"``: RGB pixels (batch, H, W, 3), normalised inside.
        batch: smallest, usual, largest; the batch axis is static where all are the same.
        dialect: ``"trt8"``: the form that TensorRT 8.6 reads.

    Raises:
        ConfigError: sizes that do not rise, a rest that the dialect does not have.
    """

    maps: MapsMode = "none"
    rest: HighPrecision = "fp32"
    input: InputKind = "float"
    batch: Batch = (1, 1, 8)
    dialect: Dialect = "trt10"

    def __post_init__(self) -> None:
        if problems := batch_problems(self.batch):
            raise ConfigError(f"{problems[0]}")
        if self.dialect == "trt8":
            require_trt8(self.rest)

    @classmethod
    def of(cls, manifest: DeploymentManifest) -> GraphOptions:
        """Those an artefact was exported with."""
        kind: InputKind = "uint8" if manifest.inputs[0].dtype == "uint8" else "float"
        return cls(manifest.maps, manifest.rest, kind, manifest.batch, manifest.dialect)

    @property
    def opset(self) -> int:
        """ONNX operator set of the graph."""
        if self.dialect == "trt8":
            return TRT8_OPSET
        return BF16_OPSET if self.rest == "bf16" else OPSET


class _Graph(nn.Module):
    """The function that is traced: image to logits and, with maps, importance and kept positions of each stage."""

    scale: Tensor
    shift: Tensor

    def __init__(self, model: nn.Module, budget: TokenBudget, options: GraphOptions, spec: PreprocessSpec) -> None:
        super().__init__()
        self.dtype = torch_dtype(options.rest)
        self.model, self.budget, self.options = exportable(model, self.dtype), budget, options
        self.channels = [2, 1, 0] if spec.color_order == "bgr" else [0, 1, 2]
        scale, shift = spec.scale_and_shift()
        self.register_buffer("scale", torch.from_numpy(scale))
        self.register_buffer("shift", torch.from_numpy(shift))

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """The graph's input to its outputs."""
        if self.options.input == "uint8":
            # Cast first: TensorRT knows 8-bit pixels at the graph's input alone.
            image = (image.float()[..., self.channels] * self.scale + self.shift).permute(0, 3, 1, 2)
        image = image.to(self.dtype)
        maps = self.options.maps
        if maps == "none":
            return (self.model(image, self.budget).float(),)
        out = self.model(image, self.budget, maps=True)
        if maps == "dense":
            return out.logits.float(), self._dense(out.stages)
        stages = [t for stage in out.stages for t in (stage.importance, stage.kept.to(torch.int32))]
        return (out.logits.float(), *stages)

    def _dense(self, stages: list[StageMaps]) -> Tensor:
        """Importance on the grid, zero where dropped before, (B, stages, rows, cols).

        Every patch of the grid sums the importances of the tokens that stand for it: one product with a mask, where a scatter
        would be slow or unsupported in TensorRT.
        """
        config: Any = self.model.config
        grid = [stages[0].importance]
        everything = torch.arange(config.num_patches)
        for stage, before in zip(stages[1:], stages):
            stands_for = (before.kept.unsqueeze(2) == everything).to(stage.importance.dtype)
            grid.append((stage.importance.unsqueeze(1) @ stands_for).squeeze(1))
        return torch.stack(grid, dim=1).unflatten(2, config.grid)


def export_graph(
    model: nn.Module, spec: PreprocessSpec, budget: TokenBudget, options: GraphOptions = GraphOptions()
) -> onnx.ModelProto:
    """Traces a model at one token budget.

    Args:
        model: of any variant, quantized or not.
        spec: its preprocessing, for graphs that take pixels.
        budget: compiled into the graph as constants.
        options: inputs, outputs, precision.

    Returns:
        the graph; the same model and arguments give the same bytes.
    """
    config: Any = model.config
    static = options.batch[0] if options.batch[0] == options.batch[2] else None
    names = [output.name for output in graph_outputs(budget, config, options.maps)]
    side = config.image_size
    # A dynamic axis is traced with two images: one would be taken for a constant.
    shape = (static or 2, side, side, 3) if options.input == "uint8" else (static or 2, 3, side, side)
    example = torch.zeros(shape, dtype=torch.uint8 if options.input == "uint8" else torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            _Graph(model, budget, options, spec),
            (example,),
            dynamo=True,
            opset_version=TRACED_OPSET if options.dialect == "trt8" else options.opset,
            input_names=["image"],
            output_names=names,
            dynamic_shapes=None if static else {"image": {0: Dim("batch", min=1, max=MAX_BATCH)}},
            verbose=False,
        )
    if program is None:
        raise RuntimeError("torch.onnx.export returned nothing")
    weights = lift_weights(program.model)
    graph = program.model_proto
    del program
    gc.collect()  # exporter and onnxslim leave cycles of whole models
    graph = rewrite(onnxslim.slim(graph))
    gc.collect()
    put_back(graph.graph, weights)
    return _canonical(to_trt8(graph) if options.dialect == "trt8" else graph)


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
    further: Sequence[TokenBudget] = (),
    golden_source: str = "",
    **options: Any,
) -> Artifact:
    """Writes an artefact folder: model.onnx, golden.npz, manifest.json; train_images.npz where these are known.

    Args:
        checkpoint: quantized or not.
        out: new or empty folder.
        golden_images: preprocessed, (B, 3, H, W); stored with the outputs of the FP32 PyTorch model and, for a
            quantized checkpoint, the logits of the quantized one.
        budget: the configuration's own by default.
        maps: which importance outputs the graph has.
        further: more budgets: a family, whose graphs share one file of weights.
        golden_source: what the golden images are, for the manifest.
        options: the other fields of :class:`GraphOptions`.

    Raises:
        ConfigError: ``out`` is not empty, or budget or options do not fit the model.
        ArtifactError: the graph's outputs are not those of the manifest.
    """
    info = checkpoint.info
    config = info.model
    budget = budget or config.budget
    check_budget(budget, config)
    form = GraphOptions(maps, **options)
    if maps != "none" and config.is_baseline:
        raise ConfigError(f"a model of variant {config.variant!r} has no stages, hence no maps; leave out --maps")
    if (
        form.rest == "bf16"
        and config.is_baseline
        and any(isinstance(m, nn.BatchNorm2d) for m in checkpoint.model.modules())
    ):
        raise ConfigError(f"{config.backbone} has batch norms, which cannot be folded in bf16; take fp16")
    logging.getLogger("onnxslim").setLevel(logging.ERROR)
    precision: Precision = form.rest
    if info.quantization is not None:
        precision = info.quantization["precision"]
        if precision not in QUANTIZED:
            raise ConfigError(
                f"checkpoint {checkpoint.path} has layers of several 8-bit precisions ({precision}); quantize to one"
            )
    if form.dialect == "trt8":
        require_trt8(form.rest, precision)
    batch = form.batch[0] if form.batch[0] == form.batch[2] else "batch"
    inputs = (graph_input(config, form.input, batch),)
    budgets = list(dict.fromkeys((budget, *further)))
    members = {}
    with new_folder(out) as folder:
        graphs = {}
        for number, each in enumerate(budgets):
            model, golden = (name if number == 0 else _member_name(name, each) for name in (MODEL, GOLDEN))
            outputs = graph_outputs(each, config, maps, batch)
            members[each.id] = Member(each, outputs, model, golden)
            graphs[model] = export_graph(checkpoint.model, info.preprocess, each, form)
            _check_interface(graphs[model], inputs, outputs)
            save_npz(folder / golden, golden_arrays(checkpoint, golden_images, each))
        names = [name for member in members.values() for name in (member.model, member.golden)]
        if len(graphs) > 1:
            share_weights(graphs, folder / WEIGHTS)
            names.append(WEIGHTS)
        for name, graph in graphs.items():
            (folder / name).write_bytes(graph.SerializeToString(deterministic=True))
        write_trained(folder, None, checkpoint.path)
        if (folder / TRAINED).is_file():
            names.append(TRAINED)
        first = members.pop(budget.id)
        manifest = DeploymentManifest(
            model=config,
            labels=info.labels,
            preprocess=info.preprocess,
            budget=budget,
            precision=precision,
            rest=form.rest,
            maps=maps,
            batch=form.batch,
            opset=form.opset,
            dialect=form.dialect,
            inputs=inputs,
            outputs=first.outputs,
            checkpoint_sha256=checkpoint.sha256,
            quantization=info.quantization,
            tools=tool_versions(),
            data=info.data,
            golden_images=golden_source,
            files={name: FileInfo.of(folder / name) for name in names},
            family=members,
        )
        write_sealed(folder / MANIFEST, manifest.to_json())
    return load_artifact(out)


def golden_arrays(
    checkpoint: Checkpoint, images: npt.NDArray[np.float32], budget: TokenBudget
) -> dict[str, npt.NDArray[Any]]:
    """Images with the outputs of the FP32 model and, for a quantized checkpoint, the logits of the quantized one.

    The same bytes on every number of threads.

    Raises:
        CheckFailed: logits that are NaN or infinite, which no artefact can be held against.
    """
    with _one_thread():
        arrays = {"images": images, **reference_outputs(without_quantizers(checkpoint.model), images, budget)}
        require_finite(arrays["logits"], f"golden images at {budget.id}")
        if checkpoint.info.quantization is not None:
            arrays["logits_quantized"] = reference_outputs(checkpoint.model, images, budget)["logits"]
            require_finite(arrays["logits_quantized"], f"golden images at {budget.id}, quantized")
    return arrays


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Threads split sums into other parts, which rounds the last bits differently."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _member_name(name: str, budget: TokenBudget) -> str:
    path = Path(name)
    return f"{path.stem}-{budget.id}{path.suffix}"


def _check_interface(graph: onnx.ModelProto, inputs: Sequence[TensorInfo], outputs: Sequence[TensorInfo]) -> None:
    """The graph's inputs and outputs are the manifest's, every shape static but the batch."""
    kind = onnx.TensorProto
    types = {"float32": kind.FLOAT, "int32": kind.INT32, "uint8": kind.UINT8}
    for value, expected in zip((*graph.graph.input, *graph.graph.output), (*inputs, *outputs), strict=True):
        tensor = value.type.tensor_type
        shape = tuple(d.dim_param or d.dim_value for d in tensor.shape.dim)
        if value.name != expected.name or tensor.elem_type != types[expected.dtype] or shape != expected.shape:
            raise ArtifactError(f"{value.name} is {shape}, expected {expected.name} {expected.shape}")


def save_npz(path: Path, arrays: dict[str, npt.NDArray[Any]]) -> None:
    """Arrays under fixed names and times, so that the same arrays give the same bytes."""
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)  # numpy stamps every entry with 1980-01-01
