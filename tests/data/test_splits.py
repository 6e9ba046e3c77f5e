from __future__ import annotations

import hashlib
import os
import shutil
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gft_edge.data.splits import PIECE, PIECES, SPLITS, content_key, part_of, split_by_hash

KEYS = st.integers(0, 10**6).map(lambda number: hashlib.sha256(str(number).encode()).digest())
CLASSES = st.lists(st.lists(KEYS, min_size=1, max_size=12), min_size=1, max_size=6)


def _keys(first, count):
    return [hashlib.sha256(str(first + number).encode()).digest() for number in range(count)]


@pytest.mark.parametrize("size", [0, 1, PIECE * PIECES, PIECE * PIECES + 1, 10 * PIECE * PIECES])
def test_copies_have_one_key_whatever_their_name_and_age(tmp_path, size):
    (tmp_path / "a.png").write_bytes(np.random.default_rng(size).bytes(size))
    (tmp_path / "folder").mkdir()
    shutil.copy(tmp_path / "a.png", tmp_path / "folder/b.jpg")
    os.utime(tmp_path / "folder/b.jpg", (1, 1))
    assert content_key(tmp_path / "a.png") == content_key(tmp_path / "folder/b.jpg")


@pytest.mark.parametrize("size", [100, PIECE * PIECES, 3 * PIECE * PIECES])
@pytest.mark.parametrize("place", [0.0, 0.999])
def test_a_changed_byte_or_another_size_gives_another_key(tmp_path, size, place):
    data = bytearray(np.random.default_rng(0).bytes(size))
    keys = set()
    for number, change in enumerate(
        (lambda: None, lambda: data.__setitem__(int(place * size), data[0] ^ 255), lambda: data.append(0))
    ):
        change()
        (tmp_path / str(number)).write_bytes(data)
        keys.add(content_key(tmp_path / str(number)))
    assert len(keys) == 3


def test_a_file_that_was_changed_gets_a_new_key(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"1")
    first = content_key(path)
    path.write_bytes(b"22")
    assert content_key(path) != first


def test_a_link_that_leads_nowhere_has_the_key_of_its_name(tmp_path):
    (tmp_path / "a.jpg").symlink_to(tmp_path / "none")
    assert content_key(tmp_path / "a.jpg") == content_key(tmp_path / "elsewhere/a.jpg")


def test_a_tenth_is_held_out_for_each_part_and_the_rest_is_for_training():
    shares = Counter(part_of(key) for key in _keys(0, 20000))
    assert {part: shares[part] / 20000 for part in SPLITS} == pytest.approx(
        {"train": 0.8, "val": 0.1, "test": 0.1}, abs=0.01
    )
    assert {part_of(key, ("val",)) for key in _keys(0, 1000)} == {"train", "val"}


def test_the_parts_of_fixed_keys_never_change():
    """Other numbers here would send images that models were trained on to the test images."""
    assert "".join(part_of(key)[:2] for key in _keys(0, 20)) == "trtrtrtrtrtrtrtrvatetrtrtrtrtrtrtrtrtrtr"


@given(CLASSES)
def test_every_class_has_training_images_and_one_of_each_part_where_it_has_three(classes):
    parts = split_by_hash(classes)
    seen: set[bytes] = set()
    for keys in classes:
        own = set(keys)
        if not own & seen:  # keys that an earlier class holds too stay in the part they have there
            have = Counter(parts[key] for key in own)
            assert have["train"] >= 1
            assert have["val"] >= 1 or len(own) < 2
            assert have["test"] >= 1 or len(own) < 3
        seen |= own
    assert set(parts) == seen


@given(st.lists(KEYS, min_size=1, max_size=12), st.randoms())
def test_order_and_copies_change_nothing(keys, random):
    shuffled = [*keys, *keys]
    random.shuffle(shuffled)
    assert split_by_hash([keys]) == split_by_hash([shuffled])


def test_further_images_do_not_move_those_of_a_large_class():
    before, after = split_by_hash([_keys(0, 200)]), split_by_hash([_keys(0, 400)])
    assert before == {key: after[key] for key in before}
    assert before == {key: part_of(key) for key in before}


def test_one_held_out_part_needs_two_images():
    for count, least in ((1, 0), (2, 1), (3, 1)):
        have = Counter(split_by_hash([_keys(50, count)], ("val",)).values())
        assert (have["val"] >= least, have["train"] >= 1, have["test"]) == (True, True, 0)
