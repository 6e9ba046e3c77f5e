"""Graphs for the tests of lint, from ONNX text."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper, parser


def graph(
    body: str,
    inputs: str = "float[B,8,32] x",
    outputs: str = "float[B,8,32] y",
    opset: int = 20,
    domains: tuple[str, ...] = (),
    more: str = "",
    **constants,
) -> onnx.ModelProto:
    """A graph; keyword arguments become initialisers, ``more`` holds local functions."""
    named = "".join(f', "{domain}" : 1' for domain in domains)
    text = f'<ir_version: 10, opset_import: ["" : {opset}{named}]>\ng ({inputs}) => ({outputs}) {{ {body} }}\n{more}'
    model = parser.parse_model(text)
    for name, value in constants.items():
        tensor = value if isinstance(value, onnx.TensorProto) else numpy_helper.from_array(np.asarray(value), name)
        tensor.name = name
        model.graph.initializer.append(tensor)
    return model


def rules(report) -> set[str]:
    """Rules that do not hold."""
    return {finding.rule for finding in report.findings}
