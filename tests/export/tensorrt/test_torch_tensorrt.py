from __future__ import annotations

import pytest
from torch import nn

from gft_edge.errors import ConfigError
from gft_edge.export.graph.summary import GraphInput, GraphSummary
from gft_edge.export.tensorrt import torch_tensorrt
from gft_edge.export.tensorrt.build_plan import BuildPlan
from gft_edge.export.tensorrt.options import BuildOptions
from gft_edge.export.tensorrt.planning import make_plan
from gft_edge.export.tensorrt.torch_tensorrt import compile_torch, settings


def plan(precision: str = "fp16", target: str = "h100", rest: str | None = None, **options) -> BuildPlan:
    rest = rest or precision
    image = GraphInput("image", rest, (None, 3, 32, 32))
    graph = GraphSummary(20, precision, rest, (rest,), (image,), {}, 17, False)
    return make_plan(graph, target, BuildOptions(**options))


def test_settings_say_what_the_plan_says():
    found = settings(
        plan("fp32", workspace_mib=700, refit=True, hardware_compatibility="ampere+", optimization_level=5)
    )
    assert found["workspace_size"] == 700 << 20
    assert found["disable_tf32"] and found["hardware_compatible"]
    assert not found["immutable_weights"] and not found["version_compatible"]
    assert found["optimization_level"] == 5
    assert found["timing_cache_path"].endswith("timing_trt11.4_sm90_h100.cache")
    assert not settings(plan())["disable_tf32"]


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        (lambda: plan("int8", rest="fp16"), "ranges are in the ONNX graph"),
        (lambda: plan("fp16", "rtx"), "needs a strongly typed plan"),
        (lambda: plan("fp32", tensorrt="8.6"), "needs a strongly typed plan"),
        (lambda: plan("fp32", tensorrt="10.3", weak=True), "needs a strongly typed plan"),
        (lambda: plan("fp16", "agx-orin", dla=0, batch=(1, 1, 1)), "DLA"),
        (lambda: plan(tensorrt="10.16", hardware_compatibility="same-capability"), "same-capability"),
    ],
)
def test_plans_it_cannot_follow_are_refused(made, reason):
    with pytest.raises(ConfigError, match=reason):
        settings(made())


def test_machine_without_a_driver_is_refused_before_the_import(monkeypatch):
    monkeypatch.setattr(torch_tensorrt, "has_nvidia_driver", lambda: False)
    with pytest.raises(ConfigError, match="no NVIDIA driver here"):
        compile_torch(nn.Identity(), plan(), 32)
