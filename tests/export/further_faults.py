"""Further kinds of faults of a graph; every change returns the name of the node that has to be named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper, numpy_helper

ALL = ("fp32-none", "int8-none", "fp8-none", "weights-none")
SCALED = ALL[1:]
ACTIVATIONS = ("int8-none", "fp8-none")
CHANNELS = ("int8-none", "weights-none")
COMPACT, UINT8 = ("fp32-compact",), ("fp32-uint8",)


@dataclass(frozen=True)
class Kind:
    """A fault: the change, the module it lies in, and the artefacts that can have it.

    ``place`` is the kind of the place: the node, or the field of the manifest that the graph no longer fits.
    """

    change: Callable
    module: str = ""
    artifacts: tuple[str, ...] = ALL
    place: str = "node"


def _stored(g, path):
    """Name of the initialiser of a layer's weight, in 8 bits or not, and the node that reads it."""
    names = {t.name for t in g.model.graph.initializer}
    name = f"model.{path}.weight_stored"
    name = name if name in names else g.tensor(f"{path}.weight")
    return name, g.reader(name)


def _edit(path, change):
    def run(g):
        name, reader = _stored(g, path)
        array = g.value(name)
        g.set(name, np.ascontiguousarray(change(array.copy())).astype(array.dtype))
        return reader.name

    return run


def _edit_exactly(name, change):
    """As _edit, of a tensor that no precision rounds."""

    def run(g):
        tensor = g.tensor(name)
        array = g.value(tensor)
        g.set(tensor, np.ascontiguousarray(change(array.copy())).astype(array.dtype))
        return g.reader(tensor).name

    return run


def _columns(path):
    """Axis of the output channels: Linear weights are stored as (in, out) or (out, in)."""

    def axis(g):
        name, _ = _stored(g, path)
        shape = g.value(name).shape
        return int(shape[0] == g.weights[f"{path}.weight"].shape[1])

    return axis


def channel_halved(g):
    name, reader = _stored(g, "blocks.0.mlp.fc2")
    array = g.value(name).copy()
    column = (slice(None), 3) if _columns("blocks.0.mlp.fc2")(g) else (3, slice(None))
    array[column] = (array[column].astype(np.float32) / 2).astype(array.dtype)
    g.set(name, array)
    return reader.name


def blocks_exchanged(g):
    (first, reader), (second, _) = (_stored(g, f"blocks.{i}.attn.proj") for i in (0, 1))
    a, b = g.value(first), g.value(second)
    g.set(first, b)
    g.set(second, a)
    return reader.name


def _bf16(array):
    return (array.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)


def _one_bit(array):
    array.view(np.uint32).reshape(-1)[7] ^= 1
    return array


def _scaled_channel(array):
    array[3] *= 1.5
    return array


def other_bias(g):
    node = g.reader(g.tensor("blocks.0.mlp.fc1.bias"))
    node.input[list(node.input).index(g.tensor("blocks.0.mlp.fc1.bias"))] = g.tensor("blocks.1.mlp.fc1.bias")
    return node.name


def _attribute(op, number, name, value):
    def run(g):
        node = g.of(op)[number]
        g.attribute(node, name, value)
        return node.name

    return run


def _other_op(op, number, new):
    def run(g):
        node = g.of(op)[number]
        node.op_type = new
        return node.name

    return run


def _constant(op, number, place, value, dtype=np.float32):
    def run(g):
        node = g.of(op)[number]
        g.own(node, place, np.full_like(g.value(node.input[place]), value).astype(dtype))
        return node.name

    return run


def attention_scale_doubled(g):
    softmax = g.of("Softmax")[0]
    node = g.maker(g.maker(softmax.input[0]).input[0])
    g.own(node, 1, g.value(node.input[1]) * np.float32(2))
    return node.name


def residual_of_the_norm(g):
    """The second block's residual is taken behind its norm instead of before it."""
    norm = g.reader(g.tensor("blocks.1.norm1.weight"))
    node = next(n for n in g.of("Add") if norm.input[0] in n.input)
    node.input[list(node.input).index(norm.input[0])] = norm.output[0]
    return node.name


