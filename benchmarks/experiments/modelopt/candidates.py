"""The same FP32 graph, quantized with the same calibration images by each tool."""

from __future__ import annotations

import importlib
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from torch import nn

from gft_edge.calibration.calibrate import BATCH, Source
from gft_edge.calibration.modelopt_recipe import quant_cfg, write_recipe
from gft_edge.calibration.options import SILENT, CalibrationOptions, Callbacks
from gft_edge.calibration.quantize import QuantizeOptions, quantize_checkpoint
from gft_edge.checkpoint import Checkpoint, load_checkpoint
from gft_edge.cli.console import say
from gft_edge.data.batches import evaluation_batches
from gft_edge.errors import MissingExtraError
from gft_edge.export.graph.autotune import Baseline, autotune_baseline, autotune_commands
from gft_edge.export.onnx.artifact import export_artifact
from gft_edge.export.onnx.options import GraphOptions
from gft_edge.manifest import MODEL, Artifact, load_artifact
from gft_edge.quant.modules import ChannelQuantizer, QuantLinear
from gft_edge.quant.policy import DEFAULT_POLICY

Images = npt.NDArray[np.float32]

FULL, OURS, BASELINE = "fp32", "ours", "ours-baseline"
CALIBRATION_IMAGES = "calibration.npy"
LINEARS = ("MatMul", "Gemm", "Conv")
MODELOPT: dict[str, dict[str, Any]] = {
    "modelopt-default": {},
    "modelopt-default-fp32": {"high_precision_dtype": "fp32"},
    "modelopt-linears": {"high_precision_dtype": "fp32", "op_types_to_quantize": LINEARS, "disable_mha_qdq": True},
    "modelopt-linears-max": {
        "high_precision_dtype": "fp32",
        "op_types_to_quantize": LINEARS,
        "disable_mha_qdq": True,
        "calibration_method": "max",
    },
}
"""Arguments of ``modelopt.onnx.quantization.quantize`` by candidate."""
ORT: dict[str, dict[str, Any]] = {
    "ort-default": {},
    "ort-linears": {
        "op_types_to_quantize": LINEARS,
        "per_channel": True,
        "extra_options": {"ActivationSymmetric": True, "MatMulConstBOnly": True},
    },
}
"""Arguments of ONNX Runtime's ``quantize_static`` by candidate; signed 8 bits and Q/DQ in all."""
TITLES = {
    FULL: "FP32",
    OURS: "this project, ranges by max",
    BASELINE: "this project's layers in the FP32 graph",
    "modelopt-default": "Model-Optimizer, defaults",
    "modelopt-default-fp32": "Model-Optimizer, defaults, FP32 rest",
    "modelopt-linears": "Model-Optimizer, products",
    "modelopt-linears-max": "Model-Optimizer, products, max",
    "ort-default": "ONNX Runtime, defaults",
    "ort-linears": "ONNX Runtime, products with weights",
    "autotuned": "Autotune's result, as given",
}


@dataclass(frozen=True)
class Prepared:
    """The two artefacts of this project and the images that every tool calibrates on.

    Args:
        checkpoint: in full precision.
        quantized: the same, quantized by this project.
        full, ours: their artefacts.
        images: preprocessed, (B, 3, H, W).
    """

    checkpoint: Checkpoint
    quantized: Checkpoint
    full: Artifact
    ours: Artifact
    images: Images

    @property
    def input(self) -> str:
        """Name of the graph's input."""
        return self.full.manifest.inputs[0].name


