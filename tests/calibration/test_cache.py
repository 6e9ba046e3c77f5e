from __future__ import annotations

import json
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gft_edge.calibration.cache import (
    CalibrationCache,
    decode_version,
    encode_version,
    read_cache,
    require_fit,
    write_cache,
)
from gft_edge.calibration.ranges import Ranges
from gft_edge.errors import ArtifactError, ConfigError

DATA = Path(__file__).parent / "data"
HAND_WRITTEN = b"""TRT-8601-EntropyCalibration2
image: 3c010a14
/blocks.0/attn/qkv/MatMul: output 0: 3f800000
(Unnamed Layer* 12) [Shuffle]_output: 3d4ccccd
na\xc3\xafve: 00000001
"""


def _ranges(**values):
    return Ranges(values, "graph tensors", "entropy", 64, "g" * 64, "c" * 64, "p" * 12)


def _values(cache):
    """Ranges of the scales of a cache, which are bits of float32."""
    return {name: struct.unpack("!f", struct.pack("!I", bits))[0] * 127 for name, bits in cache.scales.items()}


def test_hand_written_file_is_read_and_written_byte_for_byte():
    cache = CalibrationCache.loads(HAND_WRITTEN)
    assert (cache.tensorrt, cache.algorithm) == ("8.6.1", "EntropyCalibration2")
    assert list(cache.scales) == [
        "image",
        "/blocks.0/attn/qkv/MatMul: output 0",
        "(Unnamed Layer* 12) [Shuffle]_output",
        "naïve",
    ]
    assert cache.dumps() == HAND_WRITTEN
    values = _values(cache)
    assert values["image"] == pytest.approx(1, rel=1e-3)
    assert values["/blocks.0/attn/qkv/MatMul: output 0"] == 127


def test_ranges_make_the_file_one_expects():
    cache = CalibrationCache.of_ranges(_ranges(b=127.0, a=1.0, dead=0.0), "10.3.0", "MinMaxCalibration")
    tiny = struct.pack("!f", 1e-5 / 127).hex()
    unit = struct.pack("!f", 1 / 127).hex()
    assert cache.dumps() == f"TRT-100300-MinMaxCalibration\nb: 3f800000\na: {unit}\ndead: {tiny}\n".encode()


NAMES = st.text(st.characters(blacklist_categories=("Cs",), blacklist_characters="\r\n"), min_size=1).map(
    lambda text: text.replace("\x85", ": ")
)
BITS = st.integers(1, 0x7F7FFFFF)


@given(st.dictionaries(NAMES, BITS), st.sampled_from(["8.5.2", "8.6.1", "10.3.0", "10.13.3"]))
def test_round_trip(scales, version):
    cache = CalibrationCache(version, "MinMaxCalibration", scales)
    again = CalibrationCache.loads(cache.dumps())
    assert again == cache
    assert list(again.scales) == list(scales)


@given(st.dictionaries(NAMES, st.integers(0x33AB0000, 0x7F7FFFFF), min_size=1))
def test_ranges_and_back_are_the_same_bits(scales):
    cache = CalibrationCache("8.6.1", "EntropyCalibration2", scales)
    assert CalibrationCache.of_ranges(_ranges(**_values(cache)), "8.6.1") == cache


@given(st.binary(max_size=80))
def test_any_bytes_are_read_or_refused(data):
    for content in (data, b"TRT-8601-EntropyCalibration2\n" + data):
        try:
            CalibrationCache.loads(content)
        except ArtifactError as error:
            assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "line 1 is ''"),
        (b"\xff\xfd", "is not a text file"),
        (b"TRT-8601\na: 3c010a14\n", "line 1 is 'TRT-8601'"),
        (b"TRT-8601-Guess\n", "algorithm must be one of"),
        (b"TRT-8601-MinMaxCalibration\na 3c010a14\n", "line 2 is 'a 3c010a14'"),
        (b"TRT-8601-MinMaxCalibration\na: 3c010a14\n\nb: 1\n", "line 3 is ''"),
        (b"TRT-8601-MinMaxCalibration\na: 3c010a1g\n", "expected NAME: 8 hexadecimal digits"),
        (b"TRT-8601-MinMaxCalibration\na: 1\nb: 1\na: 2\n", "line 4 gives 'a' a second scale, line 2 has one"),
        (b"TRT-8601-MinMaxCalibration\na: 1\nb: 7fc00000\n", "line 3: scale of 'b' is NaN (7fc00000)"),
        (b"TRT-8601-MinMaxCalibration\na: ffc00000\n", "line 2: scale of 'a' is NaN"),
        (b"TRT-8601-MinMaxCalibration\na: 7f800000\n", "line 2: scale of 'a' is infinite"),
        (b"TRT-8601-MinMaxCalibration\na: ff800000\n", "line 2: scale of 'a' is infinite"),
        (b"TRT-8601-MinMaxCalibration\na: bf800000\n", "line 2: scale of 'a' is negative"),
        (b"TRT-8601-MinMaxCalibration\na: 80000000\n", "line 2: scale of 'a' is zero"),
        ((DATA / "infinity.cache").read_bytes(), "line 2: scale of 'input' is infinite"),
        ((DATA / "zeros.cache").read_bytes(), "line 2: scale of 'input' is zero"),
        ((DATA / "garbage.cache").read_bytes(), "line 2 is 'this is not a cache line at all'"),
        (b"TRT-110400-MinMaxCalibration\n", "version '11.4.0' has none"),
    ],
)
def test_malformed_caches_are_refused(content, says):
    with pytest.raises(ArtifactError) as error:
        CalibrationCache.loads(content)
    assert says in str(error.value)


