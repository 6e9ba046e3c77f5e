"""Pixels of 1 to 32 bits, from files written byte by byte, since Pillow cannot write most of them."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gft_edge.data.images import read_image
from gft_edge.errors import DataError

GREY16 = np.random.default_rng(1).integers(0, 65536, (6, 9), dtype=np.uint16)


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def write_png(path: Path, rows: list[bytes], width: int, depth: int, color: int, *chunks: bytes) -> None:
    """Rows are packed pixels; ``color`` 0 is grey, 2 RGB, 3 palette, 6 RGBA; ``chunks`` come before the pixels."""
    header = struct.pack(">IIBBBBB", width, len(rows), depth, color, 0, 0, 0)
    packer = zlib.compressobj(9)
    pixels = b"".join(packer.compress(b"\0" + row) for row in rows) + packer.flush()
    body = [png_chunk(b"IHDR", header), *chunks, png_chunk(b"IDAT", pixels), png_chunk(b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(body))


def write_tiff(
    path: Path,
    pixels: bytes,
    size: tuple[int, int],
    bits: int,
    photometric: int = 1,
    sample_format: int = 1,
    order: str = "<",
) -> None:
    """One uncompressed grey page; ``sample_format`` 1 is unsigned, 2 signed, 3 float; ``order`` < is little-endian."""
    width, height = size
    entries = [
        (256, 4, width),
        (257, 4, height),
        (258, 3, bits),
        (259, 3, 1),
        (262, 3, photometric),
        (273, 4, 8),
        (277, 3, 1),
        (278, 4, height),
        (279, 4, len(pixels)),
        (339, 3, sample_format),
    ]
    fields = b"".join(
        struct.pack(f"{order}HHI", tag, kind, 1) + struct.pack(f"{order}HH" if kind == 3 else f"{order}I", *value)
        for tag, kind, number in entries
        for value in [(number, 0) if kind == 3 else (number,)]
    )
    directory = struct.pack(f"{order}H", len(entries)) + fields + struct.pack(f"{order}I", 0)
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, 8 + len(pixels))
    path.write_bytes(head + pixels + directory)


@pytest.mark.parametrize(
    ("pixels", "write"),
    [
        (GREY16, lambda path: Image.fromarray(GREY16).save(path.with_suffix(".png"))),
        (GREY16, lambda path: Image.fromarray(GREY16).save(path.with_suffix(".tif"), compression="tiff_lzw")),
        (GREY16, lambda path: Image.fromarray(GREY16).save(path.with_suffix(".jp2"), irreversible=False)),
        (GREY16, lambda path: path.with_suffix(".pgm").write_bytes(b"P5 9 6 65535 " + GREY16.astype(">u2").tobytes())),
        (GREY16, lambda path: write_tiff(path, GREY16.astype("<u2").tobytes(), (9, 6), 16)),
        (GREY16, lambda path: write_tiff(path, GREY16.astype(">u2").tobytes(), (9, 6), 16, order=">")),
        (65535 - GREY16, lambda path: write_tiff(path, GREY16.tobytes(), (9, 6), 16, photometric=0)),
    ],
    ids=["png", "lzw", "jp2", "pgm", "little-endian", "big-endian", "white is zero"],
)
def test_sixteen_bits_are_scaled_to_eight(tmp_path, pixels, write):
    write(tmp_path / "a.tif")
    (path,) = tmp_path.iterdir()
    expected = np.floor(pixels / 65535.0 * 255 + 0.5).astype(np.uint8)
    np.testing.assert_array_equal(read_image(path), np.repeat(expected[..., None], 3, axis=2))


def test_twelve_bits_are_scaled_by_their_own_range(tmp_path):
    values = np.array([0, 1, 2047, 4095], np.uint32)
    packed = int("".join(f"{value:012b}" for value in values), 2).to_bytes(6, "big")
    write_tiff(tmp_path / "a.tif", packed, (4, 1), 12)
    assert read_image(tmp_path / "a.tif")[0, :, 0].tolist() == [0, 0, 127, 255]


def test_sixteen_bit_colours_are_right_to_one_level(tmp_path):
    values = np.random.default_rng(1).integers(0, 65536, (6, 9, 3)).astype(">u2")
    write_png(tmp_path / "a.png", [row.tobytes() for row in values], 9, 16, 2)
    np.testing.assert_allclose(read_image(tmp_path / "a.png"), values / 257, atol=1)


@pytest.mark.parametrize("order", ["<", ">"])
def test_floats_from_zero_to_one_are_scaled(tmp_path, order):
    values = np.linspace(0, 1, 54, dtype=np.float32).reshape(6, 9)
    write_tiff(tmp_path / "a.tif", values.astype(f"{order}f4").tobytes(), (9, 6), 32, sample_format=3, order=order)
    expected = np.rint(values.astype(np.float64) * 255)
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif")[..., 1], expected)


@pytest.mark.parametrize("value", [255.0, -0.5, 1.01, np.nan, np.inf])
def test_floats_of_another_range_are_refused(tmp_path, value):
    values = np.full((6, 9), 0.5, np.float32)
    values[3, 4] = value
    write_tiff(tmp_path / "a.tif", values.tobytes(), (9, 6), 32, sample_format=3)
    with pytest.raises(DataError, match=r"floating-point values .* expected 0 \(black\) to 1 \(white\)"):
        read_image(tmp_path / "a.tif")


@pytest.mark.parametrize(("bits", "sample_format"), [(32, 1), (32, 2), (16, 2)])
def test_integers_without_a_certain_range_are_refused(tmp_path, bits, sample_format):
    write_tiff(tmp_path / "a.tif", bytes(54 * bits // 8), (9, 6), bits, sample_format=sample_format)
    with pytest.raises(DataError, match="store 8 or 16 unsigned bits"):
        read_image(tmp_path / "a.tif")


def test_floats_where_white_is_zero_are_refused(tmp_path):
    write_tiff(tmp_path / "a.tif", bytes(54 * 4), (9, 6), 32, photometric=0, sample_format=3)
    with pytest.raises(DataError, match="white is 0"):
        read_image(tmp_path / "a.tif")


@pytest.mark.parametrize(("depth", "key"), [(1, 0), (2, 1), (4, 5), (8, 200), (16, 50000)])
def test_transparent_grey_of_any_depth_is_white(tmp_path, depth, key):
    values = np.arange(2**depth) if depth < 16 else np.array([0, 1, 49999, 50000, 50001, 65535])
    row = int("".join(f"{value:0{depth}b}" for value in values).ljust(8, "0"), 2).to_bytes(
        max(len(values) * depth // 8, 1), "big"
    )
    write_png(tmp_path / "a.png", [row], len(values), depth, 0, png_chunk(b"tRNS", key.to_bytes(2, "big")))
    expected = np.floor(values / (2**depth - 1) * 255 + 0.5)
    expected[values == key] = 255
    np.testing.assert_array_equal(read_image(tmp_path / "a.png")[0, :, 2], expected)


def test_transparent_colour_is_white_or_refused(tmp_path):
    key = png_chunk(b"tRNS", bytes([0, 10, 0, 20, 0, 30]))
    write_png(tmp_path / "8.png", [bytes([10, 20, 30, 10, 20, 31])], 2, 8, 2, key)
    assert read_image(tmp_path / "8.png").tolist() == [[[255, 255, 255], [10, 20, 31]]]
    write_png(
        tmp_path / "16.png", [bytes(12)], 2, 16, 2, key
    )  # Pillow gives 8 of the 16 bits: another colour may match
    with pytest.raises(DataError, match="16-bit colours with a transparent one"):
        read_image(tmp_path / "16.png")
