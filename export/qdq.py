"""Linear layers as the exported graph has them: QuantizeLinear, DequantizeLinear, INT8 weights, one MatMul.

Symmetric INT8 with explicit zero zero-points and no quantized bias: the one form that ONNX Runtime runs as INT8 products
and that TensorRT accepts.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gft_edge.calibration.modules import QMAX, QMIN, QuantLinear

_QDQ_OPSET = 13  # per-channel scales exist since then; the meaning has not changed


class QDQLinear(nn.Module):
    """A :class:`QuantLinear` with its weights folded to INT8 of shape (in, out); only for export."""

    weight_int8: Tensor

    def __init__(self, layer: QuantLinear) -> None:
        super().__init__()
        weight_scale = layer.weight_range / QMAX
        weight = torch.round(layer.weight.detach() / weight_scale[:, None]).clamp(QMIN, QMAX)
        self.register_buffer("weight_int8", weight.to(torch.int8).t().contiguous())
        self.register_buffer("weight_scale", weight_scale)
        self.register_buffer("weight_zero", torch.zeros(len(weight_scale), dtype=torch.int8))
        self.register_buffer("input_scale", torch.tensor(layer.input_scale))
        self.register_buffer("input_zero", torch.zeros((), dtype=torch.int8))
        self.weight, self.bias = layer.weight, layer.bias  # the importance path reads the float weights

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out)."""
        version = _QDQ_OPSET
        quantized = torch.onnx.ops.symbolic(
            "QuantizeLinear", (x, self.input_scale, self.input_zero), dtype=torch.int8, shape=x.shape, version=version
        )
        x = torch.onnx.ops.symbolic(
            "DequantizeLinear",
            (quantized, self.input_scale, self.input_zero),
            dtype=torch.float32,
            shape=x.shape,
            version=version,
        )
        weight = torch.onnx.ops.symbolic(
            "DequantizeLinear",
            (self.weight_int8, self.weight_scale, self.weight_zero),
            {"axis": 1},
            dtype=torch.float32,
            shape=self.weight_int8.shape,
            version=version,
        )
        y = torch.matmul(x, weight)
        return y if self.bias is None else y + self.bias


def fold_quantizers(model: nn.Module) -> None:
    """Replaces every :class:`QuantLinear` of a model by its exported form, in place."""
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, QuantLinear):
                setattr(parent, name, QDQLinear(child))
