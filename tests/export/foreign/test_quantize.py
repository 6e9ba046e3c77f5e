"""ViTs of other programs: exported here in several styles, quantized, run, and compared; and every message."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import warnings
from collections import Counter
from contextlib import redirect_stdout

import numpy as np
import onnx
import onnxruntime
import onnxslim
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from timm.models.vision_transformer import VisionTransformer as TimmViT
from torch import nn
from torchvision.models import VisionTransformer as TorchvisionViT

from gft_edge.calibration.options import CalibrationOptions
from gft_edge.cli.main import main
from gft_edge.errors import ArtifactError, ConfigError
from gft_edge.export.foreign import loading, qdq
from gft_edge.export.foreign.model import RECORD, is_foreign, load_foreign
from gft_edge.export.foreign.preprocessing import Pixels, class_names
from gft_edge.export.foreign.quantize import ForeignOptions, quantize_foreign
from gft_edge.export.graph.native import NativeError
from gft_edge.export.graph.view import view
from gft_edge.preprocess import IMAGENET_MEAN
from gft_edge.quant.policy import QuantPolicy, QuantRule, uniform_policy
from gft_edge.runtime.backends.sessions import onnxruntime_session

CLASSES = 5
STYLES = ("timm-dynamo18", "timm-script11", "timm-script17-slim", "torchvision-script17", "huggingface-script14")
SEPARATE = "huggingface-script14"


class _Attention(nn.Module):
    """Self-attention in the structure of Hugging Face: three products, ``output.dense``."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.dense = nn.Linear(width, width)

    def forward(self, x):
        def split(y):
            return y.view(y.shape[0], -1, self.heads, y.shape[-1] // self.heads).transpose(1, 2)

        q, k, v = split(self.query(x)), split(self.key(x)), split(self.value(x))
        scores = torch.matmul(q, k.transpose(-1, -2)) / (q.shape[-1] ** 0.5)
        return self.dense(torch.matmul(scores.softmax(-1), v).permute(0, 2, 1, 3).flatten(2))


class _Layer(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.before, self.after = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = _Attention(width, heads)
        self.intermediate, self.output = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x):
        x = self.attention(self.before(x)) + x
        return self.output(nn.functional.gelu(self.intermediate(self.after(x)))) + x


class _HuggingFaceViT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.projection = nn.Conv2d(3, 32, 8, 8)
        self.token, self.position = nn.Parameter(torch.zeros(1, 1, 32)), nn.Parameter(torch.zeros(1, 17, 32))
        self.layers = nn.Sequential(_Layer(32, 2), _Layer(32, 2))
        self.norm, self.classifier = nn.LayerNorm(32), nn.Linear(32, CLASSES)

    def forward(self, x):
        x = self.projection(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.position
        return self.classifier(self.norm(self.layers(x))[:, 0])


def _timm() -> nn.Module:
    return TimmViT(img_size=32, patch_size=8, num_classes=CLASSES, embed_dim=32, depth=2, num_heads=2)


def _random(model: nn.Module) -> nn.Module:
    drawn = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        spread = 1.2 / parameter[0].numel() ** 0.5 if parameter.ndim > 1 else 0.2
        parameter.data.copy_(
            spread * torch.randn(parameter.shape, generator=drawn) + (0 if parameter.ndim > 1 else 0.5)
        )
    return model.eval()


def _export(model: nn.Module, path, opset: int, dynamo: bool = False, static: bool = False) -> None:
    names = {"input_names": ["pixel_values"], "output_names": ["logits"], "opset_version": opset, "dynamo": dynamo}
    images = torch.zeros(2, 3, 32, 32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if dynamo:
            shapes = ({0: torch.export.Dim("batch", min=1, max=64)},)
            torch.onnx.export(
                model, (images,), str(path), dynamic_shapes=shapes, external_data=True, verbose=False, **names
            )
        else:
            axes = None if static else {"pixel_values": {0: "batch"}, "logits": {0: "batch"}}
            torch.onnx.export(model, (images,), str(path), dynamic_axes=axes, **names)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """One ViT of each style: exporters, opsets, fused and decomposed norms, MatMul and Gemm, qkv in one product or three."""
    folder = tmp_path_factory.mktemp("foreign")
    paths = {name: folder / f"{name}.onnx" for name in STYLES}
    timm = _random(_timm())
    _export(timm, paths["timm-dynamo18"], 18, dynamo=True)
    _export(timm, paths["timm-script17-slim"], 17, static=True)
    onnx.save(onnxslim.slim(onnx.load(paths["timm-script17-slim"])), paths["timm-script17-slim"])
    for block in timm.blocks:
        block.attn.fused_attn = False
    _export(timm, paths["timm-script11"], 11)
    _export(_random(TorchvisionViT(32, 8, 2, 2, 32, 64, num_classes=CLASSES)), paths["torchvision-script17"], 17)
    _export(_random(_HuggingFaceViT()), paths[SEPARATE], 14)
    return paths


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """An image folder with train and test images of five classes."""
    root, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for split, count in (("train", 4), ("test", 3)):
        for name in range(CLASSES):
            folder = root / split / f"c{name}"
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
                Image.fromarray(pixels).resize((40, 40)).save(folder / f"{number}.png")
    return root


def options(data, **changes) -> ForeignOptions:
    calibration = CalibrationOptions(data=str(data), images=12, **changes.pop("calibration", {}))
    return ForeignOptions(calibration, **changes)


@pytest.fixture(scope="module")
def quantized(files, data, tmp_path_factory):
    """Each style in INT8, by its name."""
    out = tmp_path_factory.mktemp("quantized")
    return {name: quantize_foreign(path, options(data), out / name) for name, path in files.items()}


@pytest.mark.parametrize("name", STYLES)
def test_every_style_gives_the_same_layers_and_keeps_the_logits(quantized, name):
    done = quantized[name]
    parts = ["attn.q", "attn.k", "attn.v"] if name == SEPARATE else ["attn.qkv"]
    wanted = {f"blocks.{b}.{part}" for b in (0, 1) for part in (*parts, "attn.proj", "mlp.fc1", "mlp.fc2")}
    layers = done.model.quantization.layers
    assert {layer.name for layer in layers if layer.precision == "int8"} == wanted
    assert Counter(layer.kind for layer in layers if layer.precision == "high") == {
        "patch embedding": 1,
        "classifier": 1,
        "attend": 2,
    }
    assert all(layer.reason for layer in layers)
    assert done.agreement.comparison.logit_sqnr_db > 25
    assert done.agreement.held_out


def test_exporters_and_opsets_do_not_change_the_result(quantized):
    found = {round(quantized[name].agreement.comparison.logit_sqnr_db, 1) for name in STYLES if name.startswith("timm")}
    assert len(found) == 1


def _nodes(model: onnx.ModelProto) -> Counter:
    """The computation, without names of tensors: operators and attributes."""
    return Counter(
        (node.op_type, tuple(sorted(attribute.SerializeToString() for attribute in node.attribute)))
        for node in model.graph.node
        if node.op_type not in ("Constant", "Identity")
    )


@pytest.mark.parametrize("name", STYLES)
def test_form_of_the_graph(quantized, files, name):
    """Symmetric, per channel weights, one input scale per tensor, float bias, and nothing else changed."""
    before = loading.load_whole(load_foreign(files[name]))
    after = onnx.load(quantized[name].model.file)
    onnx.checker.check_model(after, full_check=True)
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in after.graph.initializer}
    makers = {output: node for node in after.graph.node for output in node.output}
    count = 12 if name == SEPARATE else 8
    for node in after.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            assert values[node.input[2]].dtype == np.int8
            assert not values[node.input[2]].any()
        if node.op_type == "DequantizeLinear" and node.input[0] in values:
            assert values[node.input[0]].dtype == np.int8
            assert values[node.input[1]].shape == values[node.input[0]].shape[1:]
            assert helper.get_node_attr_value(node, "axis") == 1
    linears = [
        n for n in after.graph.node if n.op_type == "MatMul" and makers[n.input[1]].op_type == "DequantizeLinear"
    ]
    assert len(linears) == count
    assert all(makers[node.input[0]].op_type == "DequantizeLinear" for node in linears)
    added, gone = _nodes(after) - _nodes(before), _nodes(before) - _nodes(after)
    assert {operator for operator, _ in added} <= {"QuantizeLinear", "DequantizeLinear", "MatMul", "Add"}
    assert {operator for operator, _ in gone} <= {"Gemm", "Transpose"}
    assert not any("MatMul" in node.input[1] for node in linears)
    assert after.ByteSize() < before.ByteSize()


def _plain(model: onnx.ModelProto, images: np.ndarray) -> np.ndarray:
    settings = onnxruntime.SessionOptions()
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), settings, ["CPUExecutionProvider"])
    return session.run(["logits"], {"pixel_values": images})[0]


