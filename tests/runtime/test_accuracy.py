from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from gft_edge.errors import CheckFailed, DataError
from gft_edge.preprocess import PreprocessSpec
from gft_edge.runtime.accuracy import WRONG_KEPT, measure_accuracy

SPEC = PreprocessSpec(4, 4)
COUNT = 150


@dataclasses.dataclass(frozen=True)
class Numbered:
    """Images whose first pixel is their number, with classes in turn; some cannot be read."""

    labels: tuple[str, ...]
    bad: frozenset[int] = frozenset()

    def __len__(self):
        return COUNT

    def __getitem__(self, index):
        if index in self.bad:
            raise DataError(f"image {index}: damaged")
        return np.full((4, 4, 3), index, np.uint8), index % len(self.labels)

    def name(self, index):
        return f"number {index}"


def numbers(pixels):
    """The numbers of preprocessed images (B, 3, 4, 4)."""
    return SPEC.pixels(pixels)[:, 0, 0, 0].astype(int)


def labels(count):
    return tuple(f"class {number}" for number in range(count))


@pytest.fixture(scope="module")
def logits():
    return np.random.default_rng(3).standard_normal((COUNT, 7)).astype(np.float32)


def test_everything_agrees_with_a_count_image_by_image(logits):
    images = Numbered(labels(7), frozenset({0, 64, 149}))
    problems = []
    (found,) = measure_accuracy(
        [("model", lambda pixels: logits[numbers(pixels)])], images, images.labels, SPEC, problems.append
    )
    assert problems == [f"image {number}: damaged" for number in (0, 64, 149)]
    confusion, top5, wrong = [[0] * 7 for _ in range(7)], 0, []
    for number in set(range(COUNT)) - images.bad:
        ordered = sorted(range(7), key=lambda index: -logits[number, index])
        confusion[number % 7][ordered[0]] += 1
        top5 += number % 7 in ordered[:5]
        if ordered[0] != number % 7:
            powers = [math.exp(value) for value in logits[number].tolist()]
            wrong.append((max(powers) / sum(powers), number, ordered[0]))
    wrong.sort(reverse=True)
    data = found.to_json()
    assert data["confusion"] == confusion
    right = sum(confusion[number][number] for number in range(7))
    assert (data["right"], found.count, data["top1"]) == (right, 147, right / 147)
    assert data["top5"] == top5 / 147
    assert data["per_class"] == [
        {"label": f"class {number}", "right": confusion[number][number], "count": sum(confusion[number])}
        for number in range(7)
    ]
    assert (data["wrong_total"], len(data["wrong"])) == (147 - right, WRONG_KEPT)
    for entry, (probability, number, predicted) in zip(data["wrong"], wrong):
        assert entry["probability"] == pytest.approx(probability, abs=1e-6)
        assert (entry["image"], entry["truth"]) == (f"number {number}", f"class {number % 7}")
        assert (entry["predicted"], entry["picture"]) == (f"class {predicted}", "")
    low, high = data["interval"]
    assert low < data["top1"] < high


def test_several_models_read_each_image_once(logits):
    read = []

    class Counted(Numbered):
        def __getitem__(self, index):
            read.append(index)
            return super().__getitem__(index)

    images = Counted(labels(7))
    perfect = np.eye(7, dtype=np.float32)[np.arange(COUNT) % 7]
    models = [
        (name, lambda pixels, table=table: table[numbers(pixels)]) for name, table in zip("ab", (perfect, logits))
    ]
    first, second = measure_accuracy(models, images, images.labels, SPEC)
    assert read == list(range(COUNT))
    assert (first.top1, first.top5, first.wrong, first.confused(5)) == (1, 1, (), [])
    assert second.top1 < 1


def test_most_frequent_mistakes_come_first():
    images = Numbered(labels(3))
    answers = {0: 1, 1: 1, 2: 0}  # class 0 is taken for 1, and 2 for 0 where the number is even

    def forward(pixels):
        classes = [answers[n % 3] if n % 3 != 2 or n % 2 == 0 else 2 for n in numbers(pixels)]
        return np.eye(3)[classes]

    (found,) = measure_accuracy([("model", forward)], images, images.labels, SPEC)
    assert found.confused(5) == [("class 0", "class 1", 50), ("class 2", "class 0", 25)]
    assert found.confused(1) == [("class 0", "class 1", 50)]


def test_top5_counts_equal_logits_as_argmax_does():
    images = Numbered(labels(7))
    (found,) = measure_accuracy([("model", lambda pixels: np.zeros((len(pixels), 7)))], images, images.labels, SPEC)
    assert found.right == sum(number % 7 == 0 for number in range(COUNT))
    assert found.top5_right == sum(number % 7 < 5 for number in range(COUNT))


def test_few_classes_have_no_top5_and_many_no_matrix():
    for count in (5, 6, 200, 201):
        images = Numbered(labels(count))
        (found,) = measure_accuracy(
            [("model", lambda pixels, count=count: np.zeros((len(pixels), count)))], images, images.labels, SPEC
        )
        assert (found.to_json()["top5"] is None) == (count == 5)
        assert ("confusion" in found.to_json()) == (count <= 200)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_are_an_error(logits, value):
    broken = logits.copy()
    broken[100, 3] = value
    images = Numbered(labels(7))
    with pytest.raises(CheckFailed, match="my model: logits of 1 of 64 images are NaN or infinite"):
        measure_accuracy([("my model", lambda pixels: broken[numbers(pixels)])], images, images.labels, SPEC)


def test_unreadable_images_are_an_error_without_someone_to_tell_and_if_all_are():
    model = [("model", lambda pixels: np.zeros((len(pixels), 3)))]
    images = Numbered(labels(3), frozenset({70}))
    with pytest.raises(DataError, match="image 70: damaged"):
        measure_accuracy(model, images, images.labels, SPEC)
    images = Numbered(labels(3), frozenset(range(COUNT)))
    with pytest.raises(DataError, match="none of the images can be read"):
        measure_accuracy(model, images, images.labels, SPEC, lambda text: None)
