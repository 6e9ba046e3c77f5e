from __future__ import annotations

import json

import pytest

from gft_edge.benchmarks.torture import writers
from gft_edge.benchmarks.torture.forks import Ended
from gft_edge.benchmarks.torture.writers import Pair, WritersResult


@pytest.mark.parametrize("name", ["predict twice into one file", "quantize twice into one folder"])
def test_two_writers_keep_both_results_or_one_is_refused(made, tmp_path, name):
    (result,) = writers.measure(made, tmp_path, seed=0, count=1, names=[name])
    assert result.tried == 1 and result.failed == 0, result


@pytest.fixture
def pair():
    commands = (("predict", "a"), ("predict", "b"))
    return Pair("two", lambda folder: None, commands, lambda folder: json.loads((folder / "x").read_text()))


RIGHT = writers._Right({(0, 0): {"12"}, (0, 2): {"1"}}, {"x"}, [1.0, 1.0])


@pytest.mark.parametrize(
    ("content", "codes", "said", "problem"),
    [
        ("12", (0, 0), "", ""),
        ("1", (0, 2), "gft-edge predict: not empty\n", ""),
        ("1", (0, 0), "", "another result"),
        ("1", (0, 2), "", "exit code 2"),
        ("1", (0, 1), "gft-edge predict: x\n", "exit code 1"),
        ("1", (2, 2), "gft-edge predict: x\n", "no order"),
        ("{", (0, 0), "", "JSONDecodeError"),
    ],
)
def test_lost_and_torn_results_and_other_ends_are_told_apart(pair, tmp_path, content, codes, said, problem):
    (tmp_path / "x").write_text(content)
    ended = (Ended(codes[0], said, 0.1), Ended(codes[1], said, 0.1))
    found = writers._problem(pair, tmp_path, RIGHT, ended)
    assert problem in found and bool(problem) == bool(found)


def test_a_file_that_no_order_leaves_is_named(pair, tmp_path):
    (tmp_path / "x").write_text("12")
    (tmp_path / ".x.tmp").touch()
    assert "leftovers: .x.tmp" in writers._problem(pair, tmp_path, RIGHT, (Ended(0, "", 0.1), Ended(0, "", 0.1)))


def test_what_is_neither_kept_nor_refused_failed():
    assert WritersResult("x", 5, 2, 1).failed == 2