def test_line_ends_of_windows_and_short_hexadecimals_are_read():
    cache = CalibrationCache.loads(b"TRT-8502-MinMaxCalibration\r\na: 1\r\nb: 3f800000")
    assert dict(cache.scales) == {"a": 1, "b": 0x3F800000}


@pytest.mark.parametrize(
    "edited",
    [
        lambda text: b"\xef\xbb\xbf" + text,
        lambda text: b"\xff\xfe" + text.decode().encode("utf-16-le"),
        lambda text: text.replace(b"\n", b" \r\n") + b"\r\n \r\n",
    ],
)
def test_what_an_editor_adds_is_taken_off(edited):
    assert CalibrationCache.loads(edited(HAND_WRITTEN)).dumps() == HAND_WRITTEN


TENSORS = {"image", "/blocks.0/attn/qkv/MatMul_output_0", "logits"}


def fit(text, tensorrt="8.6"):
    return require_fit(CalibrationCache.loads(text), TENSORS, tensorrt, "TensorRT cache x")


def test_a_cache_of_the_graph_fits_and_says_what_it_leaves_out():
    head = b"TRT-8601-EntropyCalibration2\nimage: 3c010a14\n(Unnamed Layer* 7) [Shuffle]_output: 3c010a14\n"
    assert "scales for 1 of 3 tensors" in fit(head)[0]
    assert fit(head + b"/blocks.0/attn/qkv/MatMul_output_0: 1\nlogits: 1\n") == ()
    assert fit(head, None)


@pytest.mark.parametrize(
    ("text", "tensorrt", "says"),
    [
        (
            (DATA / "foreign.cache").read_bytes(),
            "8.6",
            "line 2: 'images' is not a tensor of this graph, nor 1 more of its 3 names",
        ),
        (
            b"TRT-8601-EntropyCalibration2\nimage: 1\nother: 1\n",
            "8.6",
            "line 3: 'other' is not a tensor of this graph; the cache",
        ),
        (
            b"TRT-8601-EntropyCalibration2\n(Unnamed Layer* 1) [X]: 1\n",
            "8.6",
            "has no scale for any tensor of this graph",
        ),
        (b"TRT-8601-EntropyCalibration2\n", "8.6", "has no scale for any tensor of this graph"),
        (
            (DATA / "trt10_for_8.cache").read_bytes(),
            "8.6",
            "line 1: is for TensorRT 10.3.0, this build for TensorRT 8.6",
        ),
    ],
)
def test_a_cache_of_another_graph_or_generation_is_refused(text, tensorrt, says):
    with pytest.raises(ArtifactError) as error:
        fit(text, tensorrt)
    assert says in str(error.value)


def test_reading_a_cache_needs_no_torch():
    code = "import sys, gft_edge.calibration.cache; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


@pytest.mark.parametrize(
    ("version", "code"),
    [("8.5.2", 8502), ("8.6.1.6", 8601), ("10.3", 100300), ("10.11.0", 101100), ("10.16.2", 101602)],
)
def test_versions(version, code):
    assert encode_version(version) == code
    assert encode_version(decode_version(str(code))) == code


@pytest.mark.parametrize("version", ["11.0.0", "eight", "8", "8.10.0", "", "-8.6.1"])
def test_versions_without_caches_are_refused(version):
    with pytest.raises(ConfigError, match="TensorRT cache: version"):
        encode_version(version)


def test_ranges_of_modules_make_no_cache():
    with pytest.raises(ConfigError, match="calibrate the exported artefact"):
        CalibrationCache.of_ranges(Ranges({}, "module inputs", "max", 1, "m", None, None), "8.6.1")


@pytest.fixture
def written(tmp_path):
    path = tmp_path / "deep/tensorrt.cache"
    write_cache(path, CalibrationCache.of_ranges(_ranges(a=1.0), "8.6.1"), _ranges(a=1.0))
    return path


ORIGIN = {
    "graph_sha256": "g" * 64,
    "card_id": "c" * 64,
    "preprocess": "p" * 12,
    "method": "entropy",
    "algorithm": "EntropyCalibration2",
    "tensorrt": "8.6.1",
}


def test_cache_that_fits_is_read(written):
    assert read_cache(written, **ORIGIN).scales.keys() == {"a"}
    assert json.loads(written.with_name("tensorrt.cache.json").read_text())["graph_sha256"] == "g" * 64


@pytest.mark.parametrize("key", list(ORIGIN))
def test_cache_that_does_not_fit_is_refused_and_says_why(written, key):
    with pytest.raises(ArtifactError, match=rf"its origin differs: {key} is .*, here it is other; calibrate again"):
        read_cache(written, **{**ORIGIN, key: "other"})


def test_everything_that_differs_is_named(written):
    with pytest.raises(ArtifactError, match=r"graph_sha256 is g+, here it is x; card_id is c+, here it is y;"):
        read_cache(written, graph_sha256="x", card_id="y")


def test_changed_cache_is_refused(written):
    written.write_bytes(written.read_bytes().replace(b"a: ", b"b: "))
    with pytest.raises(ArtifactError, match="cache_sha256 is"):
        read_cache(written)


def test_cache_without_its_origin_is_refused(written):
    written.with_name("tensorrt.cache.json").unlink()
    with pytest.raises(ArtifactError, match="no such file"):
        read_cache(written)
    with pytest.raises(ArtifactError, match="cannot be read"):
        read_cache(written.with_name("none"))
