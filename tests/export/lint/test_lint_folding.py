"""Constants and static sizes are folded; values that depend on data are still found."""

from __future__ import annotations

import numpy as np
import pytest

from gft_edge.export.graph.folding import MAX_ELEMENTS
from gft_edge.export.graph.view import view
from gft_edge.export.lint.linter import lint

from .lint_graphs import graph, rules

ONE, TWO = np.array([1], np.int64), np.array([2], np.int64)
SELECT = "u = Unsqueeze(i, two) y = GatherND<batch_dims: int = 1>(x, u)"
KEEP = {
    "integer division": ("n = Gather(s, one) m = Mul(n, seven) k = Div(m, ten)", 137),
    "floor of a float": (
        "n = Gather(s, one) f = Cast<to: int = 1>(n) m = Mul(f, share) g = Floor(m) k = Cast<to: int = 7>(g)",
        137,
    ),
    "ceil, reshaped": (
        "n = Gather(s, at) f = Cast<to: int = 1>(n) m = Mul(f, share) g = Ceil(m) c = Cast<to: int = 7>(g) k = Reshape(c, one)",
        138,
    ),
    "slice and concat": ("n = Slice(s, one, two) m = Mul(n, seven) t = Div(m, ten) k = Concat<axis: int = 0>(t)", 137),
    "minimum with a number": ("n = Gather(s, one) k = Min(n, ten)", 10),
    "number of elements": (
        "e = ReduceMean<keepdims: int = 0>(h, two) z = Size(e) m = Div(z, thrice) k = Reshape(m, one)",
        197,
    ),
    "shape of a constant": ("w = Shape(h) n = Gather(w, one) m = Mul(n, seven) k = Div(m, ten)", 137),
    "batch that falls out": (
        "b = Gather(s, nought) z = Mul(b, nought) n = Gather(s, one) t = Add(n, z) m = Mul(t, seven) k = Div(m, ten)",
        137,
    ),
}
VALUES = {
    "one": ONE,
    "two": TWO,
    "at": np.int64(1),
    "nought": np.array([0], np.int64),
    "seven": np.array([7], np.int64),
    "ten": np.array([10], np.int64),
    "share": np.float32(0.7),
    "h": np.zeros((1, 197, 3), np.float32),
    "thrice": np.int64(1),
}


def selecting(k: str, opset: int = 20, **more):
    body = (
        f"s = Shape(x) {k} score = ReduceMean<keepdims: int = 0>(x, two) v, i = TopK<axis: int = 1>(score, k) {SELECT}"
    )
    return graph(body, "float[B,197,32] x", "float[B,K,32] y", opset, **{**VALUES, **more})


@pytest.mark.parametrize("name", KEEP)
def test_k_of_static_sizes_is_a_constant(name):
    body, expected = KEEP[name]
    model = selecting(body)
    assert lint(model).findings == ()
    found = view(model)
    assert found.constant("k").reshape(-1).tolist() == [expected]
    assert found.shape("u")[1] == expected  # and shapes after it are known


@pytest.mark.parametrize(
    "body",
    [
        "k = Gather(s, nought)",  # the batch
        "b = Gather(s, nought) k = Min(b, ten)",
        "b = Gather(s, nought) k = Mod(b, seven)",
        "b = Gather(s, nought) n = Gather(s, one) t = Sub(n, b) k = Mul(t, one)",
        "m = ReduceMax<keepdims: int = 0>(x) c = Cast<to: int = 7>(m) k = Reshape(c, one)",
    ],
)
def test_k_that_depends_on_the_input_is_found(body):
    assert "GE011" in rules(lint(selecting(body)))


def test_each_stage_may_compute_its_k_from_the_last_ones_shape():
    body, x = "", "x"
    for number in range(6):
        n = str(number)
        body += f"s{n} = Shape({x}) n{n} = Gather(s{n}, one) m{n} = Mul(n{n}, seven) k{n} = Div(m{n}, ten) "
        body += f"c{n} = ReduceMean<keepdims: int = 0>({x}, two) v{n}, i{n} = TopK<axis: int = 1>(c{n}, k{n}) "
        body += f"u{n} = Unsqueeze(i{n}, two) y{n} = GatherND<batch_dims: int = 1>({x}, u{n}) "
        x = f"y{n}"
    model = graph(f"{body} y = Relu({x})", "float[B,197,32] x", "float[B,K,32] y", **VALUES)
    assert lint(model).findings == ()
    assert view(model).constant("k5").tolist() == [22]  # 197, 137, 95, 66, 46, 32, 22


def test_old_forms_fold_too():
    body = "s = Shape(x) n = Gather(s, one) q = Squeeze<axes = [0]>(n) k = Unsqueeze<axes = [0]>(q)"
    body += " score = ReduceMean<keepdims: int = 0, axes = [2]>(x) v, i = TopK<axis: int = 1>(score, k) y = Identity(v)"
    assert lint(graph(body, "float[B,197,32] x", "float[B,K] y", 11, one=ONE)).findings == ()


def test_scales_that_are_worked_out_are_constants():
    body = "s = Div(a, b) q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z)"
    assert lint(graph(body, a=np.float32(1), b=np.float32(127), z=np.int8(0))).findings == ()
    assert rules(lint(graph(body, a=np.float32(-1), b=np.float32(127), z=np.int8(0)))) == {"GE008"}


def test_nonzero_of_constants_depends_on_no_data():
    body = "i = NonZero(mask) f = Cast<to: int = 1>(i) y = Add(x, f)"
    assert lint(graph(body, mask=np.eye(1, 32, dtype=bool))).findings == ()
    assert "GE012" in rules(lint(graph(body, "float[B,8,32] x, bool[1,32] mask")))


@pytest.mark.parametrize(
    "body",
    [
        "c = ConstantOfShape(large) r = ReduceMax<keepdims: int = 0>(c) y = Add(x, r)",
        "c = Expand(one_f, large) r = ReduceMax<keepdims: int = 0>(c) y = Add(x, r)",
        "c = Tile(one_f, large1) r = ReduceMax<keepdims: int = 0>(c) y = Add(x, r)",
        "c = Range(zero, far, step) r = ReduceMax<keepdims: int = 0>(c) y = Add(x, r)",
        "c = Mul(row, column) r = ReduceMax<keepdims: int = 0>(c) y = Add(x, r)",
    ],
)
def test_large_tensors_are_never_made(body):
    line = np.ones(MAX_ELEMENTS, np.float32)
    constants = {
        "large": np.array([1 << 20, 1 << 20], np.int64),
        "large1": np.array([1 << 40], np.int64),
        "one_f": np.ones(1, np.float32),
        "zero": np.float32(0),
        "far": np.float32(1e12),
        "step": np.float32(1),
        "row": line[None],
        "column": line[:, None],
    }
    assert view(graph(body, **constants)).constant("c") is None
