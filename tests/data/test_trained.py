from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gft_edge.data.sets import Files, Relabelled, Subset
from gft_edge.data.trained import TRAINED, not_trained_on, read_trained, write_trained
from gft_edge.data.typefaces import Typefaces
from gft_edge.errors import ArtifactError, DataError


@pytest.fixture
def images(tmp_path):
    """Ten files, numbered, of two classes."""
    for number in range(10):
        (tmp_path / f"{number}.png").write_text(str(number))
    return Files(("ant", "bee"), tuple((tmp_path / f"{number}.png", number % 2) for number in range(10)), ("found",))


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "ckpt"
    folder.mkdir()
    return folder


def test_images_that_were_trained_on_are_known_by_their_content_and_left_out(images, model, tmp_path):
    write_trained(model, Subset(images, (0, 1, 2)))
    (tmp_path / "copy.JPEG").write_text("1")
    others = Files(images.labels, ((tmp_path / "copy.JPEG", 0), *images.samples[2:5]), images.notes)
    left = not_trained_on(others, model, "test", "here")
    assert left.samples == images.samples[3:5]
    assert left.notes == ("found", "left out: 2 test images of here that the model was trained on")
    for each in (Subset(images, (1, 4, 5)), Relabelled(images, ("bee", "ant"), (1, 0), ())):
        left = not_trained_on(each, model, "val", "here")
        kept = [index for index in range(len(each)) if each.name(index)[-5] not in "012"]
        assert [left.name(i) for i in range(len(left))] == [each.name(index) for index in kept]
        assert left.labels == each.labels
    swapped = not_trained_on(Relabelled(images, ("bee", "ant"), (1, 0), ()), model, "val", "here")
    assert [label for _, label in swapped.samples] == [(number + 1) % 2 for number in range(3, 10)]


def test_the_file_has_the_keys_alone_with_any_numpy(images, model, monkeypatch):
    """Before 2.2, np.savez knows no options: every keyword is an array."""
    written = {}
    monkeypatch.setattr(np, "savez", lambda file, *arrays, **named: written.update(named))
    write_trained(model, images)
    assert set(written) == {"keys"}


def test_training_images_and_images_of_other_content_are_given_back_as_they_are(images, model):
    write_trained(model, Subset(images, (0, 1, 2)))
    assert not_trained_on(images, model, "train", "here") is images
    others = Subset(images, (3, 4))
    assert not_trained_on(others, model, "test", "here") is others
    assert not_trained_on(images, model.parent, "test", "here") is images
    words = Typefaces("test", 4, 32)
    assert not_trained_on(words, model, "test", "here") is words


def test_where_nothing_is_left_it_is_an_error(images, model):
    write_trained(model, images)
    with pytest.raises(DataError, match="data here: the model was trained on all 10 test images; give other data"):
        not_trained_on(images, model, "test", "here")


def test_images_of_the_checkpoints_before_are_kept_and_equal_images_give_equal_bytes(images, model, tmp_path):
    first, second = (tmp_path / name for name in ("first", "second"))
    for folder, indices in ((first, (5, 1)), (second, (1, 5))):
        folder.mkdir()
        write_trained(folder, Subset(images, indices))
    assert (first / TRAINED).read_bytes() == (second / TRAINED).read_bytes()
    write_trained(model, Subset(images, (7,)), first, tmp_path / "none")
    assert len(read_trained(model)) == 3
    write_trained(second, None, model)
    assert np.array_equal(read_trained(second), read_trained(model))


def test_no_file_where_images_are_rendered(model):
    write_trained(model, Typefaces("train", 4, 32))
    assert not (model / TRAINED).exists()


@pytest.mark.parametrize("damage", ["text", "cut", "other"])
def test_a_damaged_file_is_refused(images, model, damage):
    write_trained(model, images)
    file = Path(model / TRAINED)
    if damage == "other":
        np.savez(file, keys=np.zeros((2, 2)))
    else:
        file.write_bytes(b"keys" if damage == "text" else file.read_bytes()[:60])
    with pytest.raises(ArtifactError, match=rf"{TRAINED}: damaged"):
        not_trained_on(images, model, "test", "here")
