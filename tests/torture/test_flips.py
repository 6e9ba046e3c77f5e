from __future__ import annotations

import random

import pytest

from gft_edge.benchmarks.torture import flips
from gft_edge.benchmarks.torture.flips import Change, Target, draw, flip

COUNT = 8
FORMS = [
    "model.onnx",
    "golden.npz",
    "manifest.json",
    "reports/verify.json",
    "checkpoint: weights",
    "checkpoint: config.json",
    "state.pt",
    "ranges.json",
    "card.json",
    "TensorRT cache",
    "record of the cache",
    "bench file",
    "policy",
    "recipe",
]


@pytest.mark.parametrize("kind", FORMS)
def test_damage_is_refused_or_without_effect(made, kind):
    target = next(target for target in flips.targets(made) if target.kind == kind)
    intact = target.file.read_bytes()
    result = flip(target, COUNT, seed=1)
    assert result.tried == COUNT
    assert result.failed == 0, result.examples
    assert target.file.read_bytes() == intact


def test_a_reader_that_takes_anything_fails(tmp_path):
    file = tmp_path / "a.txt"
    file.write_bytes(b"some text")
    result = flip(Target("text", file, file.read_bytes), 20, seed=0)
    assert result.counts == {"accepted": 20} and result.failed == 20 and result.examples


def test_a_reader_that_ignores_all_is_harmless(tmp_path):
    file = tmp_path / "a.txt"
    file.write_bytes(b"some text")
    assert flip(Target("text", file, lambda: 0), 20, seed=0).counts == {"harmless": 20}


@pytest.mark.parametrize("name", flips.CHANGES)
def test_changes_are_drawn_by_the_seed_and_leave_another_content(name):
    data = bytes(range(200))
    drawn = [draw(data, random.Random(seed)) for seed in range(600)]
    assert drawn == [draw(data, random.Random(seed)) for seed in range(600)]
    chosen = [change for change in drawn if change.name == name]
    assert chosen and all(change.apply(data) != data for change in chosen)


def test_a_change_in_place_is_undone(tmp_path):
    file, change = tmp_path / "a", Change("bit", 3, 1, b"x")
    file.write_bytes(b"abcdef")
    flips.write_change(file, b"abcdef", change)
    assert file.read_bytes() == b"abcxef"
    flips.restore(file, b"abcdef", change)
    assert file.read_bytes() == b"abcdef"
