"""The data types of graphs by their short names, as ONNX and PyTorch name them: one table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnx import TensorProto

if TYPE_CHECKING:
    import torch

TYPES = (
    ("fp32", TensorProto.FLOAT, "float32"),
    ("fp16", TensorProto.FLOAT16, "float16"),
    ("bf16", TensorProto.BFLOAT16, "bfloat16"),
    ("fp64", TensorProto.DOUBLE, "float64"),
    ("int8", TensorProto.INT8, "int8"),
    ("uint8", TensorProto.UINT8, "uint8"),
    ("int32", TensorProto.INT32, "int32"),
    ("int64", TensorProto.INT64, "int64"),
    ("bool", TensorProto.BOOL, "bool"),
    ("fp8", TensorProto.FLOAT8E4M3FN, "float8_e4m3fn"),
    ("int4", TensorProto.INT4, ""),
)
"""Short name, element type in ONNX, name in torch (empty: none)."""

ONNX_NAMES = {element: name for name, element, _ in TYPES}
"""Short name by ONNX element type."""
FLOATS = ("fp32", "fp16", "bf16", "fp64")


def torch_dtype(name: str) -> torch.dtype:
    """Returns the PyTorch type of a short name; imports torch, which the tools of a board do without."""
    import torch

    dtype: torch.dtype = getattr(torch, next(attribute for short, _, attribute in TYPES if short == name))
    return dtype
