"""Writes a checkpoint as an artefact: ONNX graphs with static token budgets, golden inputs and outputs, manifest."""

from __future__ import annotations

import logging
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxscript
import onnxslim
import torch
from torch import nn

from gft_edge import __version__
from gft_edge.budget import TokenBudget
from gft_edge.checkpoint import Checkpoint
from gft_edge.data.for_model import Note
from gft_edge.data.trained import TRAINED, write_trained
from gft_edge.errors import ArtifactError, ConfigError
from gft_edge.export.onnx.golden_images import GoldenImages, choose_golden_images
from gft_edge.export.onnx.interface import graph_input, graph_outputs
from gft_edge.export.onnx.options import DEFAULT_OPTIONS, GraphOptions, require_trt8
from gft_edge.export.onnx.reference import golden_arrays
from gft_edge.export.onnx.tracing import export_graph
from gft_edge.export.onnx.weights import share_weights
from gft_edge.files import new_folder, replacing, require_free
from gft_edge.manifest import (
    GOLDEN,
    MANIFEST,
    MODEL,
    QUANTIZED,
    WEIGHTS,
    Artifact,
    DeploymentManifest,
    FileInfo,
    Member,
    Precision,
    TensorInfo,
    load_artifact,
)
from gft_edge.model.gft import check_budget
from gft_edge.storage.seals import write_sealed


def tool_versions() -> dict[str, str]:
    """Returns the versions of all tools that affect the graph."""
    return {
        "gft_edge": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "onnx": onnx.__version__,
        "onnxscript": onnxscript.__version__,
        "onnxslim": onnxslim.__version__,
        "numpy": np.__version__,
    }


def export_with_data(
    checkpoint: Checkpoint,
    out: Path,
    data: str | None = None,
    budgets: Sequence[TokenBudget] = (),
    options: GraphOptions = DEFAULT_OPTIONS,
    note: Note | None = None,
) -> Artifact:
    """Chooses golden images and writes an artefact folder.

    Args:
        checkpoint, out, budgets, options: as for :func:`export_artifact`.
        data: where the golden images come from, see :func:`~gft_edge.export.onnx.golden_images.choose_golden_images`.
        note: receives which images are used and when tracing begins.

    Raises:
        ConfigError, DataError, ArtifactError: as these two functions; what can be checked is checked before images are read.
    """
    require_free(out)
    budgets = tuple(budgets) or (checkpoint.info.model.budget,)
    _require_exportable(checkpoint, budgets, options)
    golden = choose_golden_images(checkpoint.info, data, checkpoint.path, note)
    if note is not None:
        note(f"export: tracing at budget {', '.join(budget.id for budget in budgets)}")
    return export_artifact(checkpoint, out, golden, budgets, options)


