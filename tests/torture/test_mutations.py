from __future__ import annotations

import ast
import json
import subprocess
from pathlib import Path

import pytest

from gft_edge.benchmarks.torture.mutations.__main__ import main
from gft_edge.benchmarks.torture.mutations.catalogue import Mutation, chosen, mutated, read_catalogue
from gft_edge.benchmarks.torture.mutations.page import markdown
from gft_edge.benchmarks.torture.mutations.running import Verdict, key_of
from gft_edge.benchmarks.torture.mutations.trees import copied_tree
from gft_edge.errors import CheckFailed, ConfigError

ROOT = Path(__file__).parents[2]
CATALOGUE = read_catalogue()

SUMS = "def total(values):\n    return sum(values)\n\n\ndef mean(values):\n    return total(values) / len(values)\n"
TESTS = "from gft_edge.sums import {name}\n\n\ndef test_it():\n    assert {name}([2, 4]) == {value}\n"
AREA = """
title = "Sums"
wider = ["tests"]

[[mutations]]
file = "gft_edge/sums.py"
old = "sum(values)"
new = "sum(values[1:])"
breaks = "The first value is left out."
tests = ["tests/test_total.py"]

[[mutations]]
file = "gft_edge/sums.py"
old = "/ len(values)"
new = "/ (len(values) - 1)"
breaks = "The mean divides by one less."
tests = ["tests/test_total.py"]

[[mutations]]
file = "gft_edge/sums.py"
old = "total(values) /"
new = "1 * total(values) /"
breaks = "Nothing."
tests = ["tests/test_mean.py"]
"""


@pytest.mark.parametrize("one", CATALOGUE, ids=lambda one: f"{one.number}-{Path(one.mutation.file).stem}")
def test_every_mutation_fits_the_tree(one):
    text = mutated(ROOT, one.mutation)
    if one.mutation.file.endswith(".py"):
        ast.parse(text)
    for test in (*one.mutation.tests, *one.area.wider):
        assert (ROOT / test.partition("::")[0]).exists(), test


def test_the_catalogue_has_sixty():
    assert [one.number for one in CATALOGUE] == list(range(1, 61))


@pytest.fixture
def tiny(tmp_path, monkeypatch) -> Path:
    """A working tree of git whose package has one module and one mapped folder; two tests, and a file of mutations beside it."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # half of the start of a pytest
    root = tmp_path / "root"
    files = {
        "gft_edge/__init__.py": "",
        "export/__init__.py": "",
        "gft_edge/sums.py": SUMS,
        "tests/test_total.py": TESTS.format(name="total", value=6),
        "tests/test_mean.py": TESTS.format(name="mean", value=3),
    }
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    for command in (["init", "--quiet"], ["add", "."]):
        subprocess.run(["git", "-C", str(root), *command], check=True)
    (tmp_path / "areas").mkdir()
    (tmp_path / "areas" / "sums.toml").write_text(AREA)
    return root


def _main(tiny: Path, *more: str) -> int:
    beside = tiny.parent
    arguments = ["--root", str(tiny), "--areas", str(beside / "areas"), *more]
    return main([str(beside / "out.json"), str(beside / "page.md"), *arguments])


def test_named_tests_then_wider_ones_then_a_survivor(tiny, capsys):
    assert _main(tiny) == 1
    assert "without a mutation" in capsys.readouterr().err
    data = json.loads((tiny.parent / "out.json").read_text())
    found = {one["key"]: (one["stage"], one["reason"]) for one in data["verdicts"]}
    keys = [key_of(tiny, one.mutation) for one in read_catalogue(tiny.parent / "areas")]
    assert [found[key] for key in keys] == [
        ("named", "tests/test_total.py::test_it"),
        ("wider", "tests/test_mean.py::test_it"),
        ("survived", ""),
    ]
    assert (tiny / "gft_edge/sums.py").read_text() == SUMS
    page = (tiny.parent / "page.md").read_text()
    assert "3 of 3 mutations were run, **2 were caught**: 1 by the named tests, 1 by others" in page
    assert "- 3, `gft_edge/sums.py`: Nothing. Not explained" in page

    # What is known is not run again; a survivor needs a reason.
    areas = tiny.parent / "areas" / "sums.toml"
    areas.write_text(AREA + 'survives = "A product with one."\n')
    assert _main(tiny) == 0
    assert "without a mutation" not in capsys.readouterr().err
    assert "Nothing. A product with one." in (tiny.parent / "page.md").read_text()


def test_tests_that_fail_without_a_mutation_are_an_error(tiny):
    (tiny / "tests/test_total.py").write_text(TESTS.format(name="total", value=7))
    with pytest.raises(CheckFailed, match="without a mutation the tests fail: tests/test_total.py::test_it"):
        _main(tiny, "--only", "1")
    assert not (tiny.parent / "out.json").exists()


def test_the_page_says_what_was_not_run_and_what_hung(tiny):
    first, second, third = read_catalogue(tiny.parent / "areas")
    about = {"machine": "a machine", "commit": None, "limits": {"named": 600.0, "wider": 3600.0}}
    hung = Verdict("", "named", "time limit of 600 s", 600.0)
    found = Verdict("", "wider", "tests/test_mean.py::test_it[a | b]", 60.0)
    page = markdown(about, [(first, hung), (second, None), (third, found)])
    assert "2 of 3 mutations were run, **2 were caught**" in page
    assert "1 by the named tests, 1 by others of the area; 1 of these by the time limit. 0 survived." in page
    assert "| Sums | 3 | 2 |" in page
    assert [line.split(" | ")[-1] for line in page.splitlines() if "gft_edge/sums.py" in line] == [
        *("time limit of 600 s |", "not run |", "`test_mean.py::test_it` |")
    ]


def test_an_endless_test_ends_at_the_limit(tiny, tmp_path):
    (tiny / "tests/test_total.py").write_text("import time\n\n\ndef test_it():\n    time.sleep(600)\n")
    with copied_tree(tiny, tmp_path / "copy") as tree:
        run = tree.run_tests(["tests/test_total.py"], 2.0)
    assert not run.passed and run.reason == "time limit of 2 s" and 2 <= run.seconds < 15
    assert not (tmp_path / "copy").exists()


def test_bad_catalogues_are_refused(tiny):
    mutation = Mutation("gft_edge/sums.py", "values", "numbers", "x", ("tests",))
    with pytest.raises(ConfigError, match="occurs 5 times"):
        mutated(tiny, mutation)
    with pytest.raises(ConfigError, match="another new text"):
        Mutation("a.py", "x", "x", "y", ("tests",))
    with pytest.raises(ConfigError, match="no number 61; they go from 1 to 60"):
        chosen(CATALOGUE, [60, 61])
    (tiny / "gft_edge/sums.py").write_text(SUMS.replace("sum(values)", "sum(v for v in values)"))
    with pytest.raises(ConfigError, match="occurs 0 times"):
        _main(tiny)


def test_a_key_changes_with_mutation_file_and_tests_alone(tiny):
    mutation = read_catalogue(tiny.parent / "areas")[0].mutation
    keys = {key_of(tiny, mutation)}
    (tiny / "tests/test_mean.py").write_text("")
    assert key_of(tiny, mutation) in keys
    for file in ("gft_edge/sums.py", "tests/test_total.py"):
        with (tiny / file).open("a") as out:
            out.write("\n")
        keys.add(key_of(tiny, mutation))
    assert len(keys) == 3
