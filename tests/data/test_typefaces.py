from __future__ import annotations

import shutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from gft_edge.data import typefaces
from gft_edge.data.typefaces import FACES, LABELS, SPLITS, Typefaces, font_folder_faces, random_word, split_of
from gft_edge.errors import ConfigError, DataError


@pytest.fixture(scope="module")
def words():
    rng = np.random.default_rng(0)
    return {split: {random_word(rng, split).lower() for _ in range(400)} for split in SPLITS}


def test_vocabularies_of_the_splits_are_disjoint(words):
    for split, found in words.items():
        assert len(found) > 100
        assert {split_of(word) for word in found} == {split}
        assert not any(found & words[other] for other in SPLITS if other != split)


@pytest.mark.parametrize("split", SPLITS)
def test_images_show_words_of_their_split(monkeypatch, split):
    shown = []
    monkeypatch.setattr(typefaces, "render", lambda file, word, size, rng: shown.append(word))
    list(Typefaces(split, 100, 32))
    assert len(set(shown)) > 90
    assert {split_of(word) for word in shown} == {split}


@given(st.text("abcdefghijklmnopqrstuvwxyz", min_size=1, max_size=6))
def test_capitals_do_not_move_a_word_to_another_split(word):
    assert split_of(word) == split_of(word.capitalize()) == split_of(word.upper())


def test_most_words_are_for_training(words):
    every = set().union(*words.values())
    rng = np.random.default_rng(1)
    drawn = ["".join(rng.choice(list("abcdefghijklmnop"), 5)) for _ in range(2000)]
    shares = {split: np.mean([split_of(word) == split for word in drawn]) for split in SPLITS}
    assert shares == pytest.approx({"train": 0.8, "val": 0.1, "test": 0.1}, abs=0.03)
    assert all(3 <= len(word) <= 6 for word in every)


def test_every_label_takes_its_turn():
    images = Typefaces("val", 32, size=32)
    assert [images[i][1] for i in range(32)] == list(range(16)) * 2
    assert images.labels == LABELS
    assert len(set(LABELS)) == len({file for _, file in FACES}) == 16


def test_images_are_square_rgb_bytes():
    image, _ = Typefaces("train", 1, size=40)[0]
    assert (image.shape, image.dtype) == ((40, 40, 3), np.uint8)


@pytest.mark.parametrize("index", [0, 7, 31])
def test_an_image_is_fixed_by_split_seed_and_index(index):
    image, label = Typefaces("train", 32, 32, seed=3)[index]
    again, same_label = Typefaces("train", 1000, 32, seed=3)[index]
    np.testing.assert_array_equal(image, again)
    assert label == same_label
    for other in (
        Typefaces("val", 32, 32, 3)[index],
        Typefaces("train", 32, 32, 4)[index],
        Typefaces("train", 64, 32, 3)[index + 16],
    ):
        assert not np.array_equal(other[0], image)


def test_every_image_has_ink_on_paper():
    images = Typefaces("test", 48, size=64)
    for i in range(48):
        low, high = np.percentile(images[i][0].mean(axis=2), (2, 98))
        assert high - low > 40


def test_iteration_ends_with_the_last_image():
    images = Typefaces("train", 3, 32)
    assert len(images) == len([*images]) == 3
    for index in (-1, 3):
        with pytest.raises(IndexError):
            images[index]


def test_bad_split_is_refused():
    with pytest.raises(ConfigError, match="split must be one of train, val, test, found 'valid'"):
        Typefaces("valid", 10)


@pytest.mark.parametrize(("num_images", "size"), [(0, 96), (-1, 96), (10, 31)])
def test_bad_sizes_are_refused(num_images, size):
    with pytest.raises(ConfigError, match=f"found {num_images} of {size} px"):
        Typefaces("train", num_images, size)


@pytest.fixture
def fonts(tmp_path):
    """Two of the built-in fonts, one of them in a sub-folder."""
    (tmp_path / "sub").mkdir()
    for name, folder in (("cmr10", tmp_path), ("DejaVuSerif", tmp_path / "sub")):
        shutil.copy(typefaces.font_folder() / f"{name}.ttf", folder)
    return tmp_path


def test_fonts_of_windows_count_whatever_the_case_of_their_ending(fonts):
    expected = [label for label, _ in font_folder_faces(fonts)]
    (fonts / "cmr10.ttf").rename(fonts / "cmr10.TTF")
    assert [label for label, _ in font_folder_faces(fonts)] == expected


