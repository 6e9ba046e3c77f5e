from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from gft_edge.benchmarks.torture import mutants
from gft_edge.benchmarks.torture.mutants import mutant, read_mutants
from gft_edge.benchmarks.torture.mutate import MUTATORS, mutate_json, reseal
from gft_edge.benchmarks.torture.readers import Reader

SLOW = ("report-", "bench-page", "manifest", "family", "golden")


def test_changed_inputs_are_used_or_refused(every_reader, scratch, tmp_path):
    finds = []
    for reader in every_reader.values():
        count = 1 if reader.name.startswith(SLOW) else 4
        finds += read_mutants(reader, count, 0, scratch, tmp_path / "finds").finds
    assert not finds


def test_inputs_follow_from_the_seed(every_reader):
    for reader in every_reader.values():
        assert mutant(reader, 5, 7) == mutant(reader, 5, 7)
        assert len({mutant(reader, 5, number) for number in range(20)}) > 10


@pytest.mark.parametrize("form", ["bytes", "text", "json", "sealed"])
def test_most_changes_change_something(form):
    data = json.dumps({"a": [1, 2.5, "x"], "b": {"c": None, "d": True}}).encode()
    changed = [MUTATORS[form](data, random.Random(seed)) for seed in range(100)]
    assert sum(one != data for one in changed) > 80


def test_most_changed_json_is_still_json():
    data = json.dumps({"a": [1, 2.5, "x"] * 5, "b": {"c": None, "d": True}}).encode()
    readable = 0
    for seed in range(100):
        try:
            json.loads(mutate_json(data, random.Random(seed)))
            readable += 1
        except (ValueError, RecursionError):
            pass
    assert readable > 70


def test_a_resealed_record_passes_its_seal(tmp_path):
    from gft_edge.storage.seals import read_sealed

    (tmp_path / "a.json").write_bytes(reseal(b'{"b": 1, "seal": "old"}'))
    assert read_sealed(tmp_path / "a.json", "record", "make it again") == {"b": 1}


def test_a_find_is_written_once_with_its_place(scratch, tmp_path):
    def read(path):
        return {}[path.read_bytes()[:1]]

    reader = Reader("bad", "bytes", ".bin", (b"abcdefgh" * 9,), read)
    result = read_mutants(reader, 10, 0, scratch, tmp_path)
    assert result.counts == {"traceback": 10} and result.failed == 10
    (find,) = result.finds
    assert find.times == 10 and "KeyError" in find.detail
    assert (tmp_path / find.file).read_bytes() in [mutant(reader, 0, number) for number in range(10)]


def test_every_reader_gets_its_least_number_and_the_others_by_share(scratch, tmp_path, monkeypatch):
    monkeypatch.setattr(mutants, "LEAST", 3)
    every = [Reader(f"r{share}", "bytes", ".bin", (b"abc",), Path.read_bytes, share) for share in (0.01, 1.0, 2.0)]
    found = mutants.measure(every, 60, 0, scratch, tmp_path)
    assert [(result.reader, result.tried) for result in found] == [("r0.01", 3), ("r1.0", 20), ("r2.0", 40)]


def test_integers_beyond_the_range_of_floats_are_changed_too():
    rng = random.Random(0)
    for _ in range(100):
        mutate_json(json.dumps({"steps": 10**400}).encode(), rng)


def test_no_changed_value_contains_itself():
    data = json.dumps({"a": {"b": [[], {}]}}).encode()
    for seed in range(3000):
        mutate_json(data, random.Random(seed))
