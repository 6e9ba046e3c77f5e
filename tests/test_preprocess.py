from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from gft_edge.errors import ConfigError, DataError
from gft_edge.preprocess import PreprocessSpec, resize

FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
SPEC = PreprocessSpec(8, 12)
CHANGES = {
    "height": 9,
    "width": 13,
    "resize": "crop",
    "crop_ratio": 0.5,
    "interpolation": "bilinear",
    "mean": (0.1, 0.2, 0.3),
    "std": (0.1, 0.2, 0.3),
    "color_order": "bgr",
}


def _image(rows, cols, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (rows, cols, 3), dtype=np.uint8)


def _pillow(image, rows, cols, interpolation):
    """Columns first, then rows: what one call does up to Pillow 12, and not always since 13."""
    narrow = Image.fromarray(image).resize((cols, image.shape[0]), FILTERS[interpolation])
    return np.asarray(narrow.resize((cols, rows), FILTERS[interpolation]))


sides = st.integers(1, 48)


@settings(max_examples=200)
@given(sides, sides, sides, sides, st.sampled_from(list(FILTERS)), st.booleans(), st.integers(0, 99))
def test_resize_is_bit_identical_to_pillow(rows, cols, new_rows, new_cols, interpolation, black_white, seed):
    image = _image(rows, cols, seed)
    if black_white:  # the largest overshoot of the negative lobes
        image = (image > 127).astype(np.uint8) * 255
    expected = _pillow(image, new_rows, new_cols, interpolation)
    np.testing.assert_array_equal(resize(image, new_rows, new_cols, interpolation), expected)


@given(sides, sides, sides, st.booleans(), st.sampled_from(list(FILTERS)))
def test_resize_of_one_axis_is_bit_identical_to_pillow(rows, cols, new, vertical, interpolation):
    image = _image(rows, cols)
    new_size = (new, cols) if vertical else (rows, new)
    np.testing.assert_array_equal(resize(image, *new_size, interpolation), _pillow(image, *new_size, interpolation))


@pytest.mark.parametrize("interpolation", FILTERS)
@pytest.mark.parametrize("size", [(1080, 640), (100, 333)])
def test_resize_of_camera_frames_is_bit_identical_to_pillow(size, interpolation):
    image = _image(*size)
    np.testing.assert_array_equal(resize(image, 224, 224, interpolation), _pillow(image, 224, 224, interpolation))


@pytest.mark.parametrize("spec", [SPEC, *(dataclasses.replace(SPEC, **{k: v}) for k, v in CHANGES.items())])
def test_json_round_trip_keeps_spec_and_id(spec):
    again = PreprocessSpec.from_json(json.loads(json.dumps(spec.to_json())))
    assert again == spec
    assert again.id == spec.id


def test_id_changes_with_any_field():
    ids = {SPEC.id} | {dataclasses.replace(SPEC, **{name: value}).id for name, value in CHANGES.items()}
    assert len(ids) == 1 + len(CHANGES)
    assert set(CHANGES) | {"layout"} == {f.name for f in dataclasses.fields(PreprocessSpec)}
    assert all(len(i) == 12 and set(i) <= set("0123456789abcdef") for i in ids)


@pytest.mark.parametrize(
    ("changes", "with_floats"),
    [
        ({"crop_ratio": 1}, {"crop_ratio": 1.0}),
        ({"mean": (0, 0, 0)}, {"mean": (0.0, 0.0, 0.0)}),
        ({"std": (1, 1, 1)}, {"std": (1.0, 1.0, 1.0)}),
    ],
)
def test_equal_specs_have_equal_ids(changes, with_floats):
    with_ints = dataclasses.replace(SPEC, **changes)
    with_floats = dataclasses.replace(SPEC, **with_floats)
    assert with_ints == with_floats
    assert with_ints.id == with_floats.id


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"height": 0}, "size must be positive, found 0 x 12"),
        ({"width": -1}, "size must be positive"),
        ({"height": 8.5}, "size"),
        ({"resize": "pad"}, "resize must be 'stretch' or 'crop', found 'pad'"),
        ({"crop_ratio": 0.0}, "crop_ratio must be above 0 and at most 1"),
        ({"crop_ratio": 1.1}, "crop_ratio must be above 0 and at most 1"),
        ({"crop_ratio": float("nan")}, "crop_ratio must be above 0 and at most 1"),
        ({"interpolation": "nearest"}, "interpolation must be one of bilinear, bicubic, found 'nearest'"),
        ({"mean": (0.5, 0.5)}, "mean and std need three values each"),
        ({"mean": (float("nan"), 0.5, 0.5)}, "mean"),
        ({"std": (0.5, 0.5, 0.0)}, "std above 0"),
        ({"std": (float("inf"), 0.5, 0.5)}, "std"),
        ({"color_order": "gbr"}, "color_order must be 'rgb' or 'bgr'"),
        ({"layout": "nhwc"}, "layout must be 'nchw', found 'nhwc'"),
        ({"resize": "pad", "layout": "nhwc"}, "resize must be .*; layout must be"),
    ],
)
def test_bad_values_are_refused_together(changes, message):
    with pytest.raises(ConfigError, match=f"preprocessing: .*{message}"):
        dataclasses.replace(SPEC, **changes)