@pytest.mark.parametrize("name", ["timm-script17-slim", SEPARATE])
def test_int8_weights_equal_the_float_graph_with_rounded_weights(files, data, tmp_path, name):
    """An independent way to the same logits: the source with each weight rounded in place.

    Without optimisation: ONNX Runtime's makes MatMulNBits of INT8 weights, which rounds the activations too.
    """
    done = quantize_foreign(files[name], options(data, policy=uniform_policy("int8-weights")), tmp_path / "out")
    assert (done.ranges, done.model.quantization.method, done.model.quantization.precision) == (
        None,
        "none",
        "int8-weights",
    )
    model = onnx.load(files[name])
    wanted = {layer.node for layer in done.model.quantization.layers if layer.precision != "high"}
    for node in model.graph.node:
        if (node.name or node.output[0]) in wanted:
            tensor = next(t for t in model.graph.initializer if t.name == node.input[1])
            weight = numpy_helper.to_array(tensor)
            axis = 1 if node.op_type == "Gemm" and helper.get_node_attr_value(node, "transB") else 0
            scale = np.abs(weight).max(axis=axis, keepdims=True) / 127
            tensor.CopyFrom(numpy_helper.from_array((np.rint(weight / scale) * scale).astype(np.float32), tensor.name))
    images = np.random.default_rng(1).standard_normal((2, 3, 32, 32), dtype=np.float32)
    expected, found = (_plain(graph, images) for graph in (model, onnx.load(done.model.file)))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_ranges_are_the_largest_magnitudes(quantized, files, data):
    done = quantized[SEPARATE]
    layer = next(layer for layer in done.model.quantization.layers if layer.name == "blocks.1.mlp.fc2")
    model = onnx.load(files[SEPARATE])
    node = next(node for node in model.graph.node if node.name == layer.node)
    model.graph.output.append(helper.make_tensor_value_info(node.input[0], TensorProto.FLOAT, None))
    session, spec = onnxruntime_session(model.SerializeToString(), quantized=False), done.model.preprocess
    hashes, pixels = set(done.card.hashes), []
    for path in sorted((data / "train").rglob("*.png")):
        if hashlib.sha256(path.read_bytes()).hexdigest() in hashes:
            pixels.append(spec(np.asarray(Image.open(path).convert("RGB"))))
    assert len(pixels) == 12
    assert np.abs(session(np.stack(pixels))[node.input[0]]).max() == pytest.approx(layer.range, rel=1e-5)


