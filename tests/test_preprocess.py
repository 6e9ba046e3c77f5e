from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from gft_edge.errors import ConfigError, DataError
from gft_edge.preprocess import PreprocessSpec
from gft_edge.resample import _blocks, resize

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


def _kernel(x, interpolation):
    x = abs(x)
    if interpolation == "bilinear":
        return 1.0 - x if x < 1.0 else 0.0
    a = -0.5
    if x < 1.0:
        return ((a + 2.0) * x - (a + 3.0)) * x * x + 1
    return (((x - 5) * x + 8) * x - 4) * a if x < 2.0 else 0.0


def _slow_weights(size_in, size_out, interpolation):
    """Integer weights (size_out, size_in), a tap at a time, as Pillow's C does."""
    scale = size_in / size_out
    filter_scale = max(scale, 1.0)
    support = (1.0 if interpolation == "bilinear" else 2.0) * filter_scale
    weights = np.zeros((size_out, size_in), dtype=np.int64)
    for out in range(size_out):
        center = (out + 0.5) * scale
        first, last = max(int(center - support + 0.5), 0), min(int(center + support + 0.5), size_in)
        row = [_kernel((x - center + 0.5) * (1.0 / filter_scale), interpolation) for x in range(first, last)]
        total = 0.0
        for value in row:
            total += value
        for x, value in zip(range(first, last), row):
            fixed = value / total * (1 << 22)
            weights[out, x] = math.trunc(fixed + 0.5 if fixed >= 0 else fixed - 0.5)
    return weights


def _slow_resize(image, rows, cols, interpolation):
    """All of an image, in integers."""
    for axis, size in ((1, cols), (0, rows)):
        if image.shape[axis] != size:
            weights = _slow_weights(image.shape[axis], size, interpolation)
            total = np.tensordot(weights, np.moveaxis(image, axis, 0).astype(np.int64), axes=(1, 0))
            total = (total + (1 << 21)) >> 22
            image = np.moveaxis(np.clip(total, 0, 255).astype(np.uint8), 0, axis)
    return image


def _slow_geometry(spec, image):
    """Resizes all of it, then crops."""
    if spec.resize == "stretch":
        return _slow_resize(image, spec.height, spec.width, spec.interpolation)
    rows, cols = image.shape[:2]
    factor = max(spec.height / spec.crop_ratio / rows, spec.width / spec.crop_ratio / cols)
    rows, cols = max(round(rows * factor), spec.height), max(round(cols * factor), spec.width)
    top, left = (rows - spec.height) // 2, (cols - spec.width) // 2
    whole = _slow_resize(image, rows, cols, spec.interpolation)
    return whole[top : top + spec.height, left : left + spec.width]


def _slow_normalize(spec, pixels):
    """Rounds to float32 after the product and after the sum, on interleaved pixels."""
    if spec.color_order == "bgr":
        pixels = pixels[..., ::-1]
    scale, shift = spec.scale_and_shift()
    return np.moveaxis(pixels.astype(np.float32) * scale + shift, -1, -3)


sides = st.integers(1, 48)
specs = st.builds(
    PreprocessSpec,
    sides,
    sides,
    st.sampled_from(["stretch", "crop"]),
    st.floats(0.2, 1.0),
    st.sampled_from(list(FILTERS)),
    color_order=st.sampled_from(["rgb", "bgr"]),
)


@settings(max_examples=200, deadline=None)
@given(specs, sides, sides, st.sampled_from([1, 127, 255]), st.integers(0, 99))
def test_every_bit_is_that_of_the_slow_definition(spec, rows, cols, levels, seed):
    image = _image(rows, cols, seed) // levels * levels
    expected = _slow_geometry(spec, image)
    geometry = spec.geometry(image)
    assert geometry.dtype == np.uint8
    np.testing.assert_array_equal(geometry, expected)
    result = spec(image)
    assert result.dtype == np.float32
    assert result.flags.c_contiguous
    np.testing.assert_array_equal(result.view(np.int32), _slow_normalize(spec, expected).copy().view(np.int32))


