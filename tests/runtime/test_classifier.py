from __future__ import annotations

import numpy as np
import pytest
import torch

from gft_edge.errors import ArtifactError, ConfigError, DataError
from gft_edge.runtime.classifier import Classifier


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


def test_missing_artefact_and_unknown_backend_are_refused(with_maps, tmp_path):
    with pytest.raises(ArtifactError, match="no such folder"):
        Classifier.load(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="unknown backend"):
        Classifier.load(with_maps.path, "gpu")