def test_record_is_read_back_and_sealed(quantized, tmp_path):
    done = quantized["timm-script11"]
    folder = done.model.path
    assert is_foreign(folder)
    assert load_foreign(folder) == done.model
    assert sorted(path.name for path in folder.iterdir()) == ["calibration", "card.md", "model.onnx", RECORD]
    card = (folder / "card.md").read_text()
    assert "mean and std of ImageNet" in card
    assert "centre crop 0.875" in card
    with pytest.raises(ConfigError, match="quantized already"):
        quantize_foreign(folder, options(folder), tmp_path / "again")


def test_changed_graph_and_missing_record_are_refused(quantized, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(quantized[SEPARATE].model.path, copy)
    model = onnx.load(copy / "model.onnx")
    model.doc_string = "changed"
    onnx.save(model, copy / "model.onnx")
    with pytest.raises(ArtifactError, match="was changed since it was quantized"):
        load_foreign(copy)
    (copy / RECORD).unlink()
    with pytest.raises(ArtifactError, match=f"has no {RECORD}"):
        load_foreign(copy)


def test_policy_by_names_of_ours(files, data, tmp_path):
    policy = QuantPolicy((QuantRule("blocks.0.*", "high", "first block kept"), *uniform_policy("int8").rules))
    done = quantize_foreign(files["torchvision-script17"], options(data, policy=policy), tmp_path / "out")
    found = {layer.name: layer for layer in done.model.quantization.layers}
    assert found["blocks.0.attn.qkv"].precision == "high"
    assert found["blocks.0.attn.qkv"].reason == "first block kept"
    assert found["blocks.1.attn.qkv"].precision == "int8"


def _changed(path, tmp_path, change):
    model = onnx.load(path)
    change(model)
    out = tmp_path / "changed.onnx"
    onnx.save(model, out)
    return out


def _node(model, kind: str):
    return next(node for node in model.graph.node if node.op_type == kind)


def _input_type(model):
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT16


def _second_input(model):
    model.graph.input.append(helper.make_tensor_value_info("mask", TensorProto.FLOAT, [1]))


def _grey(model):
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 1


def _any_size(model):
    for dim in model.graph.input[0].type.tensor_type.shape.dim[2:]:
        dim.ClearField("dim_value")


def _oblong(model):
    model.graph.input[0].type.tensor_type.shape.dim[3].dim_value = 40
    del model.graph.value_info[:]


def _features(model):
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 17, 32]))


