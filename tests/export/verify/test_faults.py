"""Seeded faults of many kinds: each is found and its place named; in clean artefacts nothing is."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper

from gft_edge.export.verify.artifact_alone import VerifyReport
from gft_edge.export.verify.with_checkpoint import verify_checkpoint
from gft_edge.manifest import GOLDEN, MODEL, Artifact, register_files

from .graph_surgery import Graph

FP32, MAPS, INT8 = "fp32-none", "fp32-compact", "int8-compact"


def scaled_weight_scale(g):
    name = g.tensor("blocks.0.mlp.fc2.weight_scale")
    g.set(name, g.value(name) * np.float32(2))


def halved_input_scale(g):
    name = g.tensor("blocks.1.attn.qkv.input_scale")
    g.set(name, g.value(name) / np.float32(2))


def swapped_axis(g):
    g.attribute(g.reader(g.tensor("blocks.0.attn.proj.weight_stored")), "axis", 0)


def weight_zero_point(g):
    node = g.reader(g.tensor("blocks.1.mlp.fc1.weight_stored"))
    g.own(node, 2, np.full_like(g.value(node.input[2]), 3))


def input_zero_point(g):
    node = g.reader(g.tensor("blocks.1.mlp.fc2.input_scale"))
    g.own(node, 2, np.array(5, np.int8))


def flipped_bit(g):
    name = g.tensor("blocks.0.mlp.fc1.weight")
    array = g.value(name).copy()
    array.view(np.uint32)[3, 5] ^= 1 << 29
    g.set(name, array)


def flipped_int8_bit(g):
    name = g.tensor("blocks.0.mlp.fc1.weight_stored")
    array = g.value(name).copy()
    array.view(np.uint8)[3, 5] ^= 1 << 7
    g.set(name, array)


def transposed(g):
    name = g.tensor("blocks.0.attn.proj.weight")
    g.set(name, np.ascontiguousarray(g.value(name).T))


def swapped_layers(g):
    first, second = (g.tensor(f"blocks.{i}.mlp.fc1.weight") for i in (0, 1))
    a, b = g.value(first), g.value(second)
    g.set(first, b)
    g.set(second, a)


def dropped_bias(g):
    node = g.reader(g.tensor("blocks.0.mlp.fc1.bias"))
    g.bypass(node, next(name for name in node.input if name != g.tensor("blocks.0.mlp.fc1.bias")))


def missing_attention_scale(g):
    softmax = g.of("Softmax")[0]
    node = g.maker(g.maker(softmax.input[0]).input[0])
    assert node.op_type == "Mul"
    g.bypass(node, node.input[0])


def softmax_axis(g):
    g.attribute(g.of("Softmax")[0], "axis", 2)


def gelu_tanh(g):
    g.attribute(g.of("Gelu")[1], "approximate", "tanh")


def fp16_overflow(g):
    gelu = g.of("Gelu")[0].output[0]
    for name, factor in (("big", 1e6), ("small", 1e-6)):
        g.model.graph.initializer.append(numpy_helper.from_array(np.array(factor, np.float32), name))
    g.after(
        gelu,
        helper.make_node("Mul", [gelu, "big"], ["scaled"], "scaled"),
        helper.make_node("Cast", ["scaled"], ["half"], "to_half", to=onnx.TensorProto.FLOAT16),
        helper.make_node("Cast", ["half"], ["float"], "to_float", to=onnx.TensorProto.FLOAT),
        helper.make_node("Mul", ["float", "small"], ["unscaled"], "unscaled"),
    )


def shifted_positions(g):
    name = g.tensor("pos_embed")
    g.set(name, np.roll(g.value(name), 1, axis=1))


def permuted_classes(g):
    name = g.tensor("head.weight")
    array = g.value(name)
    axis = 0 if array.shape[0] == 4 else 1
    g.set(name, np.ascontiguousarray(np.roll(array, 1, axis=axis)))


def missing_residual(g):
    tokens = g.rows(0)[0].output[0]
    node = next(n for n in g.of("Add") if n.input[0] == tokens)
    g.bypass(node, node.input[1])


def wrong_smoothing(g):
    node = next(n for n in g.of("Conv") if g.value(n.input[1]).shape == (1, 1, 3))
    g.own(node, 1, np.array([[[1, 3, 1]]], np.float32))


def wrong_gradient(g):
    node = next(n for n in g.of("Mul") if g.maker(n.input[0]).op_type == "Sub")
    g.own(node, 1, np.array(1, np.float32))


def wrong_temperature(g):
    node = g.maker(g.maker("importance_0").input[0])
    assert node.op_type == "Div"
    g.own(node, 1, np.array(0.2, np.float32))


def relative_indices(g):
    cast = g.maker("kept_1")
    cast.input[0] = g.selections()[1][1].output[0]


def unordered(g):
    chosen, sorts = g.selections()
    g.bypass(sorts[0], chosen[0].output[1])


def first_image_for_all(g):
    indices = g.kept(0)
    for name, array in (("start", [0]), ("end", [1]), ("axis", [0])):
        g.model.graph.initializer.append(numpy_helper.from_array(np.array(array, np.int64), name))
    g.after(
        indices,
        helper.make_node("Shape", [indices], ["like"], "like"),
        helper.make_node("Slice", [indices, "start", "end", "axis"], ["first"], "first"),
        helper.make_node("Expand", ["first", "like"], ["repeated"], "repeated"),
    )
    g.maker("like").input[0] = g.maker("first").input[0] = indices


def smallest(g):
    g.attribute(g.selections()[0][0], "largest", 0)


def other_k(stage):
    def change(g):
        chosen, sorts = g.selections()
        k = g.value(chosen[stage].input[1]) - 1
        for node in (*chosen[stage : stage + 1], *sorts[stage : stage + 1]):
            g.own(node, 1, k)

    return change


def skipped_stage(g):
    """The tokens that the second stage selects go on without its attention."""
    tokens = g.rows(1)[0].output[0]
    g.bypass(next(n for n in g.of("Add") if tokens in n.input), tokens)


def dropped_class_token(g):
    node = next(n for n in g.of("Pad") if g.maker(n.input[0]).op_type == "Add")
    g.own(node, 2, np.array(1, np.int64))


def wrong_token(g):
    node = g.maker(next(n for n in g.of("Pad") if g.maker(n.input[0]).op_type == "Add").input[0])
    g.own(node, 1, np.array(0, np.int64))


def large_epsilon(g):
    g.attribute(g.of("LayerNormalization")[1], "epsilon", 0.1)


def swapped_norm(g):
    node = g.of("LayerNormalization")[0]
    node.input[1], node.input[2] = node.input[2], node.input[1]


def zeroed_norm(g):
    node = g.of("LayerNormalization")[2]
    g.own(node, 1, np.zeros_like(g.value(node.input[1])))


def lost_class_row(g):
    node = g.of("Pad")[0]
    g.bypass(node, node.input[0])


def score_of_queries(g):
    """Patches are ranked by their queries instead of their keys."""
    node, (queries, keys, _) = g.scored(0), g.of("Split")[0].output
    assert node.input[0] == keys
    node.input[0] = queries


def mean_with_class_token(g):
    g.own(g.maker(g.of("ReduceMean")[0].input[0]), 1, np.array([0]))


def largest_query(g):
    g.of("ReduceMean")[0].op_type = "ReduceMax"


def scores_shifted(g):
    """The score of a patch is that of the token before it."""
    node = g.scored(0)
    g.own(node, 1, np.array([0]))
    g.own(node, 2, np.array([16]))


def next_token(g):
    g.own(g.maker(g.of("Pad")[0].input[0]), 1, np.array(2))


def rows_of_normalised(g):
    g.rows(0)[0].input[0] = g.of("LayerNormalization")[0].output[0]


def query_rows_of_keys(g):
    g.rows(0)[1].input[0] = g.of("Split")[0].output[1]


def queries_of_other_rows(g):
    """The rows of the queries are counted from the other end."""
    node = g.rows(0)[1]
    g.model.graph.initializer.append(numpy_helper.from_array(np.array(16), "last"))
    mirrored = helper.make_node("Sub", ["last", node.input[1]], ["mirrored"], "mirror")
    g.nodes.insert(list(g.nodes).index(node), mirrored)
    node.input[1] = "mirrored"


def last_row_of_a_patch(g):
    node = g.reader(g.of("Split")[2].output[0])
    g.own(node, 1, np.array([1]))
    g.own(node, 2, np.array([2]))


def last_residual_of_a_patch(g):
    tokens = g.reader(g.tensor("blocks.2.norm1.weight")).input[0]
    node = next(n for n in g.of("Slice") if n.input[0] == tokens)
    g.own(node, 1, np.array([1]))
    g.own(node, 2, np.array([2]))


def descending(g):
    g.attribute(g.selections()[1][0], "largest", 1)


def queries_for_keys(g):
    """Attention reads the keys where it reads the queries, and the other way round."""
    rows, keys = g.rows(0)[1], next(n for n in g.of("Reshape") if n.input[0] == g.of("Split")[0].output[1])
    rows.input[0], keys.input[0] = keys.input[0], rows.input[0]


def shifted_convolution(g):
    g.attribute(g.of("Conv")[0], "pads", [0, 0, 2, 2])


def missing_relu(g):
    node = g.of("Relu")[1]
    g.bypass(node, node.input[0])


def swapped_axes_of_image(g):
    g.after("image", helper.make_node("Transpose", ["image"], ["turned"], "turned", perm=[0, 1, 3, 2]))


@dataclass(frozen=True)
class Fault:
    """A fault of the graph and the place that has to be named.

    ``op`` is the type of the node named, ``module`` where it lies, ``words`` what is said of it.
    """

    change: Callable[[Graph], None]
    artifacts: tuple[str, ...]
    op: str
    module: str
    words: str


GRAPH_FAULTS = {
    "weight scale doubled": Fault(
        scaled_weight_scale, (INT8,), "DequantizeLinear", "blocks.0.mlp.fc2", "is scaled by 2"
    ),
    "activation scale halved": Fault(
        halved_input_scale, (INT8,), "QuantizeLinear", "blocks.1.attn.qkv", "input_scale is "
    ),
    "per-channel axis swapped": Fault(
        swapped_axis, (INT8,), "DequantizeLinear", "blocks.0.attn.proj", "axis is 0 instead of 1"
    ),
    "weight zero point": Fault(weight_zero_point, (INT8,), "DequantizeLinear", "blocks.1.mlp.fc1", "weight_zero"),
    "input zero point": Fault(input_zero_point, (INT8,), "QuantizeLinear", "blocks.1.mlp.fc2", "is 5 instead of 0"),
    "bit of a weight flipped": Fault(flipped_bit, (FP32,), "MatMul", "blocks.0.mlp.fc1", "in the element [3, 5]"),
    "bit of an INT8 weight flipped": Fault(
        flipped_int8_bit, (INT8,), "DequantizeLinear", "blocks.0.mlp.fc1", "in the element [3, 5]"
    ),
    "square weight transposed": Fault(transposed, (FP32,), "MatMul", "blocks.0.attn.proj", "is transposed"),
    "weights of two layers swapped": Fault(swapped_layers, (FP32,), "MatMul", "blocks.0.mlp.fc1", "elements"),
    "bias dropped": Fault(dropped_bias, (FP32, INT8), "Add", "blocks.0.mlp.fc1", "is missing"),
    "attention scale missing": Fault(
        missing_attention_scale, (FP32, INT8), "Mul", "blocks.0.attn.attend", "is missing"
    ),
    "softmax over the wrong axis": Fault(softmax_axis, (FP32, INT8), "Softmax", "blocks.0.attn.attend", "axis is 2"),
    "GELU by tanh": Fault(gelu_tanh, (FP32, INT8), "Gelu", "blocks.1.mlp.act", "approximate is tanh instead of none"),
    "FP16 overflow": Fault(fp16_overflow, (FP32,), "MatMul", "blocks.0.mlp.fc2", "Cast to_half is the first"),
    "position embedding shifted": Fault(shifted_positions, (FP32, INT8), "Add", "", "permuted along axis 1"),
    "classes permuted": Fault(permuted_classes, (FP32, INT8), "Gemm", "head", "is permuted along axis"),
    "residual missing": Fault(missing_residual, (FP32, INT8), "Add", "blocks.0", "is missing"),
    "smoothing kernel wrong": Fault(wrong_smoothing, (MAPS, INT8), "Conv", "blocks.0", "in the element [0, 0, 1]"),
    "spatial gradient doubled": Fault(wrong_gradient, (MAPS, INT8), "Mul", "blocks.0", "is 1 instead of 0.5"),
    "temperature doubled": Fault(wrong_temperature, (MAPS, INT8), "Div", "blocks.0", "is 0.2 instead of 0.1"),
    "kept indices relative": Fault(relative_indices, (MAPS, INT8), "Cast", "", "reads"),
    "order of kept patches lost": Fault(unordered, (MAPS, INT8), "TopK", "blocks.0", "is missing"),
    "kept patches in descending order": Fault(
        descending, (MAPS, INT8), "TopK", "blocks.0", "largest is 1 instead of 0"
    ),
    "first image's selection for all": Fault(first_image_for_all, (FP32, INT8), "Add", "blocks.0", "made by Expand"),
    "smallest instead of largest": Fault(smallest, (FP32, INT8), "TopK", "blocks.0", "largest is 0"),
    "k of stage 0 off by one": Fault(other_k(0), (FP32, INT8), "TopK", "blocks.0", "is 11 instead of 12"),
    "k of stage 1 off by one": Fault(other_k(1), (FP32, MAPS), "TopK", "blocks.1", "is 5 instead of 6"),
    "stage skipped": Fault(skipped_stage, (FP32,), "Add", "blocks.1", "is missing"),
    "class token dropped": Fault(dropped_class_token, (FP32, INT8), "Pad", "blocks.0", " is 1)"),
    "wrong token gathered": Fault(wrong_token, (FP32, INT8), "Add", "blocks.0", "is 0 instead of 1"),
    "LayerNorm epsilon": Fault(
        large_epsilon, (FP32, INT8), "LayerNormalization", "blocks.0.norm2", "epsilon is 0.1 instead of 1e-06"
    ),
    "LayerNorm scale and bias swapped": Fault(
        swapped_norm, (FP32,), "LayerNormalization", "blocks.0.norm1", "elements"
    ),
    "LayerNorm scale zeroed": Fault(zeroed_norm, (FP32,), "LayerNormalization", "blocks.1.norm1", "is all zeros"),
    "class row lost": Fault(lost_class_row, (FP32,), "Pad", "blocks.0", "is missing"),
    "score of the queries": Fault(score_of_queries, (FP32, MAPS), "Slice", "blocks.0", "reads"),
    "class token in the mean": Fault(mean_with_class_token, (FP32,), "Slice", "blocks.0", "is 0 instead of 1"),
    "largest query instead of the mean": Fault(largest_query, (FP32, INT8), "ReduceMean", "blocks.0", "ReduceMax"),
    "scores shifted by a token": Fault(scores_shifted, (FP32, INT8), "Slice", "blocks.0", "is 0 instead of 1"),
    "next token gathered": Fault(next_token, (FP32, INT8), "Add", "blocks.0", "is 2 instead of 1"),
    "rows of the normalised tokens": Fault(rows_of_normalised, (FP32, INT8), "GatherND", "blocks.0", "reads"),
    "rows of the keys as queries": Fault(query_rows_of_keys, (FP32, INT8), "GatherND", "blocks.0", "reads"),
    "queries of other rows": Fault(queries_of_other_rows, (FP32, INT8), "GatherND", "blocks.0", "reads"),
    "last block queries a patch": Fault(last_row_of_a_patch, (FP32, INT8), "Slice", "blocks.2", "is 1 instead of 0"),
    "last block adds to a patch": Fault(last_residual_of_a_patch, (FP32,), "Slice", "blocks.2", "is 1 instead of 0"),
    "queries for keys": Fault(queries_for_keys, (FP32, INT8), "Reshape", "blocks.0.attn.attend", "reads"),
    "convolution shifted": Fault(shifted_convolution, (FP32,), "Conv", "patch_embed.convs", "pads is"),
    "ReLU missing": Fault(missing_relu, (FP32,), "Relu", "patch_embed.convs.5", "is missing"),
    "image rows for columns": Fault(swapped_axes_of_image, (FP32,), "Shape", "", "made by Transpose"),
}
CASES = [(name, kind) for name, fault in GRAPH_FAULTS.items() for kind in fault.artifacts]


@pytest.fixture(scope="module")
def batches(clear_images, tiny_model):
    with torch.no_grad():
        labels = tiny_model(torch.from_numpy(clear_images)).argmax(dim=1).numpy()
    return [(clear_images[:8], labels[:8]), (clear_images[8:], labels[8:])]


@pytest.fixture
def verify(exported, checkpoints, batches) -> Callable[[Artifact, str], VerifyReport]:
    def run(artifact: Artifact, name: str) -> VerifyReport:
        fresh = onnx.load(exported(name).path / MODEL)
        return verify_checkpoint(artifact, checkpoints[name.split("-")[0]], batches, "twelve images", fresh=fresh)

    return run


@pytest.mark.parametrize(("fault", "name"), CASES, ids=[f"{fault}-{name}" for fault, name in CASES])
def test_fault_of_the_graph_is_found_and_placed(edited, verify, checkpoints, fault, name, record_property):
    case = GRAPH_FAULTS[fault]
    weights = {key: value.numpy() for key, value in checkpoints["fp32"].model.state_dict().items()}
    report = verify(edited(name, lambda model: case.change(Graph(model, weights))), name)
    record_property("verdict", report.verdict)
    record_property("place", report.places[0].text if report.places else "")
    assert report.verdict == "fail"
    assert report.fresh_export == "different"
    (place,) = report.places
    assert (place.kind, place.op_type, place.module) == ("node", case.op, case.module)
    assert case.words in place.text
    assert place.sqnr_before_db is None or place.sqnr_before_db > 100


MANIFEST_FAULTS = {
    "mean": {"mean": (0.5, 0.5, 0.5)},
    "std": {"std": (0.5, 0.5, 0.5)},
    "color_order": {"color_order": "bgr"},
    "interpolation": {"interpolation": "bilinear"},
    "resize": {"resize": "crop", "crop_ratio": 0.875},
}


@pytest.mark.parametrize("name", [FP32, INT8])
@pytest.mark.parametrize("field", MANIFEST_FAULTS)
def test_other_preprocessing_is_found_and_placed(exported, verify, field, name, record_property):
    artifact = exported(name)
    spec = dataclasses.replace(artifact.manifest.preprocess, **MANIFEST_FAULTS[field])
    manifest = dataclasses.replace(artifact.manifest, preprocess=spec)
    report = verify(dataclasses.replace(artifact, manifest=manifest), name)
    record_property("verdict", report.verdict)
    record_property("place", report.places[0].text)
    assert report.verdict == "fail"
    assert (report.places[0].kind, report.places[0].name) == ("preprocess", field)
    assert {place.kind for place in report.places} == {"preprocess"}


@pytest.mark.parametrize("name", [FP32, INT8])
def test_permuted_labels_are_found_and_placed(exported, verify, name, record_property):
    artifact = exported(name)
    manifest = dataclasses.replace(artifact.manifest, labels=("bee", "ant", "cat", "dog"))
    report = verify(dataclasses.replace(artifact, manifest=manifest), name)
    record_property("verdict", report.verdict)
    record_property("place", report.places[0].text)
    assert report.verdict == "fail"
    (place,) = report.places
    assert place.kind == "labels"
    assert "2 of 4 differ" in place.text and "in another order, first number 0: 'bee' for 'ant'" in place.text


def _stale(kind):
    def change(golden):
        if kind == "logits":
            golden["logits"] = golden["logits"] * np.float32(1.01)
        elif kind == "images":
            golden["images"] = np.ascontiguousarray(golden["images"][:, ::-1])
        elif kind == "kept":
            golden["kept_0"] = 15 - golden["kept_0"][:, ::-1]
        elif kind == "scores":
            golden["scores_0"] = np.roll(golden["scores_0"], 1, axis=1)
        elif kind == "importance":
            golden["importance_0"] = np.roll(golden["importance_0"], 1, axis=1)
        elif kind == "budget":
            golden["kept_1"] = golden["kept_1"][:, :5]
        elif kind == "int8 logits":
            golden["logits_quantized"] = golden["logits_quantized"][::-1].copy()
        elif kind == "int8 kept":
            golden["quantized_kept_0"] = 15 - golden["quantized_kept_0"][:, ::-1]

    return change


@pytest.mark.parametrize(
    ("kind", "name"),
    [(kind, FP32) for kind in ("logits", "images", "kept", "importance", "scores", "budget")]
    + [(kind, INT8) for kind in ("int8 logits", "int8 kept")],
)
def test_stale_golden_is_found_and_placed(copied, verify, kind, name, record_property):
    artifact = copied(name)
    with np.load(artifact.path / GOLDEN) as file:
        golden = dict(file)
    _stale(kind)(golden)
    np.savez(artifact.path / GOLDEN, **golden)
    report = verify(register_files(artifact, [GOLDEN]), name)
    record_property("verdict", report.verdict)
    record_property("place", report.places[0].text)
    assert report.verdict == "fail"
    (place,) = report.places
    assert place.kind == "golden"
    assert "golden.npz is stale" in place.text


@pytest.mark.parametrize("name", ["fp32-none", "fp32-compact", "int8-none", "int8-compact"])
def test_nothing_is_found_in_a_clean_artefact(exported, verify, name):
    report = verify(exported(name), name)
    assert report.places == ()
    assert report.failures == ()
    assert report.notes == ()
    assert report.fresh_export == "identical"
    # Twelve images cannot show that INT8 costs less than a point of accuracy, and the report does not claim it.
    assert report.verdict == ("inconclusive" if name.startswith("int8") else "pass")
