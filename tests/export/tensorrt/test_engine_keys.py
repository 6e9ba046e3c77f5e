from __future__ import annotations

import onnx
import pytest

from gft_edge.export.graph.summary import summarize
from gft_edge.export.tensorrt.build_plan import engine_key
from gft_edge.export.tensorrt.options import BuildOptions
from gft_edge.export.tensorrt.planning import make_plan
from gft_edge.manifest import MODEL


@pytest.mark.parametrize(
    ("target", "options", "key"),
    [
        ("rtx", {"compute_capabilities": ("8.6", "12.0"), "batch": (1, 4, 16)}, "rtx1_sm86-sm120_fp32_b1-4-16"),
        ("h100", {"tensorrt": "10.16"}, "trt1_sm90_h100_fp32_b1-1-8"),
        ("h100", {"tensorrt": "10.16", "weak": True, "strip": True}, "trt1_sm90_h100_fp32_fp16_stripplan_b1-1-8"),
        (
            "agx-orin",
            {"tensorrt": "10.7", "weak": True, "dla": 1, "batch": (1, 1, 1)},
            "trt1_sm87_agx-orin-64gb_fp32_fp16_gpufallback_dla1_b1-1-1",
        ),
        ("h100", {"hardware_compatibility": "ampere+"}, "trt1_sm90_h100_fp32_ampereplus_b1-1-8"),
    ],
)
def test_key_names_what_an_engine_depends_on(exported, target, options, key):
    graph = summarize(onnx.load(exported("fp32-none").path / MODEL))
    assert engine_key(make_plan(graph, target, BuildOptions(**options)), "1") == key