@pytest.mark.parametrize(
    "data", [{"height": 8}, {"height": 8, "width": 8, "colour": "rgb"}, {"height": "8", "width": 8}]
)
def test_malformed_json_is_refused(data):
    with pytest.raises(ConfigError, match="preprocessing"):
        PreprocessSpec.from_json(data)


@pytest.mark.parametrize("order", ["rgb", "bgr"])
def test_normalize_is_the_plain_formula(order):
    spec = dataclasses.replace(SPEC, color_order=order, mean=(0.1, 0.4, 0.6), std=(0.2, 0.3, 0.5))
    images = np.stack([_image(8, 12, seed) for seed in range(3)])
    pixels = images.astype(np.float64) / 255
    if order == "bgr":
        pixels = pixels[..., [2, 1, 0]]
    expected = np.transpose((pixels - spec.mean) / spec.std, (0, 3, 1, 2))
    result = spec.normalize(images)
    assert result.dtype == np.float32
    assert result.flags.c_contiguous
    np.testing.assert_allclose(result, expected, atol=1e-6)


def test_stretch_ignores_the_aspect_and_crop_ratio():
    image = _image(30, 10)
    spec = dataclasses.replace(SPEC, crop_ratio=0.5)
    np.testing.assert_array_equal(spec.geometry(image), resize(image, 8, 12, "bicubic"))


def test_call_is_geometry_then_normalize():
    image = _image(30, 10)
    np.testing.assert_array_equal(SPEC(image), SPEC.normalize(SPEC.geometry(image)))
    assert SPEC(image).shape == (3, 8, 12)


@pytest.mark.parametrize(
    ("size", "resized", "corner"),
    [
        ((40, 60), (20, 30), (2, 7)),
        ((58, 40), (29, 20), (6, 2)),
        ((60, 40), (30, 20), (7, 2)),
        ((10, 10), (20, 20), (2, 2)),
    ],
)
def test_crop_resizes_the_shorter_side_and_cuts_the_centre(size, resized, corner):
    spec = PreprocessSpec(16, 16, resize="crop", crop_ratio=0.8)
    image = _image(*size)
    top, left = corner
    expected = resize(image, *resized, "bicubic")[top : top + 16, left : left + 16]
    np.testing.assert_array_equal(spec.geometry(image), expected)


@given(sides, sides, sides, sides, st.floats(0.3, 1.0))
def test_crop_always_fills_the_input(rows, cols, height, width, ratio):
    spec = PreprocessSpec(height, width, resize="crop", crop_ratio=ratio)
    assert spec.geometry(_image(rows, cols)).shape == (height, width, 3)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((8, 8), np.uint8),
        np.zeros((8, 8, 4), np.uint8),
        np.zeros((3, 8, 8), np.uint8),
        np.zeros((8, 8, 3), np.float32),
        np.zeros((0, 8, 3), np.uint8),
        np.zeros((1, 8, 8, 3), np.uint8),
    ],
    ids=lambda a: f"{a.shape}-{a.dtype}",
)
def test_arrays_that_are_no_rgb_image_are_refused(image):
    with pytest.raises(DataError, match=r"expected an \(H, W, 3\) uint8 RGB array, found"):
        SPEC(image)
