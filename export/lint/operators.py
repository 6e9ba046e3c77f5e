"""Operators that the importers of TensorRT and TensorRT-RTX read, as data.

Sources:

- TensorRT 8.6: docs/operators.md of onnx/onnx-tensorrt for 8.5 (commit 6d0ab7be), and the additions of its changelog for 8.6
- later operators and their versions: docs/Changelog.md of onnx/onnx-tensorrt up to 10.15, docs/operators.md for 9.2 and
  10.15, and the release notes of NVIDIA/TensorRT for 11.0 (Swish) and 11.2 (DFT)
- TensorRT-RTX: ``OnnxParser.supports_operator`` of 1.7.1, which a test asks again

An importer goes by the operator's name and does not look at the domain (measured on TensorRT-RTX 1.7.1), so it takes an
operator of another domain for ONNX's if the names are equal, and searches a plugin otherwise.
"""

from __future__ import annotations

from gft_edge.export.graph.structure import STANDARD
from gft_edge.hardware.tensorrt_versions import DEFAULT_SPAN, GENERATIONS, RTX, parse_version


def names(text: str) -> frozenset[str]:
    """Returns the words of a text."""
    return frozenset(text.split())


FIRST = names(
    """
    Abs Acos Acosh Add And ArgMax ArgMin Asin Asinh Atan Atanh AveragePool BatchNormalization Cast Ceil Celu Clip Concat
    Constant ConstantOfShape Conv ConvTranspose Cos Cosh CumSum DepthToSpace DequantizeLinear Div Dropout Einsum Elu Equal
    Erf Exp Expand EyeLike Flatten Floor GRU Gather GatherElements GatherND Gemm GlobalAveragePool GlobalLpPool
    GlobalMaxPool Greater GreaterOrEqual GridSample GroupNormalization HardSigmoid HardSwish Identity If ImageScaler
    InstanceNormalization IsInf IsNaN LRN LSTM LayerNormalization LeakyRelu Less LessOrEqual Log LogSoftmax Loop
    LpNormalization LpPool MatMul Max MaxPool Mean MeanVarianceNormalization Min Mod Mul Neg NonMaxSuppression NonZero Not
    OneHot Or PRelu Pad ParametricSoftplus Pow QuantizeLinear RNN RandomNormal RandomNormalLike RandomUniform
    RandomUniformLike Range Reciprocal ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin
    ReduceProd ReduceSum ReduceSumSquare Relu Reshape Resize ReverseSequence RoiAlign Round ScaledTanh Scan Scatter
    ScatterElements ScatterND Selu Shape Shrink Sigmoid Sign Sin Sinh Size Slice Softmax Softplus Softsign SpaceToDepth
    Split Sqrt Squeeze Sub Sum Tan Tanh ThresholdedRelu Tile TopK Transpose Trilu Unsqueeze Upsample Where Xor
    """
)
"""Read by 8.6 and everything since."""

SINCE = {
    "CastLike": "9.2",
    "Hardmax": "9.2",
    "Gelu": "10.0",
    "Mish": "10.0",
    "DeformConv": "10.1",
    "BlackmanWindow": "10.4",
    "HammingWindow": "10.4",
    "HannWindow": "10.4",
    "STFT": "10.5",
    "Attention": "10.14",
    "RMSNormalization": "10.15",
    "RotaryEmbedding": "10.15",
    "TensorScatter": "10.15",
    "Swish": "11.0",
    "DFT": "11.2",
}
"""The first TensorRT that reads an operator which 8.6 does not."""

RTX_OPERATORS = (FIRST | frozenset(SINCE) | {"CausalConvWithState", "LinearAttention"}) - {"DeformConv", "DFT"}
"""Of TensorRT-RTX 1.7.1."""

RTX_MICROSOFT = names(
    """
    DequantizeLinear GroupQueryAttention MatMulNBits MultiHeadAttention QuantizeLinear RotaryEmbedding
    SimplifiedLayerNormalization SkipSimplifiedLayerNormalization
    """
)
"""Operators of domain com.microsoft that TensorRT-RTX 1.7.1 has importers for, besides those named like ONNX's own."""

QUANTIZERS = names(
    """
    TRT_FP4DynamicQuantize TRT_FP8DequantizeLinear TRT_FP8QuantizeLinear TRT_INT4DequantizeLinear TRT_INT4QuantizeLinear
    TRT_MXFP8DequantizeLinear TRT_MXFP8DynamicQuantize TRT_MXFP8QuantizeLinear
    """
)
"""Operators that NVIDIA/Model-Optimizer writes into domain trt for types that ONNX's Q/DQ did not have; read from 10.0 on."""

PLUGIN_DOMAINS = ("trt.plugins", "trt")
"""Domains of TensorRT plugins; their operators are read where the plugin's library is loaded."""

FORM_SINCE = {"CumSum": "10.8", "Einsum": "10.12"}
"""The first TensorRT that reads a computed axis of CumSum, and an ellipsis or diagonal of Einsum; RTX reads both."""


def reads(operator: str, version: str | None) -> bool:
    """Returns True if a TensorRT reads an operator of ONNX's own domain.

    Args:
        operator: its name.
        version: of TensorRT, ``"rtx"``, or None: any of :data:`gft_edge.hardware.tensorrt_versions.DEFAULT_SPAN`.
    """
    if version == RTX:
        return operator in RTX_OPERATORS
    since = first_version(operator)
    return since is not None and parse_version(since) <= parse_version(version or DEFAULT_SPAN[1])


def first_version(operator: str) -> str | None:
    """Returns the oldest TensorRT from 8.6 on that reads an operator of ONNX's own domain; None where none does."""
    return GENERATIONS[0].name if operator in FIRST else SINCE.get(operator)


def reads_form(operator: str, version: str) -> bool:
    """Returns True if a TensorRT reads the form of an operator that :data:`FORM_SINCE` dates."""
    return version == RTX or parse_version(version) >= parse_version(FORM_SINCE[operator])


def reads_foreign(domain: str, operator: str, version: str | None) -> bool:
    """Returns True if a TensorRT has an importer for an operator of a domain, without a plugin."""
    if domain in STANDARD:
        return reads(operator, version)
    if operator in QUANTIZERS and domain in ("trt", "trt.plugins"):
        return version is None or version == RTX or parse_version(version) >= (10, 0)
    return version == RTX and domain == "com.microsoft" and operator in RTX_MICROSOFT
