from __future__ import annotations

import dataclasses

import pytest

from gft_edge.checkpoint import CheckpointInfo, save_checkpoint
from gft_edge.config.recipe import DataSection, DistillSection, ModelSection, Recipe, TrainSection
from gft_edge.data.datasets import open_images
from gft_edge.preprocess import PreprocessSpec


@pytest.fixture(scope="session")
def labels():
    return open_images("typefaces", "train", 4, 32, 0).labels


@pytest.fixture(scope="session")
def teach(tiny_config, make_model, labels, tmp_path_factory):
    """Writes a checkpoint with random weights and the classes of the task; returns its folder."""

    def write(config=None, spec=None, classes=labels, seed=0, **changes):
        config = dataclasses.replace(config or tiny_config, num_classes=len(classes), **changes)
        spec = spec or PreprocessSpec(config.image_size, config.image_size)
        folder = tmp_path_factory.mktemp("teacher")
        save_checkpoint(folder, CheckpointInfo(config, tuple(classes), spec), make_model(config, seed))
        return folder

    return write


@pytest.fixture(scope="session")
def teacher(teach):
    """A focal teacher of 16 patches, narrower than the students."""
    return teach()


@pytest.fixture(scope="session")
def wide(teach):
    """A focal teacher of 16 patches, wider than the students."""
    return teach(embed_dim=192, num_heads=3)


@pytest.fixture(scope="session")
def recipe(teacher):
    """Makes recipes of a student of 16 patches that takes three steps of four images."""

    def make(at=teacher, train=None, data=None, **distill):
        section = DistillSection(str(at), **distill) if at is not None else None
        return Recipe(
            ModelSection(image_size=32, stages=(1, 3, 6), budget="12,8,4"),
            DataSection(**{"train_images": 40, "eval_images": 4, "num_workers": 0, **(data or {})}),
            TrainSection(**{"steps": 3, "batch_size": 4, "warmup_steps": 1, "threads": 1, **(train or {})}),
            section,
        )

    return make
