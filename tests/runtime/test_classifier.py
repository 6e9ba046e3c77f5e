from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gft_edge.errors import ArtifactError, CheckFailed, ConfigError, DataError
from gft_edge.runtime.classifier import Classifier
from gft_edge.stats.metrics import softmax


@pytest.fixture(scope="module")
def photos():
    """RGB images of different sizes."""
    rng = np.random.default_rng(1)
    return [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in ((32, 32), (50, 20), (7, 90))]


@pytest.fixture(scope="module")
def classifier(with_maps):
    return Classifier.load(with_maps.path, threads=1)


@pytest.fixture(scope="module")
@torch.no_grad()
def expected(tiny_model, tiny_info, photos):
    images = torch.from_numpy(np.stack([tiny_info.preprocess(photo) for photo in photos]))
    return tiny_model(images, maps=True)


def test_logits_and_labels_are_those_of_the_model(classifier, photos, expected, tiny_info):
    predictions = classifier.predict(photos)
    assert len(predictions) == 3
    logits = np.stack([p.logits for p in predictions])
    np.testing.assert_allclose(logits, expected.logits, rtol=0, atol=1e-4)
    assert [p.label for p in predictions] == [tiny_info.labels[i] for i in expected.logits.argmax(dim=1)]


def test_probability_is_the_softmax_of_the_best_class(classifier, photos, expected):
    probabilities = [p.probability for p in classifier.predict(photos)]
    assert probabilities == pytest.approx(expected.logits.softmax(dim=1).amax(dim=1).tolist(), abs=1e-5)


def test_large_logits_do_not_overflow(classifier, photos):
    outputs = classifier.session(np.zeros((1, 3, 32, 32), np.float32))
    outputs["logits"] = np.array([[1e4, -1e4, 0, 0]], np.float32)
    fake = Classifier(classifier.artifact, lambda images: outputs)
    (prediction,) = fake.predict(photos[:1])
    assert (prediction.label, prediction.probability) == ("ant", 1.0)


def test_maps_lie_on_the_patch_grid(classifier, photos, expected):
    for row, prediction in enumerate(classifier.predict(photos)):
        assert len(prediction.importance) == len(prediction.kept) == 2
        for stage, maps in enumerate(expected.stages):
            mask = np.zeros(16, bool)
            mask[maps.kept[row]] = True
            np.testing.assert_array_equal(prediction.kept[stage], mask.reshape(4, 4))
            assert prediction.importance[stage].shape == (4, 4)
            assert prediction.importance[stage].sum() == pytest.approx(1, abs=1e-5)
        np.testing.assert_allclose(
            prediction.importance[0].ravel(), expected.stages[0].importance[row], rtol=1e-3, atol=1e-5
        )
        assert not prediction.importance[1][~prediction.kept[0]].any(), "dropped before the stage"
        assert not (prediction.kept[1] & ~prediction.kept[0]).any()


def test_artefact_without_maps_gives_none(int8, photos):
    predictions = Classifier.load(str(int8.path)).predict(photos)
    assert all(p.importance == p.kept == () for p in predictions)
    assert all(p.label in int8.manifest.labels for p in predictions)


def test_one_image_alone_gives_the_same_as_among_others(classifier, photos):
    together = classifier.predict(photos)
    for photo, prediction in zip(photos, together):
        (alone,) = classifier.predict([photo])
        assert alone.label == prediction.label
        assert alone.probability == pytest.approx(prediction.probability, abs=1e-5)


@pytest.mark.parametrize(
    "image",
    [np.zeros((8, 8), np.uint8), np.zeros((8, 8, 4), np.uint8), np.zeros((8, 8, 3), np.float32)],
    ids=lambda a: f"{a.shape} {a.dtype}",
)
def test_array_that_is_no_rgb_image_is_refused(classifier, image):
    with pytest.raises(DataError, match=r"expected an \(H, W, 3\) uint8 RGB array"):
        classifier.predict([image])


