"""Defines a graph's inputs and outputs by its options: names, types, shapes. Needs no PyTorch."""

from __future__ import annotations

from gft_edge.budget import TokenBudget
from gft_edge.config.model import GFTConfig
from gft_edge.manifest import IMAGE, LOGITS, PIXELS, PROBABILITIES, InputKind, MapsMode, TensorInfo


def graph_outputs(
    budget: TokenBudget,
    config: GFTConfig,
    maps: MapsMode,
    batch: int | str = "batch",
    probabilities: bool = False,
) -> tuple[TensorInfo, ...]:
    """Returns names, types, shapes and meanings of the graph's outputs."""
    name, meaning = (
        (PROBABILITIES, "softmax of the class scores") if probabilities else (LOGITS, "class scores before softmax")
    )
    outputs = [TensorInfo(name, "float32", (batch, config.num_classes), meaning)]
    if maps == "compact":
        order = "most important first" if config.variant == "published" else "in raster order"
        for stage, (n, k) in enumerate(zip(budget.stage_inputs, budget.keep)):
            meaning = f"GALA importance of the patches entering stage {stage}, rows sum to 1"
            outputs.append(TensorInfo(f"importance_{stage}", "float32", (batch, n), meaning))
            meaning = f"patches kept by stage {stage}, positions on the original grid, {order}"
            outputs.append(TensorInfo(f"kept_{stage}", "int32", (batch, k), meaning))
    if maps == "dense":
        meaning = "GALA importance of each stage on the patch grid, zero where a patch was dropped before"
        outputs.append(TensorInfo("gala_maps", "float32", (batch, len(budget.keep), *config.grid), meaning))
    return tuple(outputs)


def graph_input(config: GFTConfig, kind: InputKind, batch: int | str) -> TensorInfo:
    """Returns name, type, shape and meaning of the graph's input."""
    side = config.image_size
    if kind == "uint8":
        return TensorInfo(IMAGE, "uint8", (batch, side, side, 3), "RGB, resized; normalised inside the graph")
    if kind == "float255":
        return TensorInfo(
            PIXELS, "float32", (batch, 3, side, side), "RGB, 0 to 255, resized; normalised inside the graph"
        )
    return TensorInfo(IMAGE, "float32", (batch, 3, side, side), "RGB, normalised as preprocess says")