def test_a_folder_of_fonts_is_one_class_per_file(fonts):
    images = Typefaces("train", 4, 32, faces=font_folder_faces(fonts))
    assert images.labels == ("cmr10", "DejaVuSerif")
    assert [images[i][1] for i in range(4)] == [0, 1, 0, 1]
    built_in = (FACES[12], FACES[5])
    for i, (image, _) in enumerate(Typefaces("train", 4, 32, faces=built_in)):
        np.testing.assert_array_equal(images[i][0], image)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "cmr10.ttf").unlink(), "found 1 .ttf or .otf files, needs two or more"),
        (lambda folder: shutil.rmtree(folder), "found 0 .ttf or .otf files"),
        (lambda folder: shutil.copy(folder / "cmr10.ttf", folder / "sub"), "two fonts have the same file name"),
        (lambda folder: (folder / "cmr10.ttf").write_bytes(b"nothing"), r"cmr10\.ttf cannot be read"),
    ],
    ids=["one", "none", "same-name", "damaged"],
)
def test_unusable_folders_of_fonts_are_refused(fonts, change, message):
    change(fonts)
    with pytest.raises(DataError, match=message):
        font_folder_faces(fonts)


def _word_by_choice(rng, split):
    """:func:`random_word` by numpy's own choice."""
    while True:
        parts = (typefaces._ONSETS, typefaces._VOWELS, typefaces._CODAS) * 2
        word = "".join(str(rng.choice(part)) for part in parts)
        if 3 <= len(word) <= 6 and split_of(word) == split:
            return word.capitalize() if rng.random() < 0.5 else word


def _plain_render(file, word, size, rng):
    """:func:`typefaces.render` without its shortcuts: the whole canvas is turned, all arithmetic is by pixel."""
    x_height = rng.uniform(0.17, 0.24) * size
    points = round(x_height * typefaces._points_per_x_height(file) * 4) / 4
    font = ImageFont.truetype(str(typefaces.font_folder() / f"{file}.ttf"), points)
    canvas = Image.new("L", (2 * size, 2 * size), 0)
    half, line = (len(word) + 1) // 2, x_height * rng.uniform(1.9, 2.2)
    for row, text in enumerate((word[:half], word[half:])):
        left, _, right, _ = font.getbbox(text)
        place = size - (left + right) / 2 + rng.uniform(-0.06, 0.06) * size
        ImageDraw.Draw(canvas).text((place, size + (row - 0.5) * line + x_height / 2), text, 255, font, "ls")
    canvas = canvas.rotate(rng.uniform(-5, 5), Image.Resampling.BICUBIC)
    left, top = (round(size / 2 + by) for by in rng.uniform(-0.06, 0.06, 2) * size)
    mask = canvas.crop((left, top, left + size, top + size))
    sigma = rng.uniform(0, 0.7) * size / 96
    mask = mask.filter(ImageFilter.GaussianBlur(sigma)) if sigma > 0.2 else mask
    mask = np.asarray(mask, dtype=np.float32)[..., None] / 255
    while True:
        paper, ink = rng.uniform(130, 255, 3), rng.uniform(0, 130, 3)
        if paper.mean() - ink.mean() >= 80:
            break
    if rng.random() < 1 / 3:
        paper, ink = ink, paper
    ramp, tilt = np.linspace(-1, 1, size, dtype=np.float32), rng.uniform(-12, 12, 2).astype(np.float32)
    shade = (ramp[:, None] * tilt[0] + ramp[None, :] * tilt[1])[..., None]
    noise = rng.standard_normal((size, size, 1), dtype=np.float32) * np.float32(rng.uniform(0, 8))
    image = paper.astype(np.float32) * (1 - mask) + ink.astype(np.float32) * mask + shade + noise
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


@pytest.mark.parametrize(("split", "size", "count"), [("test", 96, 96), ("val", 32, 48), ("train", 112, 48)])
def test_images_have_the_bytes_of_the_plain_rendering(split, size, count):
    images = Typefaces(split, count, size, seed=7)
    for index in range(count):
        rng = np.random.default_rng([7, SPLITS.index(split), index])
        file = FACES[index % len(FACES)][1]
        expected = _plain_render(file, _word_by_choice(rng, split), size, rng)
        np.testing.assert_array_equal(images[index][0], expected)


@pytest.mark.parametrize("ink", [None, (0, 0, 3, 3), (61, 0, 64, 64), (20, 25, 44, 39)], ids=str)
@pytest.mark.parametrize("angle", [-5.0, 0.0, 3.3])
def test_the_turned_part_is_that_of_the_turned_canvas(ink, angle):
    canvas = Image.new("L", (64, 64), 0)
    if ink is not None:
        drawn = np.random.default_rng(0).integers(1, 256, (ink[3] - ink[1], ink[2] - ink[0]), dtype=np.uint8)
        canvas.paste(Image.fromarray(drawn), ink[:2])
    whole = canvas.rotate(angle, Image.Resampling.BICUBIC)
    for left, top in ((0, 0), (16, 20), (32, 32)):
        expected = whole.crop((left, top, left + 32, top + 32))
        found = typefaces._turned(canvas, angle, left, top, 32)
        np.testing.assert_array_equal(np.asarray(found), np.asarray(expected))