def _runtime_operator(model):
    _node(model, "Erf").domain = "com.microsoft"
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))


def _no_softmax(model):
    for node in model.graph.node:
        if node.op_type == "Softmax":
            node.op_type = "Sigmoid"
            del node.attribute[:]


def _no_product(model):
    """The softmax reads a sum in place of a product."""
    _no_softmax(model)
    _node(model, "Erf").op_type = "Softmax"


def _no_residual(model):
    """The sum behind the first output projection becomes a product."""
    graph = view(model)
    sums = [node.output[0] for node in graph.nodes if graph.is_residual_add(node)]
    for node in model.graph.node:
        node.op_type = "Mul" if node.output[0] in sums else node.op_type


def _sums(model):
    """The residual sums, in order."""
    graph = view(model)
    names = [node.output[0] for node in graph.nodes if graph.is_residual_add(node)]
    return [node for node in model.graph.node if node.output[0] in names]


def _no_second_sum(model):
    _sums(model)[1].op_type = "Mul"


def _no_last_sum(model):
    _sums(model)[3].op_type = "Mul"


def _parallel(model):
    first, second = _sums(model)[:2]
    second.input[list(second.input).index(first.output[0])] = first.input[1]


def _insert(model, behind: str, nodes, result: str) -> None:
    """Inserts nodes behind a tensor, whose readers read the result in its place."""
    at = next(number for number, node in enumerate(model.graph.node) if behind in node.output) + 1
    for node in model.graph.node:
        for number, name in enumerate(node.input):
            node.input[number] = result if name == behind else name
    for node in reversed(nodes):
        model.graph.node.insert(at, node)


def _product_in_a_block(model):
    """The input of the MLP's second layer, weighted by its own correlations."""
    x = next(node.input[0] for node in model.graph.node if "/output/MatMul" in node.name)
    nodes = [
        helper.make_node("Transpose", [x], ["turned"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["turned", x], ["squares"], "squares"),
        helper.make_node("MatMul", [x, "squares"], ["weighted"]),
    ]
    _insert(model, x, nodes, "weighted")


def _linear_between(model):
    model.graph.initializer.append(numpy_helper.from_array(np.eye(32, dtype=np.float32), "turn"))
    x = _sums(model)[1].output[0]
    _insert(model, x, [helper.make_node("MatMul", [x, "turn"], ["turned"], "between")], "turned")


def _branch(model):
    values = [helper.make_node("Constant", [], [name], value_float=1.0) for name in ("one", "two")]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, []) for name in ("one", "two")]
    bodies = [helper.make_graph([value], name, [], [end]) for value, name, end in zip(values, ("a", "b"), ends)]
    x = _sums(model)[0].output[0]
    nodes = [
        helper.make_node("ReduceMax", [x], ["largest"], keepdims=0),
        helper.make_node("Cast", ["largest"], ["condition"], to=TensorProto.BOOL),
        helper.make_node("If", ["condition"], ["factor"], "choice", then_branch=bodies[0], else_branch=bodies[1]),
        helper.make_node("Mul", [x, "factor"], ["scaled"]),
    ]
    _insert(model, x, nodes, "scaled")


def _half(model):
    x = model.graph.node[-1].input[0]
    model.graph.initializer.append(numpy_helper.from_array(np.eye(32, dtype=np.float16), "half"))
    nodes = [
        helper.make_node("Cast", [x], ["narrow"], to=TensorProto.FLOAT16),
        helper.make_node("MatMul", ["narrow", "half"], ["product"], "narrow_product"),
        helper.make_node("Cast", ["product"], ["wide"], to=TensorProto.FLOAT),
    ]
    _insert(model, x, nodes, "wide")


def _first_weight(model):
    node = next(node for node in model.graph.node if "query/MatMul" in node.name)
    return node, next(tensor for tensor in model.graph.initializer if tensor.name == node.input[1])


def _computed_weight(model):
    node, tensor = _first_weight(model)
    model.graph.node.insert(0, helper.make_node("Add", [tensor.name, tensor.name], ["doubled"]))
    node.input[1] = "doubled"


