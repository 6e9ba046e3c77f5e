"""Class names from files of every form people have them in."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gft_edge.errors import ConfigError
from gft_edge.labels import read_labels, require_names

DATA = Path(__file__).parent / "labels"
NAMES = ("ant", "bee", "cat", "dog")


@pytest.mark.parametrize("name", ["labels_bom", "labels_spaces"])
def test_marks_and_blanks_are_taken_off(name):
    assert read_labels(DATA / f"{name}.txt", 4) == NAMES


def test_a_line_too_many_is_named_as_the_background():
    with pytest.raises(
        ConfigError, match=r"holds 5 names, the model has 4 classes; its first, 'background', is no class"
    ):
        read_labels(DATA / "background.txt", 4)
    assert read_labels(DATA / "background.txt", 5)[0] == "background"
    assert len(read_labels(DATA / "background.txt")) == 5


def test_a_name_twice_is_refused_with_both_lines():
    with pytest.raises(ConfigError, match=r"line 3 repeats 'bee' of line 2"):
        read_labels(DATA / "labels_dup.txt", 4)


TEXT = "ant\nbee\ncat\ndog"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", TEXT.encode("utf-8-sig")),
        ("a.txt", TEXT.encode("utf-16")),
        ("a.txt", b"\xfe\xff" + TEXT.encode("utf-16-be")),
        ("a.txt", TEXT.encode("utf-16-le")),
        ("a.txt", TEXT.replace("\n", "\r\n").encode() + b"\r\n\r\n  \r\n"),
        ("a.txt", TEXT.replace("\n", "\r").encode()),
        ("a.txt", "ant\n\u200bbee\ncat\u2060\ndog".encode()),
        ("a.names", b"\xc2\xa0ant \nbee\t\n\xef\xbb\xbfcat\ndog\n\n"),
        ("a.csv", b"index,name\n0,ant\n1,bee\n2,cat\n3,dog\n"),
        ("a.csv", b"1,ant\n2,bee\n3,cat\n4,dog\n"),
        ("a.csv", b"1;ant\r\n2;bee\r\n3;cat\r\n4;dog\r\n"),
        ("a.csv", b"\xef\xbb\xbfindex;name\r\n0;ant\r\n1;bee\r\n2;cat\r\n3;dog\r\n"),
        ("a.csv", b"name,id\nant,0\ncat,2\nbee,1\ndog,3\n"),
        ("a.csv", b"ant\nbee\ncat\ndog\n"),
        ("a.tsv", b"0\tant\n1\tbee\n2\tcat\n3\tdog\n"),
        ("a.json", json.dumps(NAMES).encode("utf-8-sig")),
        ("a.json", json.dumps({str(i): n for i, n in enumerate(NAMES)}).encode()),
        ("a.json", json.dumps({"id2label": {str(i): n for i, n in enumerate(NAMES)}}).encode()),
        ("a.json", json.dumps({"class_to_idx": {n: i for i, n in reversed(list(enumerate(NAMES)))}}).encode()),
    ],
)  # fmt: skip
def test_every_form_is_read(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    assert read_labels(tmp_path / name, 4) == NAMES


def test_indices_are_ordered_as_numbers(tmp_path):
    names = [f"class {index}" for index in range(12)]
    (tmp_path / "a.json").write_text(json.dumps({str(index): name for index, name in enumerate(names)}, sort_keys=True))
    assert read_labels(tmp_path / "a.json", 12) == tuple(names)


def test_a_comma_in_a_line_belongs_to_the_name(tmp_path):
    (tmp_path / "a.txt").write_text("tench, Tinca tinca\ngoldfish, Carassius auratus\n")
    assert read_labels(tmp_path / "a.txt", 2)[0] == "tench, Tinca tinca"
    (tmp_path / "a.csv").write_text('0,"tench, Tinca tinca"\n1,goldfish\n')
    assert read_labels(tmp_path / "a.csv", 2) == ("tench, Tinca tinca", "goldfish")
    (tmp_path / "a.csv").write_text("tench; Tinca tinca\ngoldfish; Carassius\n")
    assert read_labels(tmp_path / "a.csv", 2) == ("tench; Tinca tinca", "goldfish; Carassius")


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.txt", b"ant\n\nbee\n", "line 2 is blank"),
        ("a.txt", b"", "holds no names"),
        ("a.txt", b" \n\n", "holds no names"),
        ("a.txt", b"ant\nbee\ncat\n", "holds 3 names, the model has 4 classes"),
        ("a.txt", b"other\nant\nbee\ncat\ndog\n", "holds 5 names, the model has 4 classes"),
        ("a.txt", b"ant\nb\x1b[31mee\n", "line 2 holds the control character U+001B"),
        ("a.txt", b"ant\tx\nbee", "line 1 holds the control character U+0009"),
        ("a.txt", "ant\nb\u202eee".encode(), "line 2 holds the control character U+202E"),
        ("a.txt", "ant\nb\u2028ee".encode(), "line 2 holds the control character U+2028"),
        ("a.txt", b"\xff\x00\x81", "cannot be read"),
        ("a.txt", b"ant\nbee \nbee\ndog", "line 3 repeats 'bee' of line 2"),
        ("a.csv", b"0,ant\n2,bee\n", "line 2: index 2, expected 1"),
        ("a.csv", b"7,ant\n8,bee\n", "index 7, expected 0"),
        ("a.csv", b"ant,red\nbee,blue\n", "expected one name per row, or an index and a name"),
        ("a.csv", b"0,ant,x\n1,bee,y\n", "expected one name per row, or an index and a name"),
        ("a.csv", b"index,name\n", "holds no names"),
        ("a.json", b'{"a": "b"}', "expected a list of names"),
        ("a.json", b"[1, 2]", "expected a list of names"),
        ("a.json", b"{", "cannot be read"),
        ("a.json", b"[" * 100_000, "cannot be read (nested too deeply)"),
        ("a.json", b'["ant", "ant"]', "entry 1 repeats 'ant' of entry 0"),
        (".", None, "cannot be read (Is a directory)"),
        ("none.txt", None, "cannot be read (No such file or directory)"),
    ],
)
def test_what_cannot_be_a_list_of_labels_is_one_line(tmp_path, name, content, says):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError) as error:
        read_labels(tmp_path / name, 4)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("first", ["__background__", "_background_", "???", "Unlabeled"])
def test_other_words_for_the_background(tmp_path, first):
    (tmp_path / "a.txt").write_text(f"{first}\nant\nbee\n")
    with pytest.raises(ConfigError, match="is no class of this model: remove it"):
        read_labels(tmp_path / "a.txt", 2)


@given(st.binary(max_size=60), st.sampled_from(["a.txt", "a.csv", "a.json"]))
def test_any_bytes_are_read_or_refused(tmp_path_factory, data, name):
    file = tmp_path_factory.getbasetemp() / name
    file.write_bytes(data)
    try:
        assert require_names(read_labels(file), "again")
    except ConfigError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize("labels", [["a", "a"], ["a", ""], ["a", 3], ["a", "b\x07"]])
def test_labels_of_a_checkpoint_are_checked(labels):
    with pytest.raises(ConfigError, match="label 1"):
        require_names(labels, "checkpoint")