@pytest.mark.parametrize("interpolation", FILTERS)
@pytest.mark.parametrize(("size_in", "size_out"), [(640, 224), (1920, 224), (100, 224), (448, 224), (333, 7), (7, 333)])
def test_weights_are_those_of_the_slow_definition(size_in, size_out, interpolation):
    start, stop = size_out // 7, size_out - size_out // 5
    weights = np.zeros((stop - start, size_in))
    for block in _blocks(size_in, size_out, start, stop, interpolation):
        weights[block.outputs, block.inputs] = block.weights.T
    expected = _slow_weights(size_in, size_out, interpolation)[start:stop]
    np.testing.assert_array_equal(weights * (1 << 22), expected)


@pytest.mark.parametrize("resize", ["stretch", "crop"])
@pytest.mark.parametrize("size", [(480, 640), (224, 600), (600, 224), (3, 5000), (5000, 3), (1, 1)])
def test_every_bit_of_large_and_odd_pictures_is_that_of_the_slow_definition(size, resize):
    spec = PreprocessSpec(24, 20, resize=resize, crop_ratio=0.9)
    if 5000 in size:  # a crop of such a strip would first be enlarged hundreds of times
        spec = dataclasses.replace(spec, resize="stretch")
    image = _image(*size)
    np.testing.assert_array_equal(spec(image), _slow_normalize(spec, _slow_geometry(spec, image)))


@pytest.mark.parametrize("spec", [PreprocessSpec(10, 14), PreprocessSpec(30, 40), PreprocessSpec(30, 14)])
def test_views_are_read_as_they_are(spec):
    whole = _image(60, 40)
    for view in (whole[::2, :, ::-1], whole[::-2], whole.transpose(1, 0, 2)[:30]):
        np.testing.assert_array_equal(spec(view), spec(view.copy()))


def test_images_are_left_as_they_were():
    for size in ((8, 12), (8, 30), (30, 12), (30, 30)):
        image = _image(*size)
        image.flags.writeable = False
        before = image.copy()
        SPEC(image), SPEC.geometry(image)
        np.testing.assert_array_equal(image, before)


@pytest.mark.parametrize("order", ["rgb", "bgr"])
def test_a_batch_is_its_images(order):
    spec = dataclasses.replace(SPEC, color_order=order)
    images = [_image(*size) for size in ((8, 12), (30, 10), (5, 70))]
    np.testing.assert_array_equal(spec.batch(images), np.stack([spec(image) for image in images]))
    with pytest.raises(DataError, match="image: expected"):
        spec.batch([*images, np.zeros((8, 8), np.uint8)])


@pytest.mark.parametrize("order", ["rgb", "bgr"])
def test_pixels_are_those_of_the_slow_inverse(order):
    spec = dataclasses.replace(SPEC, color_order=order, mean=(0.1, 0.4, 0.6), std=(0.2, 0.3, 0.5))
    inputs = np.random.default_rng(0).normal(0, 2, (2, 3, 8, 12)).astype(np.float32)
    before = inputs.copy()
    levels = np.moveaxis(inputs, -3, -1) * (255.0 * np.asarray(spec.std)) + 255.0 * np.asarray(spec.mean)
    expected = np.clip(np.rint(levels), 0, 255).astype(np.uint8)
    pixels = spec.pixels(inputs)
    assert pixels.flags.c_contiguous
    np.testing.assert_array_equal(pixels, expected[..., ::-1] if order == "bgr" else expected)
    np.testing.assert_array_equal(inputs, before)
    every = np.stack([_image(8, 12, seed) for seed in range(3)])
    np.testing.assert_array_equal(spec.pixels(spec.normalize(every)), every)


def test_ids_stay():
    """They are in manifests, checkpoints and calibration sets that exist."""
    assert PreprocessSpec(224, 224).id == "89eca81f416b"
    assert PreprocessSpec(224, 224, "crop", 0.875, "bilinear", color_order="bgr").id == "3acdff1e387a"


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
