"""Whatever is wrong with an image file, reading it ends in pixels or in one DataError of one line."""

from __future__ import annotations

import io
import os
import struct
import sys
import tracemalloc
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

from gft_edge.data.images import image_files, read_image, rgb_pixels
from gft_edge.data.scan import IMAGE_SUFFIXES
from gft_edge.errors import ConfigError, DataError, MissingExtraError

CASES = Path(__file__).parent / "images"
PIXELS = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
FORMATS = {
    "AVIF": "RGB",
    "BLP": "P",
    "BMP": "RGB",
    "DDS": "RGBA",
    "EPS": "RGB",
    "GIF": "P",
    "ICO": "RGBA",
    "IM": "RGB",
    "JPEG": "RGB",
    "JPEG2000": "RGB",
    "MPO": "RGB",
    "MSP": "1",
    "PCX": "RGB",
    "PNG": "RGBA",
    "PPM": "RGB",
    "QOI": "RGB",
    "SGI": "RGB",
    "SPIDER": "F",
    "TGA": "RGB",
    "TIFF": "RGB",
    "WEBP": "RGB",
    "XBM": "1",
}


def _encoded(kind: str) -> bytes:
    """A small file of this format with EXIF data where the format has it; empty where this Pillow cannot write it."""
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "maker"
    exif.get_ifd(0x8825)[2] = (48.0, 8.0, 0.0)
    options = {"exif": exif} if kind in ("AVIF", "JPEG", "MPO", "PNG", "TIFF", "WEBP") else {}
    file = io.BytesIO()
    try:
        Image.fromarray(PIXELS).convert(FORMATS[kind]).save(file, kind, **options)
    except (OSError, KeyError):
        return b""
    return file.getvalue()


ENCODED = {kind: data for kind in FORMATS if (Image.init() or kind in Image.SAVE) and (data := _encoded(kind))}


