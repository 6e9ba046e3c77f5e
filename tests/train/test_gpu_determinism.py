"""On a GPU: two runs of one recipe, and a resumed run, give the same weights; images arrive as the CPU normalises them."""

import dataclasses

import numpy as np
import pytest
import torch

from gft_edge.checkpoint import read_weights
from gft_edge.config.recipe import DataSection, ModelSection, Recipe, TrainSection
from gft_edge.data.training import BatchOptions, byte_batches, training_batches
from gft_edge.data.typefaces import Typefaces
from gft_edge.errors import CheckFailed
from gft_edge.preprocess import PreprocessSpec
from gft_edge.train.loop import train

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU and driver"),
]

RECIPE = Recipe(
    ModelSection(),
    DataSection(train_images=4096, eval_images=64),
    TrainSection(steps=24, batch_size=64, warmup_steps=4, elastic_samples=2, precision="bf16", checkpoint_every=12),
)


def differences(first, second):
    """Names of weights that differ between two checkpoints."""
    one, other = read_weights(first), read_weights(second)
    assert one.keys() == other.keys()
    return [name for name in one if not torch.equal(one[name], other[name])]


@pytest.mark.parametrize("precision", ["bf16", "fp16", "fp32"])
def test_two_runs_and_a_resumed_run_give_the_same_weights(tmp_path, precision):
    recipe = dataclasses.replace(RECIPE, train=dataclasses.replace(RECIPE.train, precision=precision))
    for name in ("one", "two"):
        train(recipe, tmp_path / name)
    assert differences(tmp_path / "one", tmp_path / "two") == []
    train(recipe, tmp_path / "resumed", stop_after=12)
    assert differences(tmp_path / "one", tmp_path / "resumed") != []
    train(recipe, tmp_path / "resumed", resume=True)
    assert differences(tmp_path / "one", tmp_path / "resumed") == []


def test_a_loss_that_is_not_finite_ends_the_training_without_a_checkpoint(tmp_path):
    settings = dataclasses.replace(RECIPE.train, lr=1e30, warmup_steps=0, checkpoint_every=1)
    with pytest.raises(CheckFailed, match=r"loss is (nan|inf) at step \d+"):
        train(dataclasses.replace(RECIPE, train=settings), tmp_path / "run")
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.parametrize("order", ["rgb", "bgr"])
def test_batches_on_the_gpu_have_the_bits_of_the_specification(order):
    spec = PreprocessSpec(96, 96, color_order=order)
    images, options = Typefaces("train", 64, 96), BatchOptions(16, num_workers=2, device=torch.device("cuda"))
    pairs = zip(
        byte_batches(images, spec, range(3), options), training_batches(images, spec, range(3), options), strict=True
    )
    for (pixels, labels), (batch, same_labels) in pairs:
        assert pixels.is_pinned()
        assert batch.is_cuda
        assert same_labels.tolist() == labels.tolist()
        np.testing.assert_array_equal(batch.cpu().numpy(), spec.normalize(pixels.numpy()))