def prepare(path: str | Path, out: Path, images: int, callbacks: Callbacks = SILENT) -> Prepared:
    """Chooses calibration images, quantizes a checkpoint with them and exports both; what is there already is kept."""
    checkpoint = load_checkpoint(path)
    info = checkpoint.info
    options = CalibrationOptions(data=info.data, images=images)
    if not (out / "checkpoint").is_dir():
        quantize_checkpoint(checkpoint, QuantizeOptions(options), out / "checkpoint", callbacks)
    quantized = load_checkpoint(out / "checkpoint")
    golden = np.zeros((1, 3, info.model.image_size, info.model.image_size), np.float32)
    for name, model in ((FULL, checkpoint), (OURS, quantized)):
        if not (out / name).is_dir():
            say(f"modelopt: exporting {name}")
            export_artifact(model, out / name, golden, options=GraphOptions("compact"))
    _, chosen = Source.of(checkpoint).choose(replace(options, state=None), callbacks)
    pixels = np.concatenate([batch for batch, _ in evaluation_batches(chosen, info.preprocess, BATCH)])
    np.save(out / CALIBRATION_IMAGES, pixels)
    return Prepared(checkpoint, quantized, load_artifact(out / FULL), load_artifact(out / OURS), pixels)


def candidates(prepared: Prepared, out: Path, autotuned: Path | None) -> dict[str, Path]:
    """Returns every quantized graph by name; makes those that are missing."""
    found = {FULL: prepared.full.file(MODEL), OURS: prepared.ours.file(MODEL)}
    folder = out / "graphs"
    folder.mkdir(exist_ok=True)
    makers: dict[str, Callable[[Path], None]] = {BASELINE: lambda path: onnx.save(baseline(prepared).model, path)}
    # ONNX Runtime first: Model-Optimizer replaces functions of onnxruntime.quantization for the rest of the process
    makers |= {name: _by_onnxruntime(prepared, arguments) for name, arguments in ORT.items()}
    makers |= {name: _by_modelopt(prepared, arguments) for name, arguments in MODELOPT.items()}
    for name, make in makers.items():
        found[name] = folder / f"{name}.onnx"
        if not found[name].is_file():
            say(f"modelopt: making {name}")
            work = folder / f"{name}.work"
            work.mkdir(exist_ok=True)
            make(work / "made.onnx")
            (work / "made.onnx").rename(found[name])
            shutil.rmtree(work)
    if autotuned is not None:
        found["autotuned"] = autotuned
    return {name: found[name] for name in TITLES if name in found}


def require_modelopt(module: str) -> Any:
    """Imports a module of Model-Optimizer.

    Raises:
        MissingExtraError: it or a package that it needs is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(str(error.name or "nvidia-modelopt"), "quant", f"which {module} needs") from None


def _by_modelopt(prepared: Prepared, arguments: dict[str, Any]) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        tool = require_modelopt("modelopt.onnx.quantization")
        source = path.with_name("source.onnx")  # it writes files beside its input
        shutil.copyfile(prepared.full.file(MODEL), source)
        given = {key: list(value) if isinstance(value, tuple) else value for key, value in arguments.items()}
        tool.quantize(
            str(source),
            calibration_data={prepared.input: prepared.images},
            calibration_eps=["cpu"],
            output_path=str(path),
            log_level="ERROR",
            **given,
        )

    return make


def _by_onnxruntime(prepared: Prepared, arguments: dict[str, Any]) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        from onnxruntime import quantization as tool

        class Reader(tool.CalibrationDataReader):  # type: ignore[misc]
            """One image at a time, as Model-Optimizer gives them."""

            def __init__(self) -> None:
                self.left: Iterator[Images] = iter(np.split(prepared.images, len(prepared.images)))

            def get_next(self) -> dict[str, Images] | None:
                image = next(self.left, None)
                return None if image is None else {prepared.input: image}

        given = {key: list(value) if isinstance(value, tuple) else value for key, value in arguments.items()}
        tool.quantize_static(prepared.full.file(MODEL), path, Reader(), quant_format=tool.QuantFormat.QDQ, **given)

    return make


def baseline(prepared: Prepared) -> Baseline:
    """Returns the FP32 graph with this project's Q/DQ, for Autotune."""
    return autotune_baseline(*(onnx.load(artifact.file(MODEL)) for artifact in (prepared.full, prepared.ours)))