def _png_of(width: int, height: int) -> bytes:
    """A PNG file that says this size and holds no pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
        for body in (header, b"IDAT" + zlib.compress(b""), b"IEND")
    )


@pytest.mark.parametrize("name", ["damaged_avif.jpg", "avif_bad.png", "dds_bad.png"])
def test_damaged_files_of_other_formats_are_refused(name):
    with pytest.raises(DataError, match="cannot be decoded as an image"):
        read_image(CASES / name)


def test_an_image_with_malformed_exif_data_is_read_unturned():
    with Image.open(CASES / "exif_ascii_latitude.jpg") as file:
        assert file.getexif()[0x0112] == 6
        stored = np.asarray(file)
    np.testing.assert_array_equal(read_image(CASES / "exif_ascii_latitude.jpg"), stored)


def test_an_image_with_whole_exif_data_is_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(PIXELS).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), np.rot90(PIXELS, -1))


@pytest.mark.parametrize("value", [0, 9, "6", (6, 3), None])
def test_orientations_that_mean_nothing_are_ignored(value, monkeypatch):
    image = Image.fromarray(PIXELS)
    monkeypatch.setattr(image, "getexif", lambda: {0x0112: value})
    np.testing.assert_array_equal(rgb_pixels(image, "image"), PIXELS)


def test_exif_data_that_cannot_be_read_leaves_the_image_as_it_is(tmp_path):
    Image.fromarray(PIXELS).save(tmp_path / "a.png", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), PIXELS)


def test_black_made_transparent_and_floats_keep_their_greys():
    with Image.open(CASES / "grey16_trns.png") as file:
        values = np.asarray(file).astype(np.float64)
    expected = np.where(values == 0, 255, np.floor(values / 257 + 0.5))
    np.testing.assert_array_equal(read_image(CASES / "grey16_trns.png")[..., 0], expected)
    with Image.open(CASES / "float01.tif") as file:
        values = np.asarray(file).astype(np.float64)
    np.testing.assert_array_equal(read_image(CASES / "float01.tif")[..., 2], np.rint(values * 255))


@pytest.mark.parametrize(
    "error",
    [
        TypeError("bad operand"),
        RuntimeError("a\nb"),
        NotImplementedError(),
        struct.error("unpack requires 4 bytes"),
        MemoryError(),
        EOFError(),
        RecursionError("x" * 10_000),
        zlib.error("Error -3"),
        IndexError(7),
        Image.DecompressionBombError("bomb"),
        Image.DecompressionBombWarning("bomb"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_any_exception_of_a_decoder_is_one_short_line(tmp_path, monkeypatch, error):
    def load(self):
        raise error

    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    monkeypatch.setattr(ImageFile.ImageFile, "load", load)
    with pytest.raises(DataError, match=r"a\.png: cannot be decoded as an image \(.+\)") as caught:
        read_image(tmp_path / "a.png")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < len(str(tmp_path)) + 300


def test_an_interrupt_is_passed_on(tmp_path, monkeypatch):
    def load(self):
        raise KeyboardInterrupt

    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    monkeypatch.setattr(ImageFile.ImageFile, "load", load)
    with pytest.raises(KeyboardInterrupt):
        read_image(tmp_path / "a.png")


def test_warnings_of_the_decoder_are_not_shown(tmp_path, monkeypatch):
    load = ImageFile.ImageFile.load

    def warning(self):
        warnings.warn("corrupt EXIF data", stacklevel=1)
        return load(self)

    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    monkeypatch.setattr(ImageFile.ImageFile, "load", warning)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(read_image(tmp_path / "a.png"), PIXELS)


@pytest.mark.parametrize("kind", sorted(ENCODED))
def test_whole_files_of_every_format_are_read(tmp_path, kind):
    (tmp_path / "a").write_bytes(ENCODED[kind])
    if kind == "EPS":
        with pytest.raises(DataError, match="EPS files are not read"):  # Pillow would start Ghostscript on it
            read_image(tmp_path / "a")
    elif kind != "SPIDER":  # floating point from 0 to 255
        assert sorted(read_image(tmp_path / "a").shape) == ([3, 18, 24] if kind == "ICO" else [3, 30, 40])


@given(
    st.sampled_from(sorted(ENCODED)),
    st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=8),
    st.floats(0, 1),
    st.booleans(),
)
@example("TIFF", [(0.0, 0)], 1.0, False)
@settings(max_examples=300)
def test_damaged_files_are_pixels_or_refused(tmp_path_factory, kind, changes, end, cut):
    data = bytearray(ENCODED[kind])
    for place, value in changes:
        near_start = place**3  # most of what decoders stumble over stands in the header
        data[min(int(near_start * len(data)), len(data) - 1)] = value
    path = tmp_path_factory.getbasetemp() / "mutated"
    path.write_bytes(data[: int(end * len(data))] if cut else data)
    try:
        pixels = read_image(path)
    except DataError as error:
        assert "\n" not in str(error)
    else:
        assert pixels.dtype == np.uint8
        assert pixels.ndim == 3
        assert pixels.shape[2] == 3


def test_truncated_files_are_refused(tmp_path):
    for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"):
        (tmp_path / "a").write_bytes(ENCODED[kind][: len(ENCODED[kind]) // 2])
        with pytest.raises(DataError):
            read_image(tmp_path / "a")


@pytest.mark.parametrize("size", [(10_001, 10_000), (100_000_001, 1), (40_000, 40_000), (2**31 - 1, 2**31 - 1)])
def test_large_images_are_refused_before_they_are_decoded(tmp_path, size):
    (tmp_path / "a.png").write_bytes(_png_of(*size))
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match="pixels"):
            read_image(tmp_path / "a.png")
        assert tracemalloc.get_traced_memory()[1] < 10e6
    finally:
        tracemalloc.stop()


def test_limit_of_pixels_is_set_by_the_environment(tmp_path, monkeypatch):
    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    monkeypatch.setenv("GFT_EDGE_MAX_PIXELS", "1199")
    with pytest.raises(DataError, match="40 x 30 is more than 1199 pixels; set GFT_EDGE_MAX_PIXELS"):
        read_image(tmp_path / "a.png")
    monkeypatch.setenv("GFT_EDGE_MAX_PIXELS", "1200")
    assert read_image(tmp_path / "a.png").shape == (30, 40, 3)


@pytest.mark.parametrize("text", ["many", "0", "-5", "1e6", "1000000000"])
def test_limit_that_is_no_number_of_pixels_is_refused(tmp_path, monkeypatch, text):
    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    monkeypatch.setenv("GFT_EDGE_MAX_PIXELS", text)
    with pytest.raises(ConfigError, match="GFT_EDGE_MAX_PIXELS: expected a whole number"):
        read_image(tmp_path / "a.png")


def test_converting_takes_no_copy_of_the_whole_image(monkeypatch):
    image = Image.new("RGBA", (3000, 2000), (1, 2, 3, 128))
    tracemalloc.start()  # sees numpy's memory, not Pillow's
    try:
        pixels = rgb_pixels(image, "image")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < pixels.nbytes + 16 * 2**20
    converted = []
    monkeypatch.setattr(
        Image.Image,
        "convert",
        lambda self, mode, convert=Image.Image.convert: (converted.append(self.size), convert(self, mode))[1],
    )
    rgb_pixels(image, "image")
    rgb_pixels(Image.new("RGBA", (2**21, 1)), "image")
    assert max(width * height for width, height in converted) <= 2**20


def test_files_that_are_no_image_are_refused(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0")
    (tmp_path / "empty.png").write_bytes(b"")
    os.mkfifo(tmp_path / "pipe.png")
    expected = {
        "a.txt": "recognises no image format",
        "a.heic": "does not recognise the content of this .heic file; convert it to PNG or JPEG",
        "empty.png": "convert it",
        "pipe.png": "not a regular file",
        "": "is a folder",
        "a\0b": "null",
        "x" * 300: "too long",
    }
    for name, reason in expected.items():
        with pytest.raises(DataError, match=reason):
            read_image(tmp_path / name)


def test_missing_pillow_is_named_with_what_it_is_for(monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(MissingExtraError, match="Pillow, which reads image files, is not installed; run: pip install"):
        read_image("a.png")


def test_folders_give_their_image_files_in_order_without_hidden_ones(tmp_path):
    names = ["b/2.JPG", "b/1.png", "a/x.heic", "a/._x.jpg", "a/notes.txt", ".git/y.png", "__MACOSX/z.png", "c/.z.png"]
    for name in [*names, "b/.ipynb_checkpoints/1-checkpoint.png"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "b/loop").symlink_to(tmp_path)
    found = [
        str(path.relative_to(tmp_path)) for path in image_files([tmp_path, tmp_path / "a/notes.txt", tmp_path / "c"])
    ]
    assert found == ["a/x.heic", "b/1.png", "b/2.JPG", "a/notes.txt", "c"]


def test_suffixes_are_in_lower_case_with_their_dot():
    assert all(suffix == suffix.lower() and suffix.startswith(".") for suffix in IMAGE_SUFFIXES)
    assert {".heic", ".jfif", ".tiff", ".avif"} <= IMAGE_SUFFIXES
