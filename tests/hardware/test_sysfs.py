from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gft_edge.hardware.sysfs import read_int, read_text


@pytest.mark.parametrize(
    ("content", "text"), [(b"VDD_IN\n", "VDD_IN"), (b"a\0b\0", "a\0b"), (b"\xff\n", "\ufffd"), (b"", "")]
)
def test_text(tmp_path, content, text):
    (tmp_path / "file").write_bytes(content)
    assert read_text(tmp_path / "file") == text


def test_what_cannot_be_read_is_none(tmp_path):
    assert (
        read_text(tmp_path)
        is read_int(tmp_path)
        is read_text(tmp_path / "absent")
        is read_int(tmp_path / "absent")
        is None
    )


@given(st.integers(-(10**12), 10**12))
def test_integers(tmp_path_factory, value):
    file = tmp_path_factory.getbasetemp() / "integer"
    file.write_text(f"{value}\n")
    assert read_int(file) == value


@given(st.one_of(st.binary(max_size=30), st.text("0123456789-+_ .xٙ٣²", max_size=25).map(str.encode)))
def test_any_content(tmp_path_factory, content):
    file = tmp_path_factory.getbasetemp() / "content"
    file.write_bytes(content)
    assert isinstance(read_int(file), (int, type(None)))