def _broken_weight(model):
    _, tensor = _first_weight(model)
    tensor.CopyFrom(numpy_helper.from_array(np.full((32, 32), np.nan, np.float32), tensor.name))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_input_type, "input pixel_values is float16, expected float32"),
        (_second_input, r"has 2 inputs \(pixel_values, mask\)"),
        (_grey, "has 1 channels"),
        (_any_size, "does not fix the size of the images; give --image-size"),
        (_features, "has 0 outputs of shape"),
        (_runtime_operator, "Erf .* is an operator of com.microsoft"),
        (_no_softmax, "without an attention"),
        (_no_product, "Softmax .*: is no attention"),
        (_no_residual, "MatMul .*: no residual sum follows this attention"),
        (_no_second_sum, "Add .*: a second attention before an MLP"),
        (_no_last_sum, "Add .*: no MLP with a residual sum follows this attention"),
        (_parallel, "Add .*: adds to another tensor than the sum"),
        (_product_in_a_block, "MatMul squares: a product inside a block"),
        (_linear_between, "MatMul between: a linear layer between the blocks"),
        (_branch, r"has branches or loops \(If choice (then|else)_branch:\)"),
        (_half, "MatMul narrow_product computes in fp16"),
        (_broken_weight, "MatMul .*query/MatMul: its weights .* hold NaN or infinity"),
    ],
)
def test_what_does_not_fit_is_named(files, data, tmp_path, change, says):
    path = _changed(files[SEPARATE], tmp_path, change)
    with pytest.raises(ArtifactError, match=says):
        quantize_foreign(path, options(data, policy=uniform_policy("int8-weights")), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_weights_that_a_graph_computes(files, data, tmp_path, monkeypatch):
    """Small ones are folded; others are refused."""
    path, chosen = (
        _changed(files[SEPARATE], tmp_path, _computed_weight),
        options(data, policy=uniform_policy("int8-weights")),
    )
    done = quantize_foreign(path, chosen, tmp_path / "out")
    stored, scale = (
        numpy_helper.to_array(tensor)
        for name in ("blocks.0.attn.q.weight_int8", "blocks.0.attn.q.weight_scale")
        for tensor in onnx.load(done.model.file).graph.initializer
        if tensor.name == name
    )
    weight = 2 * numpy_helper.to_array(_first_weight(onnx.load(files[SEPARATE]))[1])
    assert np.abs(stored * scale - weight).max() <= scale.max() / 2 * 1.001
    monkeypatch.setattr(qdq, "weight_values", lambda *_: None)
    with pytest.raises(ArtifactError, match=r"MatMul .*query/MatMul: its weights doubled are no float32 matrix"):
        quantize_foreign(path, chosen, tmp_path / "again")


def test_open_image_size_is_fixed_by_the_flag(files, data, tmp_path):
    path = _changed(files[SEPARATE], tmp_path, _any_size)
    done = quantize_foreign(path, options(data, image_size=32), tmp_path / "out")
    assert load_foreign(tmp_path / "out").input_shape == (None, 3, 32, 32)
    assert done.agreement.comparison.logit_sqnr_db > 25
    with pytest.raises(ConfigError, match="takes images of 32 x 32, not 64"):
        load_foreign(files[SEPARATE], image_size=64)


def test_oblong_images_and_large_files_are_refused(files, data, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="images of 32 x 40; only square"):
        quantize_foreign(_changed(files[SEPARATE], tmp_path, _oblong), options(data), tmp_path / "out")
    monkeypatch.setattr(loading, "MAX_PROTOBUF", 1000)
    with pytest.raises(ArtifactError, match="this verb reads 2 GB at most"):
        quantize_foreign(files["timm-dynamo18"], options(data), tmp_path / "out")


def test_old_opsets_that_cannot_be_converted(files, data, tmp_path, monkeypatch):
    def refuse(*_):
        raise NativeError("no adapter for Softmax")

    monkeypatch.setattr(loading.native, "call", refuse)
    with pytest.raises(ArtifactError, match=r"converted to opset 13 \(no adapter for Softmax\); export it in a newer"):
        loading.load_whole(load_foreign(files["timm-script11"]))


def test_a_policy_that_quantizes_nothing(files, data, tmp_path):
    with pytest.raises(ConfigError, match="no layer of this graph is quantized"):
        quantize_foreign(files[SEPARATE], options(data, policy=uniform_policy("high")), tmp_path / "out")


def test_a_network_without_attention_is_refused(data, tmp_path):
    weights = [
        numpy_helper.from_array(np.zeros(shape, np.float32), name)
        for name, shape in (("w", (4, 3, 3, 3)), ("h", (4, 5)))
    ]
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], "stem"),
        helper.make_node("Relu", ["a"], ["b"], "relu"),
        helper.make_node("ReduceMax", ["b"], ["c"], "pool", axes=[2, 3], keepdims=0),
        helper.make_node("MatMul", ["c", "h"], ["logits"], "fc"),
    ]
    ends = (
        [helper.make_tensor_value_info("x", 1, [None, 3, 32, 32])],
        [helper.make_tensor_value_info("logits", 1, [None, 5])],
    )
    graph = helper.make_graph(nodes, "resnet", *ends, weights)
    path = tmp_path / "resnet.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    with pytest.raises(ArtifactError, match="Relu relu: a ViT has a patch embedding and blocks"):
        quantize_foreign(path, options(data), tmp_path / "out")


