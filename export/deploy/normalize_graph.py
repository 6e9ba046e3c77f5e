"""An ONNX graph that normalises pixels as :class:`gft_edge.preprocess.PreprocessSpec` does."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from gft_edge.constants import GRAPH_IR_VERSION, OPSET
from gft_edge.preprocess import PreprocessSpec

PIXELS, IMAGE = "pixels", "image"
"""Names of its input and output."""


def normalize_graph(spec: PreprocessSpec, batch: int | str = "batch") -> onnx.ModelProto:
    """Returns a graph from pixels (B, H, W, 3) uint8 RGB to normalised images (B, 3, H, W) float32.

    Every operation is the one that :meth:`PreprocessSpec.normalize` makes in NumPy, in its order: product, then sum, both rounded
    to float32. A runtime that does not fuse the two gives the same bits; one that fuses them (FMA) differs by half a unit in
    the last place of the product.

    Args:
        spec: its mean, std and order of colours.
        batch: size or name of the batch axis.
    """
    scale, shift = (values.reshape(1, 3, 1, 1) for values in spec.scale_and_shift())
    constants = {"scale": scale, "shift": shift}
    nodes = [
        helper.make_node("Transpose", [PIXELS], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Cast", ["planes"], ["levels"], to=TensorProto.FLOAT),
    ]
    levels = "levels"
    if spec.color_order == "bgr":
        constants["reversed"] = np.array([2, 1, 0], np.int64)
        nodes.append(helper.make_node("Gather", ["levels", "reversed"], ["ordered"], axis=1))
        levels = "ordered"
    nodes += [
        helper.make_node("Mul", [levels, "scale"], ["scaled"]),
        helper.make_node("Add", ["scaled", "shift"], [IMAGE]),
    ]
    graph = helper.make_graph(
        nodes,
        "normalize",
        [helper.make_tensor_value_info(PIXELS, TensorProto.UINT8, [batch, spec.height, spec.width, 3])],
        [helper.make_tensor_value_info(IMAGE, TensorProto.FLOAT, [batch, 3, spec.height, spec.width])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(
        graph, producer_name="gft-edge", ir_version=GRAPH_IR_VERSION, opset_imports=[helper.make_opsetid("", OPSET)]
    )