@torch.no_grad()
def recipe_agreement(prepared: Prepared, out: Path) -> dict[str, Any]:
    """Writes the policy as a recipe, quantizes the PyTorch model by it and compares layers, ranges and logits with ours."""
    mtq = require_modelopt("modelopt.torch.quantization")
    names = [n for n, m in prepared.checkpoint.model.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    write_recipe(out / "recipe.yaml", DEFAULT_POLICY, names)
    read = require_modelopt("modelopt.recipe").load_recipe(out / "recipe.yaml").quantize
    entries = [entry["quantizer_name"] for entry in quant_cfg(DEFAULT_POLICY, names)]
    assert [entry.quantizer_name for entry in read.quant_cfg] == entries
    batches = [torch.from_numpy(part) for part in np.split(prepared.images, range(BATCH, len(prepared.images), BATCH))]
    model = load_checkpoint(prepared.checkpoint.path).model  # quantized in place

    def forward(model: nn.Module) -> None:
        for batch in batches:
            model(batch)

    theirs = mtq.quantize(model, read.model_dump(), forward).eval()
    ours = prepared.quantized.model
    layers = {name for name, module in ours.named_modules() if isinstance(module, QuantLinear)}
    enabled = {name for name, m in theirs.named_modules() if name.endswith("_quantizer") and m.is_enabled}
    apart = [0.0]
    for name in sorted(layers):
        layer, other = ours.get_submodule(name), theirs.get_submodule(name)
        assert isinstance(layer, QuantLinear)
        assert isinstance(layer.weight_quantizer, ChannelQuantizer)
        assert layer.input_quantizer is not None
        largest = layer.input_quantizer.scale * 127
        apart.append(abs(float(other.input_quantizer.amax) / largest - 1))
        ranges = layer.weight_quantizer.ranges
        apart.append(float((other.weight_quantizer.amax.flatten() / ranges - 1).abs().max()))
    a, b = ours(batches[0]), theirs(batches[0])
    return {
        "entries": len(entries),
        "layers": len(layers),
        "same_layers": enabled == {f"{name}.{side}_quantizer" for name in layers for side in ("weight", "input")},
        "largest_difference_of_a_range": max(apart),
        "sqnr_db": float(10 * torch.log10((a**2).sum() / ((a - b) ** 2).sum().clamp_min(1e-30))),
        "classes_differ": int((a.argmax(1) != b.argmax(1)).sum()),
    }


def autotune_import(prepared: Prepared) -> dict[str, Any]:
    """Returns what Autotune takes over from each graph as ``--qdq_baseline``, by its own code, and the commands to run in RUN."""
    tuning = "modelopt.onnx.quantization.autotune"
    tuner, common = (require_modelopt(f"{tuning}.{module}") for module in ("autotuner", "common"))
    utils = require_modelopt("modelopt.onnx.quantization.qdq_utils")
    made = baseline(prepared)
    points = {}
    for name, graph in ((OURS, onnx.load(prepared.ours.file(MODEL))), (BASELINE, made.model)):
        tuning_run = tuner.QDQAutotuner(onnx.load(prepared.full.file(MODEL)))
        tuning_run.initialize(common.Config(default_quant_type="int8"))
        tuning_run.import_insertion_points(utils.get_quantized_tensors(graph))
        schemes = [scheme for found in tuning_run.pattern_cache.pattern_schemes for scheme in found.schemes]
        points[name] = sum(len(s.node_inputs) + len(s.child_region_inputs) + len(s.region_outputs) for s in schemes)
    graphs = Path("graphs")
    commands = autotune_commands(
        Path(FULL) / MODEL, graphs / f"{BASELINE}.onnx", Path(CALIBRATION_IMAGES), Path("autotune")
    )
    return {"points": points, "tensors": len(made.tensors), "left_out": list(made.left_out), "commands": list(commands)}