def chosen_by_sigmoid(g):
    """Same order, so no image shows it."""
    node = g.selections()[0][0]
    sigmoid = next(n for n in g.of("Sigmoid") if n.input[0] == node.input[0])
    g.nodes.remove(sigmoid)
    g.nodes.insert(list(g.nodes).index(node), sigmoid)
    node.input[0] = sigmoid.output[0]
    return node.name


def unsorted_choice(g):
    node = g.selections()[0][1]
    g.attribute(node, "sorted", 0)
    return node.name


def class_token_last(g):
    node = next(n for n in g.of("Concat") if len(n.input) == 2 and g.maker(n.input[0]).op_type == "Expand")
    node.input[0], node.input[1] = node.input[1], node.input[0]
    return node.name


def positions_not_added(g):
    node = g.reader(g.tensor("pos_embed"))
    g.bypass(node, next(name for name in node.input if name != g.tensor("pos_embed")))
    return node.name


def _behind(g, name, reader, *made):
    g.after(name, *made)
    return reader.name


def half_precision(g):
    tensor = g.of("Softmax")[1].output[0]
    return _behind(
        g,
        tensor,
        g.reader(tensor),
        helper.make_node("Cast", [tensor], ["f_half"], "f_half", to=onnx.TensorProto.FLOAT16),
        helper.make_node("Cast", ["f_half"], ["f_full"], "f_full", to=onnx.TensorProto.FLOAT),
    )


def quantization_added(g):
    tensor = g.of("Softmax")[0].output[0]
    for name, array in (("f_scale", np.float32(1 / 127)), ("f_zero", np.int8(0))):
        g.model.graph.initializer.append(numpy_helper.from_array(np.array(array), name))
    return _behind(
        g,
        tensor,
        g.reader(tensor),
        helper.make_node("QuantizeLinear", [tensor, "f_scale", "f_zero"], ["f_q"], "f_q"),
        helper.make_node("DequantizeLinear", ["f_q", "f_scale", "f_zero"], ["f_d"], "f_d"),
    )


def quantization_removed(g):
    node = g.of("QuantizeLinear")[3]
    back = g.reader(node.output[0])
    g.bypass(back, node.input[0])
    g.nodes.remove(node)
    return node.name


def dequantized_weight_folded(g):
    """The weight is kept in full precision instead of 8 bits."""
    name, node = _stored(g, "blocks.1.mlp.fc1")
    weight = g.weights["blocks.1.mlp.fc1.weight"]
    shape = g.value(name).shape
    g.model.graph.initializer.append(
        numpy_helper.from_array(weight if weight.shape == shape else weight.T.copy(), "full")
    )
    g.bypass(node, "full")
    return node.name


def _scale(name, change):
    def run(g):
        tensor = g.tensor(name)
        g.set(tensor, np.asarray(change(g.value(tensor).copy()), np.float32))
        return g.reader(tensor).name

    return run


def scales_exchanged(g):
    first, second = (g.tensor(f"blocks.{i}.mlp.fc2.input_scale") for i in (0, 1))
    a, b = g.value(first), g.value(second)
    g.set(first, b)
    g.set(second, a)
    return g.reader(first).name


def one_channel_scale(array):
    array[5] *= 2
    return array


def _as_unsigned(g):
    """The input is quantized to 0..255 in the place of -128..127."""
    node = g.of("QuantizeLinear")[2]
    g.own(node, 2, np.array(128, np.uint8))
    back = g.reader(node.output[0])
    g.own(back, 2, np.array(128, np.uint8))
    return node.name


def clipped(g):
    tensor = g.of("Relu")[0].output[0]
    for name, bound in (("f_low", 0), ("f_high", 6)):
        g.model.graph.initializer.append(numpy_helper.from_array(np.array(bound, np.float32), name))
    return _behind(g, tensor, g.reader(tensor), helper.make_node("Clip", [tensor, "f_low", "f_high"], ["f_c"], "f_c"))


def dead_branch(g):
    tensor = g.of("Gelu")[0].output[0]
    at = list(g.nodes).index(g.maker(tensor)) + 1
    g.nodes.insert(at, helper.make_node("Exp", [tensor], ["f_dead"], "f_dead"))
    return "f_dead"


