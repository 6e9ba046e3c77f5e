from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from PIL import Image

from gft_edge.errors import DataError
from gft_edge.export.verify.pixels import compare_pixel_files, compare_pixels, sampled
from gft_edge.preprocess import PreprocessSpec

SPEC = PreprocessSpec(32, 32)


@pytest.fixture(scope="module")
def images():
    """Smooth shapes with fine stripes, of several sizes, so that every kind of resizing shows."""
    rng = np.random.default_rng(0)
    made = []
    for height, width in ((90, 120), (75, 64), (100, 100)):
        y, x = np.mgrid[:height, :width]
        waves = [np.sin(x / a) + np.cos(y / b) + 0.8 * (x // 2 % 2) for a, b in rng.uniform(2, 15, (3, 2))]
        planes = [(w - w.min()) / (w.max() - w.min()) * s for w, s in zip(waves, (250, 190, 130))]
        made.append(np.stack(planes, axis=-1).astype(np.uint8))
    return made


def _without_antialias(image):
    """Bilinear at pixel centres, from the four neighbours only."""
    height, width = image.shape[:2]
    out = np.empty((32, 32, 3))
    for r in range(32):
        for c in range(32):
            y, x = (r + 0.5) * height / 32 - 0.5, (c + 0.5) * width / 32 - 0.5
            top, left = int(np.floor(y)), int(np.floor(x))
            a, b = y - top, x - left
            p = image[top : top + 2, left : left + 2].astype(float)
            out[r, c] = (1 - a) * ((1 - b) * p[0, 0] + b * p[0, 1]) + a * ((1 - b) * p[1, 0] + b * p[1, 1])
    return SPEC.normalize(np.rint(out).astype(np.uint8))


def _pillow(image):
    return np.asarray(Image.fromarray(image).resize((32, 32), Image.Resampling.BICUBIC))


def _by_hand(image):
    pixels = _pillow(image) / 255
    return np.moveaxis((pixels - np.array(SPEC.mean)) / np.array(SPEC.std), -1, 0)


def _other(**changes):
    return dataclasses.replace(SPEC, **changes)


FAULTS = {
    "no antialias": (_without_antialias, "antialias", "bilinear without antialiasing"),
    "bilinear": (_other(interpolation="bilinear"), "interpolation", "by bilinear instead of bicubic"),
    "BGR": (_other(color_order="bgr"), "color_order", "bgr instead of rgb"),
    "mean": (_other(mean=(0.5, 0.5, 0.5)), "mean", "mean [0.5, 0.5, 0.5]"),
    "std": (_other(std=(0.5, 0.5, 0.5)), "std", "std [0.5, 0.5, 0.5]"),
    "not normalised": (_other(mean=(0, 0, 0), std=(1, 1, 1)), "mean and std", "no normalisation at all"),
    "0 to 255": (lambda i: np.moveaxis(_pillow(i), -1, 0).astype(np.float32), "mean and std", "pixels of 0 to 255"),
    "crop": (_other(resize="crop", crop_ratio=0.875), "resize", "crop_ratio 0.875"),
    "rows for columns": (lambda i: SPEC(i).transpose(0, 2, 1), "layout", "rows and columns are swapped"),
    "upside down": (lambda i: SPEC(i)[:, ::-1], "layout", "upside down"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_is_found_and_named(images, fault):
    made, name, words = FAULTS[fault]
    report = compare_pixels(images, [made(image) for image in images], SPEC)
    assert report.place.kind == "preprocess"
    assert report.place.name == name
    assert words in report.place.text
    assert report.largest_levels > 1.5


@pytest.mark.parametrize("made", [SPEC, _by_hand], ids=["itself", "Pillow and float64"])
def test_right_preprocessing_is_right(images, made):
    report = compare_pixels(images, [made(image) for image in images], SPEC)
    assert report.place is None
    assert report.images == 3
    assert report.largest_levels < 0.01


def test_noise_is_not_explained(images):
    rng = np.random.default_rng(0)
    report = compare_pixels(images, [rng.standard_normal((3, 32, 32)) for _ in images], SPEC)
    assert report.place.name == "unknown"


def test_values_that_are_not_finite_are_found(images):
    report = compare_pixels(images, [np.full((3, 32, 32), np.nan) for _ in images], SPEC)
    assert report.place.name == "values"
    assert report.largest_levels is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda right: right * 0, "tensor 1 is all zeros: the buffer was never filled"),
        (lambda right: right * 0 - 2, "tensor 1 is -2 throughout: the buffer was never filled"),
        (lambda right: right * np.array([1, 1, 0])[:, None, None], "channel 2 of tensor 1 is all zeros"),
        (lambda right: np.concatenate([right[:, :20], right[:, 20:] * 0], axis=1), "12 rows of tensor 1 are all zeros"),
        (lambda right: right * (np.arange(32) < 25), "7 columns of tensor 1 are all zeros, the first is 25"),
        (lambda right: np.where(right == right.max(), np.inf, right), "values of tensor 1 are not finite"),
    ],
)
def test_one_buffer_that_was_not_filled_is_named(images, change, words):
    tensors = [SPEC(image).astype(np.float64) for image in images]
    tensors[1] = change(tensors[1])
    place = compare_pixels(images, tensors, SPEC).place
    assert (place.kind, place.name) == ("preprocess", "values")
    assert words in place.text


def test_one_buffer_for_all_images_is_named(images):
    place = compare_pixels(images, [SPEC(images[0])] * 3, SPEC, ["a.npy", "b.npy", "c.npy"]).place
    assert "b.npy is the same as a.npy, though the images differ" in place.text


def test_swapped_channels_that_are_not_normalised_either_are_named(images):
    place = compare_pixels(
        images, [np.moveaxis(_pillow(i)[..., ::-1], -1, 0).astype(np.float32) for i in images], SPEC
    ).place
    assert "the channels are swapped" in place.text and "pixels of 0 to 255" in place.text


def test_images_of_one_colour_tell_nothing_of_the_normalisation():
    image = np.full((40, 40, 3), 90, np.uint8)
    assert compare_pixels([image], [SPEC(image)], SPEC).place is None
    place = compare_pixels([image], [SPEC(image) + 1], SPEC).place
    assert place.name == "unknown" and "nan" not in place.text


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        (np.zeros((32, 32, 3)), r"has shape \(32, 32, 3\), the network takes \(3, 32, 32\): its channels are last"),
        (np.zeros((1, 3, 32, 32)), "a batch axis"),
        (np.zeros(3072), "only its shape is wrong"),
        (np.zeros((3, 33, 32)), r"has shape \(3, 33, 32\), the network takes \(3, 32, 32\)$"),
        (np.full((3, 32, 32), "x"), "holds values of type <U1, expected numbers"),
        (np.zeros((3, 32, 32), complex), "holds values of type complex128"),
    ],
)
def test_tensors_of_another_form_are_refused_by_it(images, tensor, words):
    with pytest.raises(DataError, match=f"a.npy {words}|a.npy has shape .*{words}"):
        compare_pixels(images[:1], [tensor], SPEC, ["a.npy"])


def test_sampling_without_antialiasing_is_pytorchs():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    for count, size in ((50, 32), (20, 33)):
        values = rng.integers(0, 256, (count, 5)).astype(np.float64)
        for mode in ("nearest", "bilinear", "bicubic"):
            align = {} if mode == "nearest" else {"align_corners": False}
            wide = torch.from_numpy(values)[None, None]
            expected = torch.nn.functional.interpolate(wide, (size, 5), mode=mode, **align)[0, 0].numpy()
            assert np.allclose(sampled(values, size, mode), expected, atol=1e-9), mode


def test_no_images_are_refused():
    with pytest.raises(DataError, match="no images"):
        compare_pixels([], [], SPEC)


def test_a_folder_without_tensors_says_what_belongs_there(images, tmp_path):
    Image.fromarray(images[0]).save(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"holds no \.npy file; put the tensor .* as NAME\.npy"):
        compare_pixel_files(tmp_path, SPEC)
