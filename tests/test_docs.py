"""The pages in docs/: the program runs, and every name that they give exists."""

import importlib
import re
from pathlib import Path

import gft_edge
from gft_edge.config.model import SCORES

DOCS = Path(__file__).parents[1] / "docs"
PAGE = (DOCS / "python.md").read_text(encoding="utf-8")
SELECTION = (DOCS / "selection.md").read_text(encoding="utf-8")


def test_the_program_of_the_python_page_runs(tmp_path, monkeypatch, capsys):
    program = re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)[1]
    monkeypatch.chdir(tmp_path)
    exec(
        compile(program.replace("images=64", "images=16").replace("images=160", "images=64"), "docs/python.md", "exec"),
        {},
    )
    verdict, figures = capsys.readouterr().out.splitlines()
    assert verdict in ("pass", "inconclusive")
    assert 0.8 < float(figures.split()[0]) <= 1


def test_the_program_of_the_selection_page_runs(capsys):
    program = re.search(r"```python\n(.*?)```", SELECTION, re.DOTALL)[1]
    exec(compile(program, "docs/selection.md", "exec"), {})
    assert capsys.readouterr().out.splitlines() == ["True", "[147, 98, 49]"]


def test_the_program_of_the_search_page_runs(capsys):
    program = re.search(r"```python\n(.*?)```", (DOCS / "search.md").read_text(encoding="utf-8"), re.DOTALL)[1]
    exec(
        compile(program.replace("points=8", "points=2").replace("images=32", "images=16"), "docs/search.md", "exec"), {}
    )
    assert capsys.readouterr().out.startswith("gft-edge export builtin --budget ")


def test_the_selection_page_lists_every_score():
    names = re.findall(r"^\| `([a-z-]+)`", SELECTION, re.MULTILINE)
    assert tuple(names) == SCORES


def test_functions_of_the_table_exist():
    assert gft_edge.__version__
    for row in re.findall(r"^\| `[a-z]+` \| (`gft_edge\..*) \|$", PAGE, re.MULTILINE):
        names = re.findall(r"`([\w.]+)`", row)
        assert names
        package = ""
        for name in names:
            package = name.rpartition(".")[0] or package
            assert callable(getattr(importlib.import_module(package), name.rpartition(".")[2])), name
