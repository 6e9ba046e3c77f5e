from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from gft_edge.data.images import read_image
from gft_edge.errors import DataError

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.tiff", "a.PNG"])
def test_lossless_files_come_back_exactly(tmp_path, name):
    Image.fromarray(PIXELS).save(tmp_path / name)
    result = read_image(tmp_path / name)
    assert result.dtype == np.uint8
    np.testing.assert_array_equal(result, PIXELS)


def test_grayscale_is_repeated(tmp_path):
    Image.fromarray(PIXELS[..., 0]).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), np.repeat(PIXELS[..., :1], 3, axis=2))


def test_sixteen_bit_grayscale_is_scaled_or_refused_but_not_turned_white(tmp_path):
    Image.fromarray(np.full((4, 4), 32768, np.uint16)).save(tmp_path / "a.png")
    try:
        result = read_image(tmp_path / "a.png")
    except DataError:
        return
    assert abs(int(result[0, 0, 0]) - 128) <= 1


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_pixels_are_white(tmp_path, mode):
    alpha = np.full(PIXELS.shape[:2], 255, np.uint8)
    alpha[:, 4:] = 0
    if mode == "RGBA":
        image = Image.fromarray(np.dstack((PIXELS, alpha)))
    elif mode == "LA":
        image = Image.merge("LA", (Image.fromarray(PIXELS[..., 0]), Image.fromarray(alpha)))
    else:
        image = Image.fromarray((alpha == 0).astype(np.uint8), mode="L").convert("P")
        image.putpalette([10, 20, 30, 40, 50, 60])
    image.save(tmp_path / "a.png", **({"transparency": 1} if mode == "P" else {}))
    result = read_image(tmp_path / "a.png")
    expected = {"RGBA": PIXELS, "LA": np.repeat(PIXELS[..., :1], 3, 2), "P": np.full_like(PIXELS, (10, 20, 30))}[mode]
    assert (result[:, 4:] == 255).all()
    np.testing.assert_array_equal(result[:, :4], expected[:, :4])


def test_half_transparent_pixels_are_mixed_with_white(tmp_path):
    Image.fromarray(np.full((2, 2, 4), (100, 0, 200, 128), np.uint8)).save(tmp_path / "a.png")
    np.testing.assert_allclose(read_image(tmp_path / "a.png")[0, 0], (177, 127, 227), atol=1)


@pytest.mark.parametrize(
    ("orientation", "upright"),
    [
        (1, lambda a: a),
        (2, lambda a: a[:, ::-1]),
        (3, lambda a: a[::-1, ::-1]),
        (6, lambda a: np.rot90(a, -1)),
        (8, np.rot90),
    ],
)
def test_exif_orientation_is_applied(tmp_path, orientation, upright):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(PIXELS).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), upright(PIXELS))


def test_cmyk_jpeg_is_read_as_rgb(tmp_path):
    Image.fromarray(np.full((8, 8, 3), (200, 100, 50), np.uint8)).convert("CMYK").save(tmp_path / "a.jpg")
    np.testing.assert_allclose(read_image(tmp_path / "a.jpg")[4, 4], (200, 100, 50), atol=6)


def test_missing_file_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"image .*none\.png: no such file"):
        read_image(tmp_path / "none.png")


@pytest.mark.parametrize("suffix", ["png", "jpeg", "gif", "bmp", "tiff", "webp"])
def test_damaged_files_are_decoded_or_refused_but_never_crash(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(PIXELS).resize((40, 30)).save(path)
    data, rng = path.read_bytes(), np.random.default_rng(0)
    refused = 0
    for length in rng.integers(0, len(data) - 1, 20):
        path.write_bytes(data[:length])
        try:
            assert read_image(path).shape == (30, 40, 3)
        except DataError:
            refused += 1
    assert refused > 10


def test_folder_in_place_of_an_image_is_refused(tmp_path):
    with pytest.raises(DataError, match="cannot be decoded as an image"):
        read_image(tmp_path)
