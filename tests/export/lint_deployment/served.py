"""Small graphs of classifiers, artefacts around them, and the files of their servers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from gft_edge.budget import TokenBudget
from gft_edge.bundle import write_record
from gft_edge.config.model import preset
from gft_edge.manifest import GOLDEN, MANIFEST, MODEL, DeploymentManifest, FileInfo, TensorInfo
from gft_edge.preprocess import PreprocessSpec
from gft_edge.storage.seals import write_sealed

LABELS = ("ant", "bee", "cat", "dog")
SPEC = PreprocessSpec(32, 32)
BUDGET = TokenBudget((12, 6), 16)
CONFIG = preset(
    "gft_typeface", image_size=32, num_classes=4, embed_dim=32, depth=3, num_heads=2, stages=(1, 2), budget=BUDGET
)
DEFAULTS = {
    "labels": LABELS,
    "preprocess": SPEC,
    "budget": BUDGET,
    "precision": "fp32",
    "batch": (1, 8, 8),
    "opset": 20,
}


def classifier(
    pixels: bool = True,
    probabilities: bool = True,
    batch: int | str = "batch",
    dtype: int = TensorProto.FLOAT,
    layout: str = "NCHW",
    maps: bool = False,
    quantized: bool = False,
    half: bool = False,
    spec: PreprocessSpec = SPEC,
    size: tuple[int | str, int | str] = (32, 32),
    shape: tuple[int, ...] = (4,),
    inputs: int = 1,
    seed: int = 0,
) -> onnx.ModelProto:
    """Mean over the image, product with a matrix; the interface is that of an export with these options."""
    name = "pixels" if pixels and dtype == TensorProto.FLOAT else "image"
    axes = [batch, 3, *size] if layout == "NCHW" else [batch, *size, 3]
    scale, shift = spec.scale_and_shift()
    form = (1, 3, 1, 1) if layout == "NCHW" else (1, 1, 1, 3)
    weights = np.random.default_rng(seed).standard_normal((3, int(np.prod(shape)))).astype(np.float32)
    constants = {"scale": scale.reshape(form), "shift": shift.reshape(form), "w": weights, "s": np.float32(0.1)}
    constants |= {"z": np.int8(0), "to": np.array([-1, *shape], np.int64), "reversed": np.array([2, 1, 0])}
    here, nodes = name, []

    def add(op, *others, **attributes):
        nonlocal here
        nodes.append(helper.make_node(op, [here, *others], [f"t{len(nodes)}"], **attributes))
        here = nodes[-1].output[0]

    nodes.append(
        helper.make_node("Shape", [name], ["size"])
    )  # real exports read the size of the batch beside the image
    if dtype != TensorProto.FLOAT:
        add("Cast", to=TensorProto.FLOAT)
    if layout == "NHWC":
        add("Transpose", perm=[0, 3, 1, 2])
        constants |= {"scale": scale.reshape(1, 3, 1, 1), "shift": shift.reshape(1, 3, 1, 1)}
    if pixels:
        if spec.color_order == "bgr":
            add("Gather", "reversed", axis=1)
        add("Mul", "scale")
        add("Add", "shift")
    if quantized:
        add("QuantizeLinear", "s", "z")
        add("DequantizeLinear", "s", "z")
    add("GlobalAveragePool")
    add("Flatten")
    add("MatMul", "w")
    if probabilities:
        add("Softmax", axis=1)
    if shape != (4,):
        add("Reshape", "to")
    answer = "probabilities" if probabilities else "logits"
    nodes[-1].output[0] = answer
    outputs = [helper.make_tensor_value_info(answer, TensorProto.FLOAT, [batch, *shape])]
    if maps:
        nodes.append(helper.make_node("Cast", [answer], ["kept_0"], to=TensorProto.INT32))
        outputs.append(helper.make_tensor_value_info("kept_0", TensorProto.INT32, [batch, *shape]))
    if half:
        constants["w16"] = np.ones(1, np.float16)
    values = [helper.make_tensor_value_info(name, dtype, axes)]
    values += [helper.make_tensor_value_info(f"more{n}", dtype, axes) for n in range(1, inputs)]
    tensors = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "g", values, outputs, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def write_artifact(folder: Path, model: onnx.ModelProto, **changes) -> Path:
    """Writes an artefact around a graph; keyword arguments change the manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(model, folder / MODEL)
    images = np.random.default_rng(0).standard_normal((2, 3, 32, 32), dtype=np.float32)
    np.savez(folder / GOLDEN, images=images)
    inputs, outputs = (tuple(_tensor(v) for v in values) for values in (model.graph.input, model.graph.output))
    manifest = DeploymentManifest(
        model=CONFIG,
        inputs=inputs,
        outputs=outputs,
        checkpoint_sha256="0" * 64,
        files={name: FileInfo.of(folder / name) for name in (MODEL, GOLDEN)},
        **{**DEFAULTS, "maps": "compact" if len(outputs) > 1 else "none", **changes},
    )
    write_sealed(folder / MANIFEST, manifest.to_json())
    return folder


def _tensor(value: onnx.ValueInfoProto) -> TensorInfo:
    kind = value.type.tensor_type
    names = {TensorProto.FLOAT: "float32", TensorProto.UINT8: "uint8", TensorProto.INT32: "int32"}
    shape = tuple(axis.dim_param or axis.dim_value for axis in kind.shape.dim)
    return TensorInfo(value.name, names[kind.elem_type], shape, "")


def rerecord(bundle: Path) -> None:
    """Writes the record of a bundle again, as one who makes a wrong bundle does."""
    old = json.loads((bundle / "bundle.json").read_text())
    write_record(bundle, old["target"], old["device"], old["facts"])
