import os

import pytest
import torch

from gft_edge.checkpoint import read_weights
from gft_edge.config.recipe import DataSection, ModelSection, Recipe, TrainSection
from gft_edge.errors import ConfigError
from gft_edge.train import loop
from gft_edge.train.determinism import CUBLAS_WORKSPACE, deterministic

GPU = torch.device("cuda")


def flags():
    cudnn = torch.backends.cudnn
    memory = torch.utils.deterministic.fill_uninitialized_memory
    return torch.are_deterministic_algorithms_enabled(), cudnn.deterministic, cudnn.benchmark, memory


@pytest.mark.parametrize("given", [None, ":0:0", ":16:8"])
def test_a_gpu_gets_the_flags_for_as_long_as_it_trains(monkeypatch, given):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    monkeypatch.delenv(CUBLAS_WORKSPACE, raising=False)
    if given:
        monkeypatch.setenv(CUBLAS_WORKSPACE, given)
    before = flags()
    with deterministic(GPU, ""):
        assert flags() == (True, True, False, False)
        assert os.environ[CUBLAS_WORKSPACE] == (":16:8" if given == ":16:8" else ":4096:8")
    assert flags() == before


def test_a_cpu_is_left_alone(monkeypatch):
    monkeypatch.delenv(CUBLAS_WORKSPACE, raising=False)
    before = flags()
    with deterministic(torch.device("cpu"), ""):
        assert flags() == before
    assert CUBLAS_WORKSPACE not in os.environ


def test_an_operation_without_a_deterministic_form_is_named_with_the_remedy():
    # Also on a CPU, torch refuses this one.
    before = flags()
    with (
        pytest.raises(ConfigError, match=r"^put_ has no deterministic form on a GPU; do this$"),
        deterministic(GPU, "do this"),
    ):
        torch.zeros(3).put_(torch.tensor([0, 0]), torch.ones(2))
    assert flags() == before


def test_other_errors_pass():
    with pytest.raises(RuntimeError, match="^something else$"), deterministic(GPU, "do this"):
        raise RuntimeError("something else")


def test_training_under_the_flags_of_a_gpu_uses_no_operation_that_they_refuse(tmp_path, monkeypatch):
    recipe = Recipe(
        ModelSection(image_size=32, stages=(1, 3, 6), budget="12,8,4"),
        DataSection(train_images=16, eval_images=8, num_workers=0),
        TrainSection(
            steps=2, batch_size=4, warmup_steps=1, elastic_samples=2, drop_path=0.1, mixup=0.2, ema=0.9, recompute=True
        ),
    )
    entered = []

    def as_on_a_gpu(device, remedy):
        entered.append((device, remedy))
        return deterministic(GPU, remedy)

    loop.train(recipe, tmp_path / "plain")
    monkeypatch.setattr(loop, "deterministic", as_on_a_gpu)
    loop.train(recipe, tmp_path / "flags")
    assert [device.type for device, _ in entered] == ["cuda" if torch.cuda.is_available() else "cpu"]
    plain, flags = read_weights(tmp_path / "plain"), read_weights(tmp_path / "flags")
    assert all(torch.equal(tensor, flags[name]) for name, tensor in plain.items())
