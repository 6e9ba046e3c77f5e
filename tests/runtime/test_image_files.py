"""Predictions of image files as rows, with unreadable files and drawings that fail."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from gft_edge.errors import DataError, OutputError
from gft_edge.runtime.classifier import Classifier
from gft_edge.runtime.image_files import FilePredictions, predict_files


@pytest.fixture(scope="module")
def classifier(with_maps):
    return Classifier.open(with_maps.path, "onnxruntime", threads=1, huge_pages=False)


@pytest.fixture
def files(tmp_path):
    """Three images, and a file that is none between them."""
    paths = [tmp_path / f"{name}.png" for name in "abcd"]
    for number, path in enumerate(paths):
        pixels = np.random.default_rng(number).integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    paths[1].write_bytes(b"no image")
    return paths


def test_rows_are_the_predictions_in_order(classifier, files):
    found = predict_files(classifier, files, top=3)
    assert [row["image"] for row in found.rows] == [str(files[i]) for i in (0, 2, 3)]
    assert [entry["image"] for entry in found.unreadable] == [str(files[1])]
    assert str(files[1]) in found.unreadable[0]["problem"]
    for row, prediction in zip(found.rows, classifier.predict([files[i] for i in (0, 2, 3)])):
        assert row["label"] == prediction.label == row["top"][0]["label"]
        assert row["probability"] == pytest.approx(prediction.probability, abs=1e-5)
        assert (len(row["top"]), row["map"]) == (3, "")
    found.require_any()


def test_a_drawing_that_cannot_be_written_ends_the_drawing_alone(classifier, files):
    drawn = []

    def draw(number, done):
        drawn.append(number)
        if number == 2:
            raise OutputError("maps", "disk full")
        assert done.seen.shape == (32, 32, 3)
        return f"map {number}"

    found = predict_files(classifier, files, draw=draw)
    assert drawn == [0, 2]
    assert [row["map"] for row in found.rows] == ["map 0", "", ""]
    assert found.not_drawn is not None


@pytest.mark.parametrize("count", [1, 2])
def test_without_any_readable_file_there_is_an_error(count):
    problems = [{"image": f"{number}.png", "problem": f"image {number}.png: damaged"} for number in range(count)]
    with pytest.raises(DataError, match="image 0.png: damaged" if count == 1 else "none of the 2 images"):
        FilePredictions(unreadable=problems).require_any()