def test_files_and_pillow_images_give_what_their_pixels_give(classifier, photos, tmp_path):
    pictures = [Image.fromarray(photo) for photo in photos]
    for number, picture in enumerate(pictures):
        picture.save(tmp_path / f"{number}.png")
    expected = [p.logits for p in classifier.predict(photos)]
    mixed = [photos[0], pictures[1], str(tmp_path / "2.png"), tmp_path / "0.png"]
    found = [p.logits for p in classifier.predict(mixed)]
    np.testing.assert_array_equal(found, [expected[0], expected[1], expected[2], expected[0]])
    (transparent,) = classifier.predict([Image.new("RGBA", (32, 32), (0, 0, 0, 0))])
    (white,) = classifier.predict([np.full((32, 32, 3), 255, np.uint8)])
    np.testing.assert_array_equal(transparent.logits, white.logits)


@pytest.mark.parametrize(
    "one",
    [
        None,
        7,
        "a.png",
        Path("a.png"),
        b"a",
        Image.new("RGB", (8, 8)),
        np.zeros((8, 8, 3), np.uint8),
        np.zeros((), np.uint8),
    ],
    ids=lambda one: type(one).__name__,
)
def test_one_image_in_place_of_a_list_is_refused(classifier, one):
    with pytest.raises(DataError, match="expected a list of images, found .*; put a single image into a list"):
        classifier.predict(one)


@pytest.mark.parametrize("image", [None, 7, [[0]], torch.zeros(3, 8, 8)], ids=lambda image: type(image).__name__)
def test_list_of_something_else_is_refused(classifier, photos, image):
    with pytest.raises(DataError, match=r"image 1: expected an \(H, W, 3\) uint8 RGB array, a Pillow image or a path"):
        classifier.predict([photos[0], image])


def test_file_that_cannot_be_read_is_refused(classifier, tmp_path):
    (tmp_path / "a.png").write_text("text")
    with pytest.raises(DataError, match=r"a\.png: cannot be decoded"):
        classifier.predict([tmp_path / "a.png"])
    with pytest.raises(DataError, match="image 0: cannot be decoded"):
        classifier.predict([Image.new("F", (8, 8), 7.0)])


def test_no_images_give_no_predictions(classifier):
    assert classifier.predict([]) == []


def test_images_are_run_in_batches_the_artefact_takes(classifier, photos):
    sizes = []

    def session(images):
        sizes.append(len(images))
        return classifier.session(images)

    batched = Classifier(classifier.artifact, session)
    found = batched.predict(photo for _ in range(6) for photo in photos)
    assert (len(found), sizes) == (18, [8, 8, 2])
    expected = np.stack([p.logits for p in classifier.predict(photos)])
    np.testing.assert_allclose([p.logits for p in found], np.tile(expected, (6, 1)), atol=1e-5)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_are_an_error(classifier, photos, value):
    def session(images):
        outputs = classifier.session(images)
        outputs["logits"][0, 2] = value
        return outputs

    with pytest.raises(CheckFailed, match=r"logits of 1 of 3 images are NaN or infinite \(first: image 0\)"):
        Classifier(classifier.artifact, session).predict(photos)


def test_shown_in_one_short_line(classifier, photos):
    (prediction,) = classifier.predict(photos[:1])
    assert repr(prediction) == f"Prediction(label={prediction.label!r}, probability={prediction.probability!r})"


def test_top_classes_are_in_order_and_their_probabilities_add_up(classifier, photos, tiny_info):
    (prediction,) = classifier.predict(photos[:1])
    top = classifier.top(prediction, 9)
    assert top[0] == (prediction.label, prediction.probability)
    assert sorted(label for label, _ in top) == sorted(tiny_info.labels)
    assert [p for _, p in top] == sorted((p for _, p in top), reverse=True)
    assert sum(p for _, p in top) == pytest.approx(1)
    assert classifier.top(prediction, 2) == top[:2]


def test_largest_floats_have_probabilities():
    largest = np.finfo(np.float32).max
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(softmax(np.array([[largest, -largest, 0]], np.float32)), [[1, 0, 0]])


def test_runtime_does_without_pillow_and_torch():
    code = (
        "import sys; sys.modules.update(PIL=None, torch=None, torchvision=None, timm=None)\n"
        "import gft_edge.runtime.classifier, gft_edge.runtime.image_files, gft_edge.runtime.accuracy, gft_edge.cli.verbs.predict"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_missing_artefact_and_unknown_backend_are_refused(with_maps, tmp_path):
    with pytest.raises(ArtifactError, match="no such folder"):
        Classifier.load(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="unknown backend"):
        Classifier.load(with_maps.path, "gpu")
