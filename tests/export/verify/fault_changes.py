"""Changes of a graph that seed further kinds of faults; each returns the name of the node that has to be named."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper


def _stored(g, path):
    """Name of the initialiser of a layer's weight, in 8 bits or not, and the node that reads it."""
    names = {t.name for t in g.model.graph.initializer}
    name = f"model.{path}.weight_stored"
    name = name if name in names else g.tensor(f"{path}.weight")
    return name, g.reader(name)


def edit(path, change):
    def run(g):
        name, reader = _stored(g, path)
        array = g.value(name)
        g.set(name, np.ascontiguousarray(change(array.copy())).astype(array.dtype))
        return reader.name

    return run


def edit_exactly(name, change):
    """As edit, of a tensor that no precision rounds."""

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


def cut_to_bf16(array):
    return (array.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)


def one_bit(array):
    array.view(np.uint32).reshape(-1)[7] ^= 1
    return array


def scaled_channel(array):
    array[3] *= 1.5
    return array


def other_bias(g):
    node = g.reader(g.tensor("blocks.0.mlp.fc1.bias"))
    node.input[list(node.input).index(g.tensor("blocks.0.mlp.fc1.bias"))] = g.tensor("blocks.1.mlp.fc1.bias")
    return node.name


def set_attribute(op, number, name, value):
    def run(g):
        node = g.of(op)[number]
        g.attribute(node, name, value)
        return node.name

    return run


def other_op(op, number, new):
    def run(g):
        node = g.of(op)[number]
        node.op_type = new
        return node.name

    return run


def constant(op, number, place, value, dtype=np.float32):
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
    node = next(n for n in g.of("GatherND") if norm.input[0] in n.input)
    node.input[0] = norm.output[0]
    return node.name


def chosen_by_doubled_scores(g):
    """Same order, so no image shows it."""
    node = g.selections()[0][0]
    doubled = helper.make_node("Add", [node.input[0]] * 2, ["f_doubled"], "f_doubled")
    g.nodes.insert(list(g.nodes).index(node), doubled)
    node.input[0] = "f_doubled"
    return node.name


def scores_shifted(g):
    """The score of a patch of the second stage is that of the token before it."""
    node = g.scored(1)
    g.own(node, 1, np.array([0]))
    g.own(node, 2, np.array([12]))
    return node.name


def row_of_the_class_token(g):
    """The first patch goes on in the place of the class token."""
    node = g.of("Pad")[0]
    g.own(node, 2, np.array(1))
    return node.name


def rows_of_the_norm(g):
    """The rows of the queries are gathered from the normalised tokens."""
    node = g.rows(1)[1]
    node.input[0] = g.reader(g.tensor("blocks.1.norm1.weight")).output[0]
    return node.name


def last_row_of_a_patch(g):
    node = g.reader(g.of("Split")[2].output[0])
    g.own(node, 1, np.array([1]))
    g.own(node, 2, np.array([2]))
    return node.name


def keys_not_transposed(g):
    node = g.maker(g.maker(g.of("Softmax")[0].input[0]).input[1])
    g.attribute(node, "perm", [0, 2, 1, 3])
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


def scale(name, change):
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


def as_unsigned(g):
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
    """One bit of the matrix by which a quantized layer's tokens are scored, which is in full precision."""
    node = g.of("Gemm")[0]
    place = next(i for i, name in enumerate(node.input) if g.is_weight(name))
    g.set(node.input[place], one_bit(g.value(node.input[place]).copy()))
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
    node = g.of("Split")[2]
    node.output[1], node.output[2] = node.output[2], node.output[1]
    return node.name


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
    value = helper.make_tensor_value_info(g.of("Softmax")[0].output[0], onnx.TensorProto.FLOAT, None)
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
    first = edit("blocks.0.attn.qkv", lambda a: a[::-1])(g)
    other_op("Gelu", 1, "Relu")(g)
    return first


def structure_before_weight(g):
    edit("blocks.1.mlp.fc2", lambda a: a[::-1])(g)
    return other_op("Gelu", 0, "Relu")(g)


def silent_before_loud(g):
    """A bit that no limit shows stands before a fault that every image shows."""
    first = edit_exactly("patch_embed.proj.weight", one_bit)(g)
    other_op("Gelu", 1, "Relu")(g)
    return first


def dead_before_loud(g):
    other_op("Gelu", 1, "Relu")(g)
    return dead_branch(g)
