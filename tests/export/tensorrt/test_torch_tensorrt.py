from __future__ import annotations

import sys

import pytest
import torch

from gft_edge.checkpoint import load_checkpoint
from gft_edge.errors import ConfigError, MissingExtraError
from gft_edge.export.graph.summary import GraphInput, GraphSummary
from gft_edge.export.tensorrt import torch_tensorrt
from gft_edge.export.tensorrt.build_plan import BuildPlan
from gft_edge.export.tensorrt.options import BuildOptions
from gft_edge.export.tensorrt.planning import make_plan
from gft_edge.export.tensorrt.torch_tensorrt import build_torch, plan_torch, settings, traced


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


@pytest.fixture
def no_gpu(monkeypatch):
    def refuse():
        raise ConfigError("no GPU")

    monkeypatch.setattr(torch_tensorrt, "device_here", refuse)
    monkeypatch.setattr(torch_tensorrt, "installed_tensorrt", lambda: None)


@pytest.mark.usefixtures("no_gpu")
def test_plan_of_a_checkpoint_names_the_assumed_gpu(tiny_checkpoint):
    made = plan_torch(load_checkpoint(tiny_checkpoint), "fp16", BuildOptions(batch=(1, 2, 4)))
    assert (made.module, made.target, made.precision, made.rest) == ("torch_tensorrt", "h100", "fp16", "fp16")
    assert made.profile == {"image": ((1, 3, 32, 32), (2, 3, 32, 32), (4, 3, 32, 32))}
    assert made.command() is None
    assert "no NVIDIA GPU" in made.notes[0] and torch_tensorrt.UNVERIFIED in made.notes
    assert BuildPlan.from_json(made.to_json()) == made


@pytest.mark.parametrize("batch", [(2, 2, 2), (1, 1, 8)])
@pytest.mark.usefixtures("no_gpu")
def test_traced_program_computes_what_the_model_computes(tiny_checkpoint, batch):
    checkpoint = load_checkpoint(tiny_checkpoint)
    program = traced(checkpoint.model, plan_torch(checkpoint, "fp32", BuildOptions(batch=batch)), "cpu")
    images = torch.randn(batch[2], 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(program.module()(images), checkpoint.model(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("driver", "error", "word"), [(False, ConfigError, "driver"), (True, MissingExtraError, "torch-trt")]
)
@pytest.mark.usefixtures("no_gpu")
def test_missing_driver_and_missing_package_are_named(tiny_checkpoint, monkeypatch, driver, error, word):
    monkeypatch.setattr(torch_tensorrt, "has_nvidia_driver", lambda: driver)
    monkeypatch.setitem(sys.modules, "torch_tensorrt", None)
    with pytest.raises(error, match=word):
        build_torch(tiny_checkpoint, "fp32", BuildOptions())
