from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from gft_edge.data.datasets import Files
from gft_edge.errors import ConfigError, OutputError
from gft_edge.preprocess import PreprocessSpec
from gft_edge.report import mistakes
from gft_edge.report.mistakes import write_evaluation
from gft_edge.runtime.accuracy import measure_accuracy

SPEC = PreprocessSpec(16, 16)


@pytest.fixture
def images(tmp_path):
    rng = np.random.default_rng(0)
    for number in range(6):
        Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(tmp_path / f"{number}.png")
    return Files(("ant", "bee"), tuple((tmp_path / f"{number}.png", number % 2) for number in range(6)))


@pytest.fixture
def results(images):
    """A model that always says ant, surer and surer, and one that always says bee."""
    tables = [np.column_stack((np.arange(1, 7), np.zeros(6))), np.tile([0, 1], (6, 1))]
    return measure_accuracy([("model", lambda pixels, t=t: t) for t in tables], images, images.labels, SPEC)


def write(out, results, images):
    data = {"model": "m", "results": [{"budget": "b", **result.to_json()} for result in results]}
    return write_evaluation(out, data, results, images, SPEC)


def test_pictures_lie_beside_the_file_and_show_what_the_network_sees(tmp_path, results, images):
    data = write(tmp_path / "out/e.json", results, images)
    assert json.loads((tmp_path / "out/e.json").read_text()) == data
    assert [entry["image"] for entry in data["results"][0]["wrong"]] == [images.name(index) for index in (5, 3, 1)]
    names = [entry["picture"] for result in data["results"] for entry in result["wrong"]]
    assert names == [f"e-wrong/{number:03d}.png" for number in range(6)]
    for result in data["results"]:
        for entry in result["wrong"]:
            index = [images.name(number) for number in range(6)].index(entry["image"])
            shown = np.asarray(Image.open(tmp_path / "out" / entry["picture"]))
            np.testing.assert_array_equal(shown, SPEC.geometry(images[index][0]))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["e-wrong", "e.json"]


def test_an_earlier_evaluation_is_replaced_with_its_pictures(tmp_path, results, images):
    write(tmp_path / "e.json", results, images)
    data = write(tmp_path / "e.json", results[:1], images)
    assert len(list((tmp_path / "e-wrong").iterdir())) == len(data["results"][0]["wrong"]) == 3
    perfect = measure_accuracy([("model", lambda pixels: np.eye(2)[[0, 1] * 3])], images, images.labels, SPEC)
    write(tmp_path / "e.json", perfect, images)
    assert not (tmp_path / "e-wrong").exists()


def test_other_files_are_not_removed(tmp_path, results, images):
    (tmp_path / "e-wrong").mkdir()
    (tmp_path / "e-wrong/notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"e-wrong: holds 'notes\.txt', which is not a picture"):
        write(tmp_path / "e.json", results, images)
    assert (tmp_path / "e-wrong/notes.txt").read_text() == "mine"
    assert not (tmp_path / "e.json").exists()
    (tmp_path / "f-wrong").symlink_to(tmp_path)
    (tmp_path / "g-wrong").write_text("a file")
    for name in ("f.json", "g.json"):
        with pytest.raises(ConfigError, match="in the way of the folder of pictures"):
            write(tmp_path / name, results, images)


def test_nothing_is_left_of_an_attempt_that_fails(tmp_path, results, images, monkeypatch):
    write(tmp_path / "e.json", results[:1], images)
    before = sorted(path.name for path in tmp_path.rglob("*"))
    content = (tmp_path / "e.json").read_bytes()

    def full(path, pixels):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(mistakes, "write_png", full)
    with pytest.raises(OutputError, match="No space left"):
        write(tmp_path / "e.json", results, images)
    assert sorted(path.name for path in tmp_path.rglob("*")) == before
    assert (tmp_path / "e.json").read_bytes() == content


def test_an_image_that_is_gone_by_then_has_no_picture(tmp_path, results, images):
    images.samples[5][0].unlink()
    data = write(tmp_path / "out/e.json", results[:1], images)
    assert [entry["picture"] for entry in data["results"][0]["wrong"]] == ["", "e-wrong/000.png", "e-wrong/001.png"]