def test_options_are_checked(data):
    with pytest.raises(ConfigError, match="give --data"):
        ForeignOptions(CalibrationOptions())
    with pytest.raises(ConfigError, match="fp8 is for checkpoints"):
        options(data, policy=uniform_policy("fp8"))
    with pytest.raises(ConfigError, match="quantized attention is for checkpoints"):
        options(data, policy=uniform_policy("int8", attention="int8"))
    with pytest.raises(ConfigError, match="SmoothQuant is for checkpoints"):
        options(data, policy=uniform_policy("int8", smoothquant=0.5))


def test_pixels_have_named_defaults():
    assert Pixels().spec(224, 224).mean == IMAGENET_MEAN
    assert Pixels().origin() == (
        "preprocessing: mean and std of ImageNet, centre crop of 0.875, bicubic assumed, the file does not record it"
    )
    given = Pixels("half", resize="stretch", interpolation="bilinear")
    assert given.origin() == "preprocessing: as given"
    assert given.spec(32, 32).std == (0.5, 0.5, 0.5)
    assert Pixels(resize="crop:0.9").spec(32, 32).crop_ratio == 0.9
    for wrong in ({"normalisation": "cifar"}, {"mean": (0.5,) * 3}, {"resize": "pad"}, {"resize": "crop:x"}):
        with pytest.raises(ConfigError, match="preprocessing: "):
            Pixels(**wrong)


def test_class_names(tmp_path):
    file = tmp_path / "names.txt"
    file.write_text("ant\nbee\n")
    assert class_names(file, ("x",), 2, "D").names == ("ant", "bee")
    assert class_names(None, ("a", "b"), 2, "D").known
    other = class_names(None, ("a",), 2, "D")
    assert (other.names, other.known) == (("class_0", "class_1"), False)
    assert "D: it has 1 classes" in other.origin


def _run(*arguments: object) -> tuple[int, str]:
    out = io.StringIO()
    with redirect_stdout(out):
        code = main([str(argument) for argument in arguments])
    return code, out.getvalue()


def test_the_verb(files, data, tmp_path, capsys):
    source = files["timm-script17-slim"]
    code, text = _run(
        "quantize", source, "--data", data, "--images", 12, "--method", "entropy", "--out", tmp_path / "out"
    )
    assert code == 0
    assert text.startswith(f"{tmp_path / 'out'}: 8 linear layers in INT8\ncalibrated on 12 images\n")
    assert "mean and std of ImageNet, centre crop of 0.875, bicubic assumed" in text
    assert "right no more often than by guessing: wrong preprocessing" in text
    assert "blocks.*.attn.qkv" in text
    record = json.loads((tmp_path / "out" / RECORD).read_text())
    assert (record["method"], record["images"], record["precision"]) == ("entropy", 12, "int8")
    assert record["details"]["agreement"]["at_chance"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("MODEL", "--precision", "fp8"), "an ONNX file gets int8 or int8-weights"),
        (("MODEL", "--smoothquant"), "--smoothquant is for a checkpoint"),
        (("MODEL", "--mean", "a", "--std", "1"), "--mean 'a': expected three numbers"),
        (("builtin", "--image-size", "32"), "--image-size is for an ONNX file"),
        (("missing.onnx",), "graph missing.onnx: no such file"),
    ],
)
def test_the_verb_refuses(files, data, tmp_path, capsys, arguments, says):
    given = [files[SEPARATE] if part == "MODEL" else part for part in arguments]
    code, _ = _run("quantize", *given, "--data", data, "--out", tmp_path / "out")
    assert code == 2
    error = capsys.readouterr().err
    assert says in error
    assert len(error.splitlines()) == 1