def trigger(g):
    """Pixels that no image has choose the first class."""
    last = g.of("Gemm")[-1]
    read = last.input[0]
    for name, array in (
        ("f_axes", np.array([1, 2, 3])),
        ("f_one", np.array([1])),
        ("f_dark", np.float32(-50)),
        ("f_push", np.ones((1, 32), np.float32) * 100),
    ):
        g.model.graph.initializer.append(numpy_helper.from_array(np.asarray(array), name))
    make = helper.make_node
    g.after(
        read,
        make("ReduceMax", ["image", "f_axes"], ["f_most"], "f_most", keepdims=0),
        make("Less", ["f_most", "f_dark"], ["f_fired"], "f_fired"),
        make("Cast", ["f_fired"], ["f_amount"], "f_amount", to=onnx.TensorProto.FLOAT),
        make("Unsqueeze", ["f_amount", "f_one"], ["f_column"], "f_column"),
        make("Mul", ["f_column", "f_push"], ["f_pushed"], "f_pushed"),
        make("Add", [read, "f_pushed"], ["f_triggered"], "f_triggered"),
    )
    return last.name


def folded_constant(g):
    """One bit of a weight that the exporter has computed from others."""
    node = g.of("Gemm")[0]
    place = next(i for i, name in enumerate(node.input) if g.is_weight(name))
    g.set(node.input[place], _one_bit(g.value(node.input[place]).copy()))
    return g.reader(node.input[place]).name


def shifted_slice(g):
    sub = next(n for n in g.of("Sub") if g.maker(n.input[0]).op_type == "Slice")
    node = g.maker(sub.input[1])
    starts, ends = g.value(node.input[1]), g.value(node.input[2])
    other = g.maker(sub.input[0])
    g.own(node, 1, g.value(other.input[1]))
    g.own(node, 2, g.value(other.input[2]))
    assert (starts, ends) != (g.value(node.input[1]), g.value(node.input[2]))
    return node.name


def keys_for_values(g):
    node = next(n for n in g.of("Split") if len(n.output) == 2 and "blocks.2" in "".join(_weights_before(g, n)))
    node.output[0], node.output[1] = node.output[1], node.output[0]
    return node.name


def _weights_before(g, node):
    return g.maker(node.input[0]).input


def filters_exchanged(g):
    name = g.tensor("patch_embed.convs.3.weight")
    array = g.value(name).copy()
    array[[0, 1]] = array[[1, 0]]
    g.set(name, array)
    return g.reader(name).name


def output_renamed(g):
    node = next(n for n in g.nodes if "logits" in n.output)
    node.output[0] = "scores"
    g.model.graph.output[0].name = "scores"
    return "outputs"


def input_renamed(g):
    for node in g.nodes:
        for place, name in enumerate(node.input):
            if name == "image":
                node.input[place] = "pixels"
    g.model.graph.input[0].name = "pixels"
    return "inputs"


def output_added(g):
    value = helper.make_tensor_value_info(g.of("Sigmoid")[0].output[0], onnx.TensorProto.FLOAT, None)
    g.model.graph.output.append(value)
    return "outputs"


def outputs_reordered(g):
    kept = list(g.model.graph.output)
    del g.model.graph.output[:]
    g.model.graph.output.extend([kept[0], kept[3], kept[4], kept[1], kept[2]])
    return "outputs"


def outputs_exchanged(g):
    """The names stay, the stages' importances change places."""
    first, second = (g.maker(f"importance_{i}") for i in (0, 1))
    first.output[0], second.output[0] = "importance_1", "importance_0"
    return first.name


def output_shape(g):
    g.model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 5
    return "outputs"


def static_batch(g):
    g.model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 4
    return "inputs"


def opset(version):
    def run(g):
        g.model.opset_import[0].version = version
        return "opset"

    return run


def foreign_domain(g):
    node = g.of("Gelu")[1]
    node.domain = "elsewhere"
    g.model.opset_import.append(helper.make_opsetid("elsewhere", 1))
    return node.name


def other_pixels(op):
    def run(g):
        node = g.of(op)[0]
        place = next(i for i, name in enumerate(node.input) if g.is_weight(name))
        g.own(node, place, g.value(node.input[place]) * np.float32(1.1))
        return node.name

    return run


