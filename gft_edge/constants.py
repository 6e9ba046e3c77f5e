"""Constants that several packages need, each with its source."""

from __future__ import annotations

TEMPERATURE = 0.1
"""Temperature of the softmax that turns scores into importance."""
MAX_TOPK = 3840
"""Largest k of TensorRT's TopK in every generation (ITopKLayer), and so the largest number of patches."""
MAX_FUSED_INT8_TOKENS = 512
"""No TensorRT fuses INT8 attention over more keys, the class token included (NVIDIA/TensorRT issue 3724)."""
OPSET = 20
"""ONNX opset of exported graphs (dialect ``trt10``)."""
GRAPH_IR_VERSION = 10
"""ONNX IR version of graphs built with :mod:`onnx.helper`; the oldest that holds opset 20 with float8 types."""
VERIFY_REPORT, MAPS_REPORT = "reports/verify.json", "reports/maps.json"
"""Files of an artefact that ``verify`` writes."""
