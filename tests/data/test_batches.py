from __future__ import annotations

import typing

import numpy as np
import pytest
import torch

from gft_edge.config.recipe import Augment
from gft_edge.data.batches import evaluation_batches
from gft_edge.data.datasets import Subset
from gft_edge.data.training import (
    NEIGHBOURS,
    BatchOptions,
    byte_batches,
    default_workers,
    normalized_on,
    training_batches,
)
from gft_edge.errors import DataError
from gft_edge.preprocess import PreprocessSpec

SPEC = PreprocessSpec(16, 16)


class Holed:
    """Image i is filled with i and of class i; the missing ones cannot be read."""

    def __init__(self, count, missing=()):
        self.labels = tuple(str(i) for i in range(count))
        self.missing = missing

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        if index in self.missing:
            raise DataError(f"image {index}: gone")
        return np.full((20, 24, 3), index, np.uint8), index


class Photographs:
    labels = ("a",)

    def __len__(self):
        return 12

    def __getitem__(self, index):
        return np.random.default_rng(index).integers(0, 256, (24, 20, 3), dtype=np.uint8), 0


def _train(images, numbers=range(6), batch_size=4, seed=0, **options):
    problem = options.pop("problem", None)
    options = BatchOptions(batch_size, seed, num_workers=0, **options)
    return list(training_batches(images, SPEC, numbers, options, problem))


def _labels(batches):
    return [label for _, labels in batches for label in labels.tolist()]


def test_every_epoch_has_every_image_once_in_an_order_of_its_own():
    epochs = np.reshape(_labels(_train(Holed(12), range(9))), (3, 12))
    assert np.array_equal(np.sort(epochs, axis=1), [range(12)] * 3)
    assert len({tuple(epoch) for epoch in epochs.tolist()}) == 3


@pytest.mark.parametrize("augment", typing.get_args(Augment))
def test_every_augmentation_keeps_the_shape_and_can_be_taken_up_at_any_batch(augment):
    whole = _train(Photographs(), augment=augment)
    again = _train(Photographs(), range(4, 6), augment=augment)
    assert {(tuple(pixels.shape), pixels.dtype) for pixels, _ in whole} == {((4, 3, 16, 16), torch.float32)}
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(whole[4:], again, strict=True))
    assert all(torch.isfinite(pixels).all() for pixels, _ in whole)


@pytest.mark.parametrize("augment", [kind for kind in typing.get_args(Augment) if kind != "none"])
def test_every_augmentation_changes_pixels_and_depends_on_the_seed(augment):
    alone = Subset(Photographs(), (3,))  # so that the order says nothing
    plain, changed, other = (
        torch.cat([pixels for pixels, _ in _train(alone, **options)])
        for options in ({}, {"augment": augment}, {"augment": augment, "seed": 1})
    )
    assert not torch.equal(changed, plain)
    assert not torch.equal(changed, other)


def test_augmenting_leaves_the_generator_of_torch_alone():
    torch.manual_seed(5)
    batches = training_batches(Photographs(), SPEC, range(6), BatchOptions(4, 0, "modern", 0))
    next(batches)
    before = torch.get_rng_state()
    list(batches)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_neighbour_takes_the_place_of_an_image_that_cannot_be_read():
    problems = []
    whole, holed = (
        _labels(_train(Holed(12, missing), range(3), problem=problems.append)) for missing in ((), (4, 5, 11))
    )
    assert holed == [{4: 6, 5: 6, 11: 0}.get(label, label) for label in whole]
    assert sorted(problems) == ["image 11: gone", "image 4: gone", "image 5: gone"]


def test_without_anyone_to_tell_an_unreadable_image_is_an_error():
    with pytest.raises(DataError, match=r"^image 4: gone$"):
        _train(Holed(12, (4,)), range(3))
    with pytest.raises(DataError, match=r"^image 4: gone; remove this file: here every image counts$"):
        list(evaluation_batches(Holed(12, (4,)), SPEC))


def test_a_run_of_unreadable_images_is_an_error_even_when_told():
    images = Holed(2 * NEIGHBOURS, range(NEIGHBOURS))
    with pytest.raises(DataError, match=r"image 0: gone; nor can the 7 images after it"):
        _train(images, range(4), problem=lambda text: None)


def test_the_error_counts_no_more_images_than_there_are():
    with pytest.raises(DataError, match="image [012]: gone; nor can the 2 images after it"):
        _train(Holed(3, range(3)), range(1), problem=lambda text: None)


def test_evaluation_leaves_unreadable_images_out_and_batches_without_any():
    problems = []
    batches = list(evaluation_batches(Holed(12, (1, 4, 5, 6, 7)), SPEC, batch_size=4, problem=problems.append))
    assert [labels.tolist() for _, labels in batches] == [[0, 2, 3], [8, 9, 10, 11]]
    red = [np.rint((pixels[:, 0, 0, 0] * SPEC.std[0] + SPEC.mean[0]) * 255).tolist() for pixels, _ in batches]
    assert red == [labels.tolist() for _, labels in batches]
    assert problems == [f"image {i}: gone" for i in (1, 4, 5, 6, 7)]


@pytest.mark.parametrize("order", ["rgb", "bgr"])
def test_a_device_normalises_to_the_bits_of_the_specification(order):
    spec = PreprocessSpec(16, 16, mean=(0.5, 0.45, 0.4), std=(0.2, 0.25, 0.3), color_order=order)
    every = np.arange(256 * 3, dtype=np.uint8).reshape(1, 16, 16, 3)
    pixels = torch.from_numpy(np.concatenate([every, every[..., ::-1], np.roll(every, 7)]))
    found = normalized_on(torch.device("cpu"), spec, pixels)
    assert found.is_contiguous()
    np.testing.assert_array_equal(found.numpy(), spec.normalize(pixels.numpy()))


def test_byte_batches_are_the_batches_before_normalisation():
    options = BatchOptions(4, 0, "light", 0)
    pairs = zip(
        byte_batches(Photographs(), SPEC, range(3), options),
        training_batches(Photographs(), SPEC, range(3), options),
        strict=True,
    )
    for (pixels, labels), (images, same_labels) in pairs:
        assert (tuple(pixels.shape), pixels.dtype) == ((4, 16, 16, 3), torch.uint8)
        np.testing.assert_array_equal(images.numpy(), SPEC.normalize(pixels.numpy()))
        assert torch.equal(labels, same_labels)


@pytest.mark.parametrize(("processors", "processes", "cpu", "gpu"), [(16, None, 4, 15), (16, 4, 1, 3), (2, None, 1, 1)])
def test_workers_by_default_follow_from_the_processors(monkeypatch, processors, processes, cpu, gpu):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(processors)), raising=False)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    if processes:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    assert (default_workers(torch.device("cpu")), default_workers(torch.device("cuda"))) == (cpu, gpu)