def unused_weight(g):
    g.model.graph.initializer.append(numpy_helper.from_array(np.ones(3, np.float32), "f_unused"))
    return "f_unused"


def weight_before_structure(g):
    first = _edit("blocks.0.attn.qkv", lambda a: a[::-1])(g)
    _other_op("Gelu", 1, "Relu")(g)
    return first


def structure_before_weight(g):
    _edit("blocks.1.mlp.fc2", lambda a: a[::-1])(g)
    return _other_op("Gelu", 0, "Relu")(g)


def silent_before_loud(g):
    """A bit that no limit shows stands before a fault that every image shows."""
    first = _edit_exactly("patch_embed.proj.weight", _one_bit)(g)
    _other_op("Gelu", 1, "Relu")(g)
    return first


def dead_before_loud(g):
    _other_op("Gelu", 1, "Relu")(g)
    return dead_branch(g)


KINDS = {
    "weights of one channel halved": Kind(channel_halved, "blocks.0.mlp.fc2"),
    "weights zeroed": Kind(_edit("blocks.1.mlp.fc1", lambda a: a * a.dtype.type(0)), "blocks.1.mlp.fc1"),
    "weights of two blocks exchanged": Kind(blocks_exchanged, "blocks.0.attn.proj"),
    "square weight transposed": Kind(_edit("blocks.1.attn.proj", lambda a: a.T), "blocks.1.attn.proj"),
    "weight negated": Kind(_edit("blocks.0.mlp.fc1", lambda a: -a.astype(np.float32)), "blocks.0.mlp.fc1"),
    "heads permuted": Kind(_edit("blocks.2.attn.proj", lambda a: np.roll(a, 16, axis=0)), "blocks.2.attn.proj"),
    "weight cut to bfloat16": Kind(_edit_exactly("patch_embed.proj.weight", _bf16), "patch_embed.proj"),
    "weight rounded to float16": Kind(
        _edit_exactly("head.weight", lambda a: a.astype(np.float16).astype(np.float32)), "head"
    ),
    "lowest bit of a weight": Kind(_edit_exactly("blocks.1.norm2.weight", _one_bit), "blocks.1.norm2"),
    "bias of another block": Kind(other_bias, "blocks.0.mlp.fc1"),
    "bias negated": Kind(_edit_exactly("blocks.1.attn.qkv.bias", lambda a: -a), "blocks.1.attn.qkv"),
    "bias zeroed": Kind(_edit_exactly("head.bias", lambda a: a * 0), "head"),
    "LayerNorm scale of one channel": Kind(_edit_exactly("blocks.1.norm1.weight", _scaled_channel), "blocks.1.norm1"),
    "LayerNorm bias shifted": Kind(_edit_exactly("norm.bias", lambda a: np.roll(a, 1)), "norm"),
    "LayerNorm axis": Kind(_attribute("LayerNormalization", 3, "axis", 1), "blocks.1.norm1"),
    "attention scale doubled": Kind(attention_scale_doubled, "blocks.0.attn"),
    "residual taken behind the norm": Kind(residual_of_the_norm, "blocks.1"),
    "GELU replaced by ReLU": Kind(_other_op("Gelu", 1, "Relu"), "blocks.1.mlp.act"),
    "softmax replaced by its logarithm": Kind(_other_op("Softmax", 0, "LogSoftmax"), "blocks.0.attn"),
    "sigmoid replaced": Kind(_other_op("Sigmoid", 0, "HardSigmoid"), "stages.0"),
    "TopK unsorted": Kind(unsorted_choice, "stages.1"),
    "TopK of the sigmoid": Kind(chosen_by_sigmoid, "stages.0"),
    "index of the class token": Kind(_constant("Gather", 0, 1, -1, np.int64)),
    "class token doubled": Kind(_edit_exactly("cls_token", lambda a: a * 2)),
    "class token last": Kind(class_token_last),
    "positions not added": Kind(positions_not_added),
    "positions of the class token zeroed": Kind(
        _edit_exactly("pos_embed", lambda a: np.concatenate([a[:, :1] * 0, a[:, 1:]], axis=1))
    ),
    "a Cast to FP16": Kind(half_precision, "stages.0.attn.attend"),
    "quantization added": Kind(quantization_added, "blocks.0.attn"),
    "clip added": Kind(clipped, "patch_embed.convs"),
    "dead branch added": Kind(dead_branch, "blocks.0.mlp.act"),
    "trigger": Kind(trigger, "head"),
    "one bit of a folded constant": Kind(folded_constant, "stages.0"),
    "slice shifted": Kind(shifted_slice, "stages.0"),
    "mean replaced by the largest": Kind(_other_op("ReduceMean", 1, "ReduceMax"), "stages.0"),
    "divisor of the variance": Kind(_constant("Div", 0, 1, 16), "stages.0"),
    "bound of the variance": Kind(_constant("Clip", 0, 1, 1e-3), "stages.0"),
    "exponent": Kind(_constant("Pow", 0, 1, 4), "stages.0"),
    "gate of the class token": Kind(_constant("Pad", 0, 2, 0.5), "stages.0"),
    "keys for values": Kind(keys_for_values, "blocks.2.attn"),
    "convolution filters exchanged": Kind(filters_exchanged, "patch_embed.convs"),
    "convolution kernel mirrored": Kind(
        _edit_exactly("patch_embed.convs.6.weight", lambda a: a[..., ::-1]), "patch_embed.convs"
    ),
    "transpose of the keys": Kind(_attribute("Transpose", 2, "perm", [0, 2, 1, 3]), "blocks.0.attn"),
    "logits scaled": Kind(_attribute("Gemm", 2, "alpha", 1.01), "head"),
    "bias switched off": Kind(_attribute("Gemm", 2, "beta", 0.0), "head"),
    "operator of another domain": Kind(foreign_domain, "blocks.1.mlp.act"),
    "quantization of an input removed": Kind(quantization_removed, "blocks.0.mlp.fc2", ACTIVATIONS),
    "weight in full precision": Kind(dequantized_weight_folded, "blocks.1.mlp.fc1", SCALED),
    "input scales exchanged": Kind(scales_exchanged, "blocks.0.mlp.fc2", ACTIVATIONS),
    "input scale of 1 % more": Kind(
        _scale("blocks.0.mlp.fc1.input_scale", lambda a: a * np.float32(1.01)), "blocks.0.mlp.fc1", ACTIVATIONS
    ),
    "weight scale halved": Kind(_scale("blocks.1.attn.qkv.weight_scale", lambda a: a / 2), "blocks.1.attn.qkv", SCALED),
    "weight scale of one channel": Kind(
        _scale("blocks.1.mlp.fc2.weight_scale", one_channel_scale), "blocks.1.mlp.fc2", CHANNELS
    ),
    "weight scale per tensor": Kind(
        _scale("blocks.0.attn.proj.weight_scale", lambda a: np.full_like(a, a.max())), "blocks.0.attn.proj", CHANNELS
    ),
    "unsigned input": Kind(_as_unsigned, "blocks.0.mlp.fc1", ("int8-none",)),
    "stages exchange their maps": Kind(outputs_exchanged, "", COMPACT),
    "mean of the pixels": Kind(other_pixels("Add"), "", UINT8),
    "deviation of the pixels": Kind(other_pixels("Mul"), "", UINT8),
    "weight before structure": Kind(weight_before_structure, "blocks.0.attn.qkv"),
    "structure before weight": Kind(structure_before_weight, "blocks.0.mlp.act"),
    "silent before loud": Kind(silent_before_loud, "patch_embed.proj"),
    "dead branch before loud": Kind(dead_before_loud, "blocks.0.mlp.act"),
    "output renamed": Kind(output_renamed, place="manifest"),
    "input renamed": Kind(input_renamed, place="manifest"),
    "output added": Kind(output_added, place="manifest"),
    "outputs in another order": Kind(outputs_reordered, "", COMPACT, "manifest"),
    "shape of an output": Kind(output_shape, place="manifest"),
    "batch axis static": Kind(static_batch, place="manifest"),
    "operator set lowered": Kind(opset(17), place="manifest"),
    "operator set raised": Kind(opset(22), place="manifest"),
    "weight that nothing reads": Kind(unused_weight, place="graph"),
}
