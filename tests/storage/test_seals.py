"""A sealed record is read back, and every single flipped bit of it is refused."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gft_edge.errors import ArtifactError
from gft_edge.files import write_json
from gft_edge.storage.seals import read_sealed, write_sealed

RECORD = {"labels": ["ant", "bee"], "scale": 0.30000000000000004, "nested": {"on": True, "none": None, "n": 3}}


def read(path):
    return read_sealed(path, "record", "make it again")


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=8,
    )
)
def test_any_record_comes_back(tmp_path_factory, value):
    path = tmp_path_factory.mktemp("seal") / "record.json"
    try:
        write_sealed(path, {"value": value})
    except (UnicodeEncodeError, UnicodeError):
        return  # a lone surrogate is no text
    assert read(path) == {"value": value}


def test_every_flipped_bit_is_refused(tmp_path):
    path = tmp_path / "record.json"
    write_sealed(path, RECORD)
    whole = path.read_bytes()
    for position in range(len(whole)):
        for bit in range(8):
            changed = bytearray(whole)
            changed[position] ^= 1 << bit
            path.write_bytes(changed)
            with pytest.raises(ArtifactError):
                read(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: json.dumps(json.loads(text)), "seal does not match"),
        (lambda text: text.replace("{\n", '{\n  "labels": [],\n', 1), "'labels' stands twice"),
        (lambda text: text.replace("bee", "cow"), "make it again"),
        (lambda text: text[:-20], "JSON"),
    ],
    ids=["reformatted", "key twice", "edited", "cut"],
)
def test_other_texts_of_a_record_are_refused(tmp_path, change, message):
    path = tmp_path / "record.json"
    write_sealed(path, RECORD)
    path.write_text(change(path.read_text()))
    with pytest.raises(ArtifactError, match=message):
        read(path)


def test_a_record_without_a_seal_says_so(tmp_path):
    write_json(tmp_path / "record.json", RECORD)
    with pytest.raises(ArtifactError, match="no seal"):
        read(tmp_path / "record.json")
