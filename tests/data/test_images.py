from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from gft_edge.data import images
from gft_edge.data.images import read_image, rgb_pixels
from gft_edge.errors import DataError

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
GREY16 = np.random.default_rng(1).integers(0, 65536, (6, 9), dtype=np.uint16)


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.tiff", "a.PNG"])
def test_lossless_files_come_back_exactly(tmp_path, name):
    Image.fromarray(PIXELS).save(tmp_path / name)
    result = read_image(tmp_path / name)
    assert result.dtype == np.uint8
    np.testing.assert_array_equal(result, PIXELS)


def test_grayscale_is_repeated(tmp_path):
    Image.fromarray(PIXELS[..., 0]).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), np.repeat(PIXELS[..., :1], 3, axis=2))


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
        (4, lambda a: a[::-1]),
        (5, lambda a: a.transpose(1, 0, 2)),
        (6, lambda a: np.rot90(a, -1)),
        (7, lambda a: np.rot90(a, 2).transpose(1, 0, 2)),
        (8, np.rot90),
    ],
)
def test_exif_orientation_is_applied(tmp_path, orientation, upright):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(PIXELS).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), upright(PIXELS))


@pytest.mark.parametrize("suffix", ["jpg", "tif"])
def test_cmyk_is_read_as_rgb(tmp_path, suffix):
    Image.fromarray(np.full((8, 8, 3), (200, 100, 50), np.uint8)).convert("CMYK").save(tmp_path / f"a.{suffix}")
    np.testing.assert_allclose(read_image(tmp_path / f"a.{suffix}")[4, 4], (200, 100, 50), atol=6)


def test_palette_with_graded_transparency_is_mixed_with_white(tmp_path):
    image = Image.fromarray(np.array([[0, 1, 2]], np.uint8)).convert("P")
    image.putpalette([100, 0, 200] * 3)
    image.save(tmp_path / "a.png", transparency=bytes([255, 0, 128]))
    expected = [(100, 0, 200), (255, 255, 255), (177, 127, 227)]
    np.testing.assert_allclose(read_image(tmp_path / "a.png")[0], expected, atol=1)


@pytest.mark.parametrize("suffix", ["gif", "tif", "png", "webp"])
def test_first_frame_of_several_is_read(tmp_path, suffix):
    frames = [Image.new("RGB", (9, 6), color) for color in ((255, 0, 0), (0, 255, 0), (0, 0, 255))]
    options = {"lossless": True} if suffix == "webp" else {}
    frames[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:], **options)
    np.testing.assert_array_equal(read_image(tmp_path / f"a.{suffix}"), np.full((6, 9, 3), (255, 0, 0)))


@pytest.mark.parametrize(
    "mode", ["1", "L", "P", "LA", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "LAB", "F", "I;16", "La", "RGBa"]
)
def test_every_mode_of_pillow_has_pixels(mode):
    assert rgb_pixels(Image.new(mode, (9, 6)), "image").shape == (6, 9, 3)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "I;16"])
def test_images_of_several_blocks_are_those_of_one(monkeypatch, orientation, mode):
    image = Image.fromarray(GREY16) if mode == "I;16" else Image.fromarray(PIXELS).convert(mode)
    image.getexif()[0x0112] = orientation
    whole = rgb_pixels(image, "image")
    assert whole.shape == ((9, 6, 3) if orientation >= 5 else (6, 9, 3))
    for block in (1, 4, 9, 20):
        monkeypatch.setattr(images, "_BLOCK", block)
        np.testing.assert_array_equal(rgb_pixels(image, "image"), whole)


def test_missing_file_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"image .*none\.png: no such file"):
        read_image(tmp_path / "none.png")


def test_folder_in_place_of_an_image_is_refused(tmp_path):
    with pytest.raises(DataError, match="cannot be decoded as an image"):
        read_image(tmp_path)


def test_exif_orientation_is_applied_for_tiff_too(tmp_path):
    Image.fromarray(PIXELS).save(tmp_path / "a.tif", tiffinfo={0x0112: 6})
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), np.rot90(PIXELS, -1))


def test_a_jpeg_is_decoded_no_smaller_than_asked(tmp_path):
    levels = np.add.outer(np.arange(400), np.arange(600)) * 255 // 998
    pixels = np.stack([levels, 255 - levels, levels // 2], axis=2).astype(np.uint8)
    for suffix in ("jpg", "png"):
        Image.fromarray(pixels).save(tmp_path / f"a.{suffix}")
    sizes = {
        least: read_image(tmp_path / "a.jpg", least).shape[:2] for least in (0, 401, 400, 201, 200, 100, 51, 50, 1)
    }
    whole, half, quarter, eighth = (400, 600), (200, 300), (100, 150), (50, 75)
    assert list(sizes.values()) == [whole, whole, whole, whole, half, quarter, quarter, eighth, eighth]
    assert read_image(tmp_path / "a.png", 50).shape == (400, 600, 3)
    for least in (200, 100, 50):
        small = read_image(tmp_path / "a.jpg", least)
        plain = np.asarray(Image.fromarray(pixels).resize(small.shape[1::-1], Image.Resampling.BOX))
        assert np.abs(small.astype(int) - plain).mean() < 3


def test_a_jpeg_turned_by_exif_is_decoded_smaller_too(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (600, 400), (200, 10, 10)).save(tmp_path / "a.jpg", exif=exif)
    assert read_image(tmp_path / "a.jpg", 100).shape == (150, 100, 3)
