"""Scenes: fixed bytes, disjoint splits, marks where they are said to be, distractors that say nothing about the class."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gft_edge.data import scenes
from gft_edge.data.canvas import glyph, noise, photographs_in, shape, stroke, texture, texture_count
from gft_edge.data.datasets import Subset, is_folder, is_rendered, match_labels, open_images, split_names
from gft_edge.data.for_model import known_data
from gft_edge.data.marks import marked_patches
from gft_edge.data.scenes import DISTRACTORS, LABELS, SHARE, SIGNS, Scenes
from gft_edge.data.splits import SPLITS
from gft_edge.data.typefaces import FACES
from gft_edge.errors import ConfigError, DataError, GFTEdgeError
from gft_edge.preprocess import PreprocessSpec


@pytest.fixture(scope="module")
def sets():
    return {split: Scenes(split, 160, 96, seed=3) for split in SPLITS}


@pytest.fixture
def photographs(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "more").mkdir()
    for number in range(12):
        pixels = rng.integers(0, 256, (40, 60 + number, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / ("more" if number % 2 else "") / f"{number}.png")
    return tmp_path


@pytest.mark.parametrize("index", [0, 7, 31])
def test_an_image_is_fixed_by_split_seed_and_index(sets, index):
    image, label = sets["train"][index]
    texture.cache_clear()
    scenes.stored_glyph.cache_clear()
    again, same_label = Scenes("train", 1000, 96, seed=3)[index]
    np.testing.assert_array_equal(image, again)
    assert (image.shape, image.dtype, label) == ((96, 96, 3), np.uint8, same_label)
    others = (sets["val"], Scenes("train", 160, 96, 4), Scenes("train", 160, 96, 3, distractors=5))
    assert not any(np.array_equal(other[index][0], image) for other in others)
    assert not np.array_equal(sets["train"][index + 16][0], image)


def test_every_label_takes_its_turn(sets):
    images = sets["val"]
    assert [images[i][1] for i in range(32)] == list(range(16)) * 2 == images.class_numbers()[:32]
    assert Counter(images.class_numbers()) == dict.fromkeys(range(16), 10)
    assert images.labels == LABELS
    assert images.name(12) == "scenes val 12"
    assert (images.rendered_split, images.notes) == ("val", ())


def test_iteration_ends_with_the_last_image():
    images = Scenes("train", 3, 64, share=0.04)
    assert len(images) == len([*images]) == 3
    for index in (-1, 3):
        for read in (images.__getitem__, images.marks, images.mark_box):
            with pytest.raises(IndexError):
                read(index)


@pytest.mark.parametrize(
    ("size", "share", "scale"),
    [(96, 0.015, 1.0), (192, 0.015, 1.0), (192, 0.04, 1.0), (64, 0.24, 1.0), (128, 0.005, 1.0), (96, 0.015, 2.0)],
)
def test_the_mark_has_the_share_and_holds_all_its_ink(size, share, scale):
    images = Scenes("train", 48, size, seed=1, share=share, scale=scale)
    covered = []
    for index in range(len(images)):
        with_mark, without = (images.drawn(index, drawn).astype(int) for drawn in (True, False))
        ink = (with_mark != without).any(axis=2)
        left, top, right, bottom = images.mark_box(index)
        assert 0 <= left < right <= size
        assert 0 <= top < bottom <= size
        assert not (ink & ~images.marks(index)).any()
        rows, columns = np.nonzero(images.marks(index))
        assert (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1) == (left, top, right, bottom)
        assert ink.sum() > 0.6 * images.marks(index).sum()
        covered.append((right - left) * (bottom - top) / size**2)
    assert max(covered) <= share * scale**2
    assert np.mean(covered) > 0.5 * share * scale**2


def test_patches_are_those_with_ink(sets):
    for index in range(8):
        marks = sets["test"].marks(index)
        found = marked_patches(marks, PreprocessSpec(96, 96), (12, 12)).reshape(12, 12)
        for row in range(12):
            for column in range(12):
                cell = marks[row * 8 : row * 8 + 8, column * 8 : column * 8 + 8]
                assert found[row, column] == bool(cell.sum())
        left, top, right, bottom = sets["test"].mark_box(index)
        assert found.sum() <= (math.ceil((right - left) / 8) + 1) * (math.ceil((bottom - top) / 8) + 1)


def test_splits_share_no_arrangement_and_no_texture():
    """A letter stands in a typeface at a place in one split alone."""
    found = {split: set() for split in SPLITS}
    for split in SPLITS:
        images = Scenes(split, 1600, 64, seed=0)
        for index in range(len(images)):
            left, top, *_ = images.mark_box(index)
            face = int(np.random.default_rng([0, SPLITS.index(split), index, 0]).integers(len(FACES)))
            found[split].add((LABELS[index % 16], face, left, top))
    assert not found["train"] & found["val"]
    assert not found["train"] & found["test"]
    assert not found["val"] & found["test"]
    assert all(len(places) > 1500 for places in found.values())
    textures = [texture(0, part, number, 32).tobytes() for part in range(3) for number in range(texture_count())]
    assert len(set(textures)) == len(textures)


def test_marks_are_anywhere(sets):
    boxes = np.array([sets["train"].mark_box(index) for index in range(160)])
    middle = (boxes[:, :2] + boxes[:, 2:]) / 2
    assert (np.abs(middle.mean(axis=0) - 48) < 8).all()
    assert (middle.min(axis=0) < 15).all()
    assert (middle.max(axis=0) > 81).all()


def test_distractors_are_never_letters_and_do_not_depend_on_the_class(monkeypatch):
    """The signs of an image are drawn from a stream that does not know the class."""
    assert not set(SIGNS) & set(LABELS)
    assert not set(SIGNS) & set("068")
    drawn: list[str] = []

    def recorded(file, text, area, angle):
        drawn.append(text)
        return glyph(file, text, area, angle)

    monkeypatch.setattr(scenes, "stored_glyph", recorded)
    images = Scenes("train", 320, 64, share=0.02)
    signs = []
    for index in range(len(images)):
        drawn.clear()
        images.drawn(index)
        signs.append("".join(drawn))
    assert set("".join(signs)) == set(SIGNS)
    monkeypatch.setattr(scenes, "LABELS", LABELS[::-1])
    for index in range(32):
        drawn.clear()
        images.drawn(index)
        assert "".join(drawn) == signs[index], "another class at the same index has the same signs"


def test_distractors_do_not_touch_the_mark():
    for index in range(32):
        full = Scenes("train", 32, 96, seed=5, distractors=30, share=0.03)
        none = dataclasses.replace(full, distractors=0)
        left, top, right, bottom = full.mark_box(index)
        changed = (full.drawn(index, False) != none.drawn(index, False)).any(axis=2)
        assert changed.sum() > 500
        assert not changed[top:bottom, left:right].any()


def test_clutter_and_scale_are_axes():
    plain = Scenes("train", 8, 96, seed=5, distractors=0)
    inked = [
        np.mean([(s.drawn(i, False) != plain.drawn(i, False)).any(axis=2).mean() for i in range(8)])
        for s in (dataclasses.replace(plain, distractors=count) for count in (2, 8, 32))
    ]
    assert 0 < inked[0] < inked[1] < inked[2]
    areas = [np.mean([dataclasses.replace(plain, scale=s).marks(i).sum() for i in range(8)]) for s in (1.0, 1.5, 2.0)]
    assert areas[1] / areas[0] == pytest.approx(2.25, rel=0.3)
    assert areas[2] / areas[0] == pytest.approx(4, rel=0.3)


def test_ink_stands_out_from_what_it_covers(sets):
    for index in range(64):
        images = sets["test"]
        marks = images.marks(index)
        with_mark, without = (images.drawn(index, drawn).mean(axis=2) for drawn in (True, False))
        left, top, right, bottom = images.mark_box(index)
        strongest = np.abs(with_mark - without[top:bottom, left:right].mean())[marks].max()
        assert strongest > 50


@pytest.mark.parametrize("letter", LABELS)
def test_letters_of_every_typeface_are_within_the_area(letter):
    for _, file in FACES:
        for area, angle in ((100.0, -10.0), (550.0, 0.0), (2000.0, 7.3)):
            mask = glyph(file, letter, area, angle)
            assert 0.5 * area < mask.size <= area
            assert mask.max() > 150
            for edge in (mask[0], mask[-1], mask[:, 0], mask[:, -1]):
                assert edge.any()


def test_shapes_and_strokes_are_cut_out_at_their_ink():
    rng = np.random.default_rng(0)
    for draw in (shape, stroke):
        for _ in range(40):
            mask = draw(rng, 24.0)
            assert mask.dtype == np.uint8
            assert max(mask.shape) <= 31
            assert mask[0].any()
            assert mask[:, -1].any()


def test_textures_are_of_all_kinds_and_use_all_levels():
    assert texture_count() % 5 == 0
    for number in range(10):
        grey = texture(0, 0, number, 96)
        assert (grey.shape, grey.min(), grey.max()) == ((96, 96), 0, 255)
        assert grey.std() > 15
        with pytest.raises(ValueError, match="read-only"):
            grey[0, 0] = 1
    assert abs(noise(0, 128).mean()) < 0.5
    assert noise(0, 128).std() == pytest.approx(16, abs=1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"split": "valid"}, "split must be one of train, val, test, found 'valid'"),
        ({"num_images": 0}, "needs one image or more of at least 64 px, found 0 of 192 px"),
        ({"size": 63}, "needs one image or more of at least 64 px, found 16 of 63 px"),
        ({"distractors": -1}, "distractors must be 0 to 200, found -1"),
        ({"distractors": 201}, "distractors must be 0 to 200, found 201"),
        ({"share": 0.0}, "share and scale must be above 0 and finite, found 0 and 1"),
        ({"share": math.nan}, "share and scale must be above 0 and finite, found nan"),
        ({"scale": math.inf}, "share and scale must be above 0 and finite, found 0.015 and inf"),
        (
            {"share": 1.0},
            r"a mark of 192 px \(share 1, scale 1\) is too large for a canvas of 192 px, which takes 96 px; lower share",
        ),
        ({"scale": 9.0}, r"a mark of 212 px \(share 0.015, scale 9\) is too large for a canvas of 192 px"),
        ({"share": 0.0005}, r"a mark of 4.3 px \(share 0.0005 of 192 px\) cannot be read, needs 6 px; raise share"),
    ],
)
def test_what_cannot_be_drawn_is_refused(changes, message):
    with pytest.raises(ConfigError, match=f"^scenes: {message}"):
        Scenes(**{"split": "train", "num_images": 16, **changes})


def test_scenes_are_opened_by_name_with_options():
    assert open_images("scenes", "val", 16, 192, 4) == Scenes("val", 16, 192, 4)
    found = open_images("scenes,share=0.02,distractors=9", "val", 16, 192)
    assert found == Scenes("val", 16, 192, share=0.02, distractors=9)
    for name in ("scenes", "scenes,share=0.02", "scenes:photos"):
        assert is_rendered(name)
        assert not is_folder(name)
        assert split_names(name) == SPLITS
    assert is_folder("scenery")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("scenes,shares=0.1", r"data scenes,shares=0.1: unknown key shares \(did you mean 'share'\?\)"),
        ("scenes,share", "share must be of type float, found ''"),
        ("scenes,share=big", "share must be of type float, found 'big'"),
        ("scenes,distractors=2.5", "distractors must be of type int, found 2.5"),
        ("scenes,share=2", "too large for a canvas of 192 px"),
    ],
)
def test_bad_names_are_refused(name, message):
    with pytest.raises(GFTEdgeError, match=message) as error:
        open_images(name, "val", 16, 192)
    assert "\n" not in str(error.value)


def test_photographs_are_backgrounds_of_one_split_each(photographs):
    parts = {split: photographs_in(photographs, split) for split in SPLITS}
    assert sum(map(len, parts.values())) == len({path for part in parts.values() for path in part}) == 12
    assert all(parts.values())
    images = open_images(f"scenes:{photographs}", "train", 32, 96, 2)
    assert images.notes == (f"scenes train: {len(parts['train'])} photographs as backgrounds",)
    image, label = images[5]
    assert (image.shape, label) == ((96, 96, 3), 5)
    np.testing.assert_array_equal(image, images[5][0])
    assert not np.array_equal(image, Scenes("train", 32, 96, 2)[5][0])
    np.testing.assert_array_equal(images.marks(5), Scenes("train", 32, 96, 2).marks(5))


@pytest.mark.parametrize("keep", [0, 2])
def test_a_folder_without_photographs_is_refused(photographs, keep):
    for path in sorted(photographs.rglob("*.png"))[keep:]:
        path.unlink()
    (photographs / "notes.txt").write_text("no photograph")
    message = f"scenes:{photographs}: found {keep} different photographs, needs 3 or more, one for each split"
    with pytest.raises(DataError) as error:
        open_images(f"scenes:{photographs}", "val", 16, 96)
    assert str(error.value) == message


def test_a_damaged_photograph_is_named(photographs):
    for path in photographs.rglob("*.png"):
        path.write_bytes(path.read_bytes()[:60] + path.name.encode())
    with pytest.raises(DataError, match=r"image .*\.png: "):
        open_images(f"scenes:{photographs}", "val", 16, 96)[0]


def test_models_trained_on_scenes_need_no_folder(tmp_path):
    assert known_data(None, "scenes", "model") == "scenes"
    assert known_data(None, "scenes,share=0.02", "model") == "scenes,share=0.02"
    assert known_data(None, f"scenes:{tmp_path}", "model") == f"scenes:{tmp_path}"
    with pytest.raises(DataError, match="no such folder here; model was trained on it, give --data"):
        known_data(None, f"scenes:{tmp_path / 'gone'}", "model")
    assert match_labels(Scenes("val", 16, 96), LABELS, "scenes") == Scenes("val", 16, 96)
    with pytest.raises(DataError, match="its 16 classes are not the model's 2"):
        match_labels(Scenes("val", 16, 96), ("C", "G"), "scenes")


def test_scenes_go_through_the_preprocessing_unchanged():
    spec = PreprocessSpec(192, 192)
    image, _ = Scenes("val", 16)[3]
    np.testing.assert_array_equal(spec.geometry(image), image)
    assert Subset(Scenes("val", 16), (3,)).name(0) == "scenes val 3"


def test_textures_are_fixed_bytes():
    """Integers alone make them, so that they are the same on every machine."""
    digest = hashlib.sha256(b"".join(texture(1, 0, number, 64).tobytes() for number in range(10)))
    assert digest.hexdigest() == "1ad91682220ba4a1568065c4211eaeede79abd288d600b7a5761b0e31372aa0d"


DOCS = Path(__file__).parents[2] / "docs"


def test_the_program_of_the_page_runs(capsys):
    page = (DOCS / "scenes.md").read_text(encoding="utf-8")
    exec(compile(re.search(r"```python\n(.*?)```", page, re.DOTALL)[1], "docs/scenes.md", "exec"), {})
    assert capsys.readouterr().out.startswith("Q (")
    assert " ".join(LABELS) in page
    assert " ".join(SIGNS) in page
    assert f"({SHARE})" in page
    assert f"({DISTRACTORS})" in page


def test_the_picture_of_the_page_is_small():
    assert (DOCS / "scenes.png").stat().st_size <= 150_000