def export_artifact(
    checkpoint: Checkpoint,
    out: Path,
    golden: GoldenImages | npt.NDArray[np.float32],
    budgets: Sequence[TokenBudget] = (),
    options: GraphOptions = DEFAULT_OPTIONS,
) -> Artifact:
    """Writes an artefact folder: model.onnx, golden.npz, manifest.json; train_images.npz if these images are known.

    Args:
        checkpoint: quantized or not.
        out: new or empty folder.
        golden: preprocessed images, (B, 3, H, W), with or without their source; stored with the outputs of the FP32 PyTorch
            model and, for a quantized checkpoint, the logits of the quantized one.
        budgets: the configuration's own by default; several make a family, whose graphs share one file of weights.
        options: inputs, outputs and precision of the graphs.

    Raises:
        ConfigError: ``out`` is not empty, or a budget or an option does not fit the model.
        ArtifactError: the graph's outputs are not those of the manifest.
    """
    info = checkpoint.info
    if not isinstance(golden, GoldenImages):
        golden = GoldenImages(golden)
    budgets = list(dict.fromkeys(budgets or (info.model.budget,)))
    precision = _require_exportable(checkpoint, budgets, options)
    logging.getLogger("onnxslim").setLevel(logging.ERROR)
    batch = options.static_batch or "batch"
    inputs = (graph_input(info.model, options.input, batch),)
    members = [
        Member(
            budget,
            graph_outputs(budget, info.model, options.maps, batch, options.probabilities),
            *_file_names(budget, first=number == 0),
        )
        for number, budget in enumerate(budgets)
    ]
    with new_folder(out) as folder:
        graphs = {}
        for member in members:
            graphs[member.model] = export_graph(checkpoint.model, info.preprocess, member.budget, options)
            _check_interface(graphs[member.model], inputs, member.outputs)
            save_npz(folder / member.golden, golden_arrays(checkpoint, golden.images, member.budget))
        names = [name for member in members for name in (member.model, member.golden)]
        if len(graphs) > 1:
            share_weights(graphs, folder / WEIGHTS)
            names.append(WEIGHTS)
        for name, graph in graphs.items():
            (folder / name).write_bytes(graph.SerializeToString(deterministic=True))
        write_trained(folder, None, checkpoint.path)
        if (folder / TRAINED).is_file():
            names.append(TRAINED)
        manifest = DeploymentManifest(
            model=info.model,
            labels=info.labels,
            preprocess=info.preprocess,
            budget=members[0].budget,
            precision=precision,
            rest=options.rest,
            maps=options.maps,
            batch=options.batch,
            opset=options.opset,
            dialect=options.dialect,
            inputs=inputs,
            outputs=members[0].outputs,
            checkpoint_sha256=checkpoint.sha256,
            quantization=info.quantization,
            tools=tool_versions(),
            data=info.data,
            golden_images=golden.source,
            files={name: FileInfo.of(folder / name) for name in names},
            family={member.budget.id: member for member in members[1:]},
        )
        write_sealed(folder / MANIFEST, manifest.to_json())
    return load_artifact(out)


def _require_exportable(checkpoint: Checkpoint, budgets: Sequence[TokenBudget], options: GraphOptions) -> Precision:
    """Returns the precision of the linear layers after checking that budgets and options fit the checkpoint.

    Raises:
        ConfigError: they do not.
    """
    config, quantization = checkpoint.info.model, checkpoint.info.quantization
    precision: Precision = options.rest if quantization is None else quantization["precision"]
    if options.dialect == "trt8":
        require_trt8(options.rest, precision)
    for budget in budgets:
        check_budget(budget, config)
    if options.maps != "none" and config.is_baseline:
        raise ConfigError(f"a model of variant {config.variant!r} has no stages, hence no maps; leave out --maps")
    has_norms = config.is_baseline and any(isinstance(m, nn.BatchNorm2d) for m in checkpoint.model.modules())
    if options.rest == "bf16" and has_norms:
        raise ConfigError(f"{config.backbone} has batch norms, which cannot be folded in bf16; take fp16")
    if quantization is not None and precision not in QUANTIZED:
        raise ConfigError(
            f"checkpoint {checkpoint.path} has layers of several 8-bit precisions ({precision}); quantize to one"
        )
    return precision


def _file_names(budget: TokenBudget, first: bool) -> tuple[str, str]:
    """Returns the names of graph and golden outputs; those of further budgets carry the budget."""
    if first:
        return MODEL, GOLDEN
    model, golden = (f"{Path(name).stem}-{budget.id}{Path(name).suffix}" for name in (MODEL, GOLDEN))
    return model, golden


def _check_interface(graph: onnx.ModelProto, inputs: Sequence[TensorInfo], outputs: Sequence[TensorInfo]) -> None:
    """Raises ArtifactError unless the graph's inputs and outputs are the manifest's; every shape is static but the batch."""
    kind = onnx.TensorProto
    types = {"float32": kind.FLOAT, "int32": kind.INT32, "uint8": kind.UINT8}
    for value, expected in zip((*graph.graph.input, *graph.graph.output), (*inputs, *outputs), strict=True):
        tensor = value.type.tensor_type
        shape = tuple(d.dim_param or d.dim_value for d in tensor.shape.dim)
        if value.name != expected.name or tensor.elem_type != types[expected.dtype] or shape != expected.shape:
            raise ArtifactError(f"{value.name} is {shape}, expected {expected.name} {expected.shape}")


def save_npz(path: Path, arrays: dict[str, Any]) -> None:
    """Writes arrays under fixed names and times, so that the same arrays give the same bytes."""
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)  # numpy stamps every entry with 1980-01-01
