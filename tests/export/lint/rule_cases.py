"""For each rule a graph that breaks it and nothing else, and the same graph mended."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper

from gft_edge.hardware.tensorrt_versions import Platform, platform

from .lint_graphs import graph

F = np.float32
S, Z = F(0.1), np.int8(0)
W = np.ones((32, 32), np.int8)
WS, WZ = np.full(32, 0.01, F), np.zeros(32, np.int8)
ONE, GAMMA = np.array([1], np.int64), np.ones(32, F)
QUANTIZED = {"s": S, "z": Z, "w": W, "ws": WS, "wz": WZ}
QDQ = "{0}q = QuantizeLinear({0}, s, z) {0}d = DequantizeLinear({0}q, s, z) "
LINEAR = QDQ.format("x") + "wd = DequantizeLinear<axis: int = 1>(w, ws, wz) "
HEADS = "float[B,2,T,16] a, float[B,2,16,T] b, float[B,2,T,16] c"
ATTEND = "float[B,2,T,16] y"


def heads(tokens: int, dtype: str = "float") -> dict[str, str]:
    shape = {"inputs": HEADS, "outputs": ATTEND}
    return {name: text.replace("T", str(tokens)).replace("float", dtype) for name, text in shape.items()}


def attention(quantized: str = "") -> str:
    body = "".join(QDQ.format(name) for name in quantized if name != "p")
    a, b, c = (name + "d" if name in quantized else name for name in "abc")
    body += f"s_ = MatMul({a}, {b}) p = Softmax(s_) "
    body += QDQ.format("p") if "p" in quantized else ""
    return body + f"y = MatMul({'pd' if 'p' in quantized else 'p'}, {c})"


LAYER_NORM = """m = ReduceMean<keepdims: int = 1>(x, axes) c = Sub(x, m) q = Pow(c, two)
    v = ReduceMean<keepdims: int = 1>(q, axes) e = Add(v, eps) r = Sqrt(e) y = Div(c, r)"""
NORM = {"two": F(2), "eps": F(1e-3), "axes": np.array([2], np.int64)}
CHOSEN = "u = Cast<to: int = 7>(u0) c = GatherND<batch_dims: int = 1>(x, u) g = Relu(x) f = GatherND<batch_dims: int = 1>(g, u) "
"""Patches of the stream, and the same ones of a branch that is computed before the choice."""
CHOICE = {"inputs": "float[B,8,32] x, int32[B,4,1] u0", "outputs": "float[B,4,32] y"}
HALF = {"inputs": "float16[B,8,32] x", "outputs": "float16[B,8,32] y"}
SELECT = {"outputs": "float[B,K,32] y", "axes": np.array([2], np.int64), "last": np.array([2], np.int64)}
TOPK = """t, i = TopK<axis: int = 1>(score, k) u = Unsqueeze(i, last) y = GatherND<batch_dims: int = 1>(x, u)"""
SCORE = "n = LayerNormalization(x, g) score = ReduceMean<keepdims: int = 0>(n, axes) "
SCORE_QUANTIZED = f"n = LayerNormalization(x, g) {QDQ.format('n')} score = ReduceMean<keepdims: int = 0>(nd, axes) "


def normalized(dtype: type, opset: int) -> onnx.ModelProto:
    body, constants = LAYER_NORM, {"two": dtype(2), "eps": dtype(1e-3), "axes": np.array([2], np.int64)}
    if opset < 18:
        body = body.replace(", axes)", ")").replace("int = 1>", "int = 1, axes = [2]>")
        del constants["axes"]
    return graph(body, opset=opset, **(HALF if dtype is np.float16 else {}), **constants)


def qdq_weight(weight_scale=WS, axis: str = "<axis: int = 1>", weight=W, product: str = "MatMul(xd, wd)", **more):
    body = QDQ.format("x") + f"wd = DequantizeLinear{axis}(w, ws, wz) y = {product}"
    zeros = np.zeros(np.shape(weight_scale), np.int8)
    return graph(body, **{"s": S, "z": Z, "w": weight, "ws": weight_scale, "wz": zeros, **more})


def fp8() -> onnx.ModelProto:
    zero = helper.make_tensor("z", onnx.TensorProto.FLOAT8E4M3FN, [], [0.0])
    weight = helper.make_tensor("w", onnx.TensorProto.FLOAT8E4M3FN, [32, 32], [1.0] * 1024)
    zeros = helper.make_tensor("wz", onnx.TensorProto.FLOAT8E4M3FN, [32], [0.0] * 32)
    return graph(LINEAR + "y = MatMul(xd, wd)", s=S, z=zero, w=weight, ws=WS, wz=zeros)


RTX, NANO, OLD = platform("rtx"), platform("orin-nano", "10.3"), platform("orin-nano", "8.6")
ANY = Platform()


@dataclass(frozen=True)
class Case:
    rule: str
    bad: onnx.ModelProto
    good: onnx.ModelProto
    at: str
    """Part of the place and message that is found."""
    platform: Platform = ANY
    severity: str = "error"


CLEAN = qdq_weight()

CASES = {
    "decomposed LayerNorm in FP16": Case(
        "GE001",
        normalized(np.float16, 20),
        graph("y = LayerNormalization(x, g)", **HALF, g=np.ones(32, np.float16)),
        "Sqrt",
    ),
    "decomposed LayerNorm where a flag may make it FP16": Case(
        "GE001", normalized(F, 17), graph("y = LayerNormalization(x, g)", g=GAMMA, opset=17), "Sqrt", OLD, "warning"
    ),
    "residual sum": Case(
        "GE002",
        graph("f = Relu(x)" + QDQ.format("x") + QDQ.format("f") + "y = Add(xd, fd)", s=S, z=Z),
        graph("f = Relu(x) y = Add(x, f)"),
        "a residual sum reads quantized values",
    ),
    "residual sum of chosen patches": Case(
        "GE002",
        graph(CHOSEN + QDQ.format("f") + "y = Add(c, fd)", **CHOICE, s=S, z=Z),
        graph(CHOSEN + "y = Add(c, f)", **CHOICE),
        "Add y",
    ),
    "first product alone": Case(
        "GE003",
        graph(attention(quantized="ab"), **heads(8), s=S, z=Z),
        graph(attention(quantized="abcp"), **heads(8), s=S, z=Z),
        "its queries and keys are quantized, its probabilities are not",
    ),
    "softmax alone": Case(
        "GE003",
        graph(attention(quantized="pc"), **heads(8), s=S, z=Z),
        graph(attention(quantized="abcp"), **heads(8), s=S, z=Z),
        "QuantizeLinear pq",
    ),
    "input of a LayerNorm of separate operators": Case(
        "GE004",
        graph(QDQ.format("x") + LAYER_NORM.replace("(x,", "(xd,"), s=S, z=Z, **NORM),
        graph(LAYER_NORM, **NORM),
        "begins a normalisation",
    ),
    "LayerNorm input": Case(
        "GE004",
        graph(QDQ.format("x") + "y = LayerNormalization(xd, g)", s=S, z=Z, g=GAMMA),
        graph(
            "n = LayerNormalization(x, g)" + QDQ.format("n") + "wd = DequantizeLinear(w, s, z) y = MatMul(nd, wd)",
            s=S,
            z=Z,
            g=GAMMA,
            w=W,
        ),
        "LayerNormalization y",
    ),
    "importance path": Case(
        "GE005",
        graph(SCORE_QUANTIZED + TOPK, **SELECT, g=GAMMA, s=S, z=Z, k=np.array([4], np.int64)),
        graph(SCORE + TOPK, **SELECT, g=GAMMA, k=np.array([4], np.int64)),
        "decides which patches stay",
    ),
    "one operand": Case(
        "GE006",
        graph("wd = DequantizeLinear<axis: int = 1>(w, ws, wz) y = MatMul(x, wd)", w=W, ws=WS, wz=WZ),
        CLEAN,
        "only its second operand",
        severity="warning",
    ),
    "cast between": Case(
        "GE007",
        graph(
            LINEAR + "xc = Cast<to: int = 10>(xd) wc = Cast<to: int = 10>(wd) y = MatMul(xc, wc)",
            outputs="float16[B,8,32] y",
            **QUANTIZED,
        ),
        CLEAN,
        "between DequantizeLinear and MatMul y",
        severity="warning",
    ),
    "scale computed": Case(
        "GE008",
        graph(
            LINEAR + "y = MatMul(xd, wd)",
            "float[B,8,32] x, float s",
            **{k: v for k, v in QUANTIZED.items() if k != "s"},
        ),
        CLEAN,
        "scale s is not a constant",
    ),
    "scale zero": Case("GE008", qdq_weight(np.r_[F(0), WS[1:]]), CLEAN, "1 of 32 scales"),
    "scale negative": Case("GE008", qdq_weight(s=F(-0.1)), CLEAN, "1 of 1 scales"),
    "scale not finite": Case("GE008", qdq_weight(np.r_[WS[2:], F(np.nan), F(np.inf)]), CLEAN, "2 of 32 scales"),
    "zero point": Case("GE009", qdq_weight(z=np.int8(3)), CLEAN, "zero point is not 0"),
    "zero point of UINT8": Case("GE009", qdq_weight(z=np.uint8(0)), CLEAN, "UINT8"),
    "zero point missing": Case(
        "GE009",
        graph(
            "xq = QuantizeLinear(x, s) xd = DequantizeLinear(xq, s) wd = DequantizeLinear(w, s, z) y = MatMul(xd, wd)",
            opset=17,
            s=S,
            z=Z,
            w=W,
        ),
        graph(LINEAR + "y = MatMul(xd, wd)", opset=17, **QUANTIZED),
        "which TensorRT 8.6",
        OLD,
    ),
    "axis of MatMul": Case("GE010", qdq_weight(axis="<axis: int = 0>"), CLEAN, "output channels on axis 1"),
    "axis of Gemm": Case(
        "GE010",
        graph(
            "xq = QuantizeLinear(x, s, z) xd = DequantizeLinear(xq, s, z) wd = DequantizeLinear<axis: int = 1>(w, ws, wz)"
            "y = Gemm<transB: int = 1>(xd, wd)",
            "float[B,32] x",
            "float[B,32] y",
            **QUANTIZED,
        ),
        graph(
            "xq = QuantizeLinear(x, s, z) xd = DequantizeLinear(xq, s, z) wd = DequantizeLinear<axis: int = 0>(w, ws, wz)"
            "y = Gemm<transB: int = 1>(xd, wd)",
            "float[B,32] x",
            "float[B,32] y",
            **QUANTIZED,
        ),
        "output channels on axis 0",
    ),
    "axis behind Transpose": Case(
        "GE010",
        graph(LINEAR + "wt = Transpose<perm = [1, 0]>(wd) y = MatMul(xd, wt)", **QUANTIZED),
        graph(
            LINEAR.replace("int = 1", "int = 0") + "wt = Transpose<perm = [1, 0]>(wd) y = MatMul(xd, wt)", **QUANTIZED
        ),
        "output channels on axis 0",
    ),
    "axis missing": Case("GE010", qdq_weight(axis=""), CLEAN, "without an axis"),
    "axis too short": Case(
        "GE010",
        qdq_weight(np.full(16, 0.01, F), weight=np.ones((32, 32), np.int8)),
        CLEAN,
        "16 scales along axis 1, which has 32 channels",
    ),
    "k computed": Case(
        "GE011",
        graph("k = Cast<to: int = 7>(k32)" + SCORE + TOPK, "float[B,8,32] x, int32[1] k32", **SELECT, g=GAMMA),
        graph(SCORE + TOPK, **SELECT, g=GAMMA, k=np.array([4], np.int64)),
        "is not a constant",
    ),
    "k too large": Case(
        "GE011",
        graph(SCORE + TOPK, "float[B,4000,32] x", **SELECT, g=GAMMA, k=np.array([3841], np.int64)),
        graph(SCORE + TOPK, "float[B,4000,32] x", **SELECT, g=GAMMA, k=np.array([3840], np.int64)),
        "k is 3841, the limit is 3840",
    ),
    "integers sorted by 8.6": Case(
        "GE011",
        graph(
            "w = Cast<to: int = 7>(x) y, i = TopK(w, k)", "float[B,32] x", "int64[B,4] y", 17, k=np.array([4], np.int64)
        ),
        graph("y, i = TopK(x, k)", "float[B,32] x", "float[B,4] y", 17, k=np.array([4], np.int64)),
        "sorts integers",
        OLD,
    ),
    "NonZero": Case(
        "GE012",
        graph("i = NonZero(x) y = Cast<to: int = 1>(i)", outputs="float[3,N] y"),
        graph("y = Relu(x)"),
        "depends on the data",
    ),
    "probabilities read twice": Case(
        "GE013",
        graph(
            attention() + " extra = ReduceMean<keepdims: int = 0>(p, axes)",
            HEADS.replace("T", "8"),
            ATTEND.replace("T", "8") + ", float[B,2,8] extra",
            axes=np.array([3], np.int64),
        ),
        graph(attention(), **heads(8)),
        "also read by ReduceMean",
        severity="warning",
    ),
    "scores read twice": Case(
        "GE013",
        graph(
            attention() + " extra = ReduceMean<keepdims: int = 0>(s_, axes)",
            HEADS.replace("T", "8"),
            ATTEND.replace("T", "8") + ", float[B,2,8] extra",
            axes=np.array([3], np.int64),
        ),
        graph(attention(), **heads(8)),
        "also read by ReduceMean",
        severity="warning",
    ),
    "probabilities returned": Case(
        "GE013",
        graph(attention(), HEADS.replace("T", "8"), ATTEND.replace("T", "8") + ", float[B,2,8,8] p"),
        graph(attention(), **heads(8)),
        "is an output",
        severity="warning",
    ),
    "INT64 input": Case(
        "GE014",
        graph("y = Gather<axis: int = 1>(x, i)", "float[B,8,32] x, int64[8] i"),
        graph("y = Gather<axis: int = 1>(x, i)", "float[B,8,32] x, int32[8] i"),
        "input i is INT64",
        severity="warning",
    ),
    "INT64 input of 8.6": Case(
        "GE014",
        graph("y = Gather<axis: int = 1>(x, i)", "float[B,8,32] x, int64[8] i", opset=17),
        graph("y = Gather<axis: int = 1>(x, i)", "float[B,8,32] x, int32[8] i", opset=17),
        "input i is INT64",
        OLD,
    ),
    "opset of 10.3": Case("GE015", graph("y = Relu(x)", opset=21), graph("y = Relu(x)"), "opset 21", NANO),
    "opset of 8.6": Case("GE015", graph("y = Relu(x)", opset=18), graph("y = Relu(x)", opset=17), "reads 7 to 17", OLD),
    "long INT8 attention": Case(
        "GE016",
        graph(attention(quantized="abcp"), **heads(513), s=S, z=Z),
        graph(attention(quantized="abcp"), **heads(512), s=S, z=Z),
        "over 513 tokens",
    ),
    "Attention in FP32": Case(
        "GE017",
        graph(
            "y = Attention(a, b, c)", "float[B,2,8,16] a, float[B,2,8,16] b, float[B,2,8,16] c", "float[B,2,8,16] y", 23
        ),
        graph(
            "y = Attention(a, b, c)",
            "float16[B,2,8,16] a, float16[B,2,8,16] b, float16[B,2,8,16] c",
            "float16[B,2,8,16] y",
            23,
        ),
        "Attention y",
    ),
    "scatter with reduction": Case(
        "GE018",
        graph(
            'y = ScatterElements<axis: int = 1, reduction: string = "add">(x, i, u)',
            "float[B,8,32] x, int32[B,8,32] i, float[B,8,32] u",
        ),
        graph("y = ScatterElements<axis: int = 1>(x, i, u)", "float[B,8,32] x, int32[B,8,32] i, float[B,8,32] u"),
        "'add'",
    ),
    "FP8 on Orin": Case("GE019", fp8(), CLEAN, "FP8 needs compute capability 8.9", NANO),
    "FP32 on Turing with RTX": Case(
        "GE019",
        graph("y = MatMul(x, w)", w=np.ones((32, 32), F)),
        graph("y = MatMul(x, w)", **HALF, w=np.ones((32, 32), np.float16)),
        "no FP32 matrix products",
        Platform("rtx", "7.5", "TensorRT-RTX"),
    ),
    "scale of another type": Case(
        "GE020",
        graph(LINEAR + "y = MatMul(xd, wd)", "float16[B,8,32] x", **{**QUANTIZED, "s": S}),
        graph(
            LINEAR + "y = MatMul(xd, wd)", **HALF, **{**QUANTIZED, "s": np.float16(0.1), "ws": WS.astype(np.float16)}
        ),
        "scale is fp32, the tensor is fp16",
    ),
    "quantized bias": Case(
        "GE021",
        graph(
            LINEAR + "m = MatMul(xd, wd) bd = DequantizeLinear(b, s) y = Add(m, bd)",
            **QUANTIZED,
            b=np.ones(32, np.int32),
        ),
        graph(LINEAR + "m = MatMul(xd, wd) y = Add(m, b)", **QUANTIZED, b=np.ones(32, F)),
        "INT32 bias",
    ),
    "UINT8 moved before the cast": Case(
        "GE024",
        graph("t = Transpose<perm = [0, 2, 1]>(x) y = Cast<to: int = 1>(t)", "uint8[B,8,32] x", "float[B,32,8] y"),
        graph("f = Cast<to: int = 1>(x) y = Transpose<perm = [0, 2, 1]>(f)", "uint8[B,8,32] x", "float[B,32,8] y"),
        "Transpose t reads the UINT8 input x",
    ),
    "minus infinity": Case(
        "GE023",
        graph(
            "h = Where(keep, x, low) y = Softmax(h)",
            "float16[B,8,32] x, bool[B,8,32] keep",
            "float16[B,8,32] y",
            low=np.float16(-np.inf),
        ),
        graph(
            "h = Where(keep, x, low) y = Softmax(h)",
            "float16[B,8,32] x, bool[B,8,32] keep",
            "float16[B,8,32] y",
            low=np.float16(-1e4),
        ),
        "minus infinity",
        severity="warning",
    ),
}
