"""Small graphs of classifiers, artefacts around them, and the files of their servers."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from gft_edge.bundle import write_record
from gft_edge.manifest import MODEL, FileInfo, TensorInfo, load_artifact
from gft_edge.preprocess import PreprocessSpec
from gft_edge.storage.seals import write_sealed

LABELS = ("ant", "bee", "cat", "dog")
SPEC = PreprocessSpec(32, 32)
BATCH = (1, 1, 8)


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


def write_artifact(folder: Path, tiny: Path, model: onnx.ModelProto, **changes) -> Path:
    """Copies the tiny artefact's manifest to a folder with another graph; keyword arguments change the manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    manifest = load_artifact(tiny).manifest
    onnx.save(model, folder / MODEL)
    shutil.copy(tiny / "golden.npz", folder / "golden.npz")
    tensors = [[_tensor(value) for value in values] for values in (model.graph.input, model.graph.output)]
    manifest = dataclasses.replace(
        manifest,
        inputs=tuple(tensors[0]),
        outputs=tuple(tensors[1]),
        maps="compact" if len(tensors[1]) > 1 else "none",
        files={name: FileInfo.of(folder / name) for name in (MODEL, "golden.npz")},
        **{"batch": BATCH, "preprocess": SPEC, "labels": LABELS, **changes},
    )
    write_sealed(folder / "manifest.json", manifest.to_json())
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
