"""What the pages say against the code: messages, commands, releases, words, pictures."""

from __future__ import annotations

import ast
import base64
import io
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gft_edge.benchmarks.experiments import idea_pictures
from gft_edge.cli.main import verb_module, verb_parser
from gft_edge.errors import CheckFailed
from gft_edge.hardware.jetpack import RELEASES
from gft_edge.hardware.jetson import JETPACKS

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
FOLDERS = ("gft_edge", "export", "calibration", "benchmarks")


def page(name: str) -> str:
    return (DOCS / f"{name}.md").read_text(encoding="utf-8")


def section(text: str, title: str) -> str:
    return text.split(f"## {title}\n", 1)[1].split("\n## ", 1)[0]


def table_rows(text: str) -> list[list[str]]:
    """Cells of every row of the tables of a text, without heads; a bar inside a cell is escaped."""
    lines = re.findall(r"^\|.*\|$", text, re.MULTILINE)
    heads = {number + step for number, line in enumerate(lines) if set(line) <= set("|-") for step in (-1, 0)}
    rows = [line for number, line in enumerate(lines) if number not in heads]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in rows]


@pytest.fixture(scope="module")
def written() -> list[str]:
    """Every text in the code, with a zero byte where a value is put in."""
    found = []
    for file in (file for folder in FOLDERS for file in sorted((ROOT / folder).rglob("*.py"))):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                found.append("".join(v.value if isinstance(v, ast.Constant) else "\0" for v in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


def quoted_messages(name: str) -> list[str]:
    return [words for row in table_rows(page(name)) for words in re.findall(r"`([^`]+)`", row[0])]


@pytest.mark.parametrize("words", quoted_messages("troubleshooting"))
def test_a_message_is_quoted_as_it_is_written(written, words):
    parts = [part for part in re.split(r" ?\.\.\. ?", words) if part]
    assert max(map(len, parts)) >= 7
    for part in parts:
        assert any(part in text for text in written), part


def test_troubleshooting_quotes_messages_of_every_theme():
    text = page("troubleshooting")
    assert len(quoted_messages("troubleshooting")) > 60
    for title in re.findall(r"^## (.*)$", text, re.MULTILINE):
        assert len(table_rows(section(text, title))) >= 4, title


@pytest.mark.parametrize("name", ["troubleshooting", "board"])
def test_commands_parse(name):
    lines = re.findall(r"`(?:sudo env \S+ )?(gft-edge [^`]+)`", page(name))
    lines = [line for line in lines if len(line.split()) > 2]
    assert len(lines) > 2
    for line in lines:
        verb, *arguments = shlex.split(line.partition(" ")[2])
        verb_parser(verb, verb_module(verb)).parse_args(arguments)


def test_releases_of_the_board_page_are_those_of_the_code():
    rows = table_rows(section(page("board"), "Which JetPack").split("The first line")[0])
    assert [tuple(row[:4]) for row in rows] == [(r.releases, r.tensorrt, r.python, r.cuda) for r in RELEASES]


def test_linux_releases_of_the_board_page_are_those_of_the_code():
    text = section(page("board"), "Which JetPack")
    linux = re.search(r"^\| L4T \| (.*) \|$", text, re.MULTILINE)[1].split(" | ")
    jetpack = re.search(r"^\| JetPack \| (6.*) \|$", text, re.MULTILINE)[1].split(" | ")
    found = {release: number for names, number in zip(linux, jetpack, strict=True) for release in names.split(", ")}
    supported = {release: number for release, number in JETPACKS.items() if float(release[:4].rstrip(".")) >= 36.3}
    assert found == {release: number for release, number in supported.items() if " " not in number}


def terms() -> dict[str, str]:
    parts = re.split(r"^## (.*)\n", page("glossary"), flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], (text.strip() for text in parts[1::2])))


def test_terms_are_in_order_and_short():
    names = list(terms())
    assert names == sorted(names, key=str.lower)
    for name, text in terms().items():
        plain = re.sub(r"\]\([^)]*\)|`[^`]*`", "", text)
        assert 1 <= len(re.findall(r"\.(?:\s|$)", plain)) <= 2, name
        assert len(text.split()) <= 45, name
    asked = {"artefact", "golden", "maps", "stage", "importance path", "kept sets", "Jaccard", "SQNR", "budget", "G"}
    assert asked | {"fresh export", "certificate", "evidence"} <= set(names)


@pytest.mark.parametrize("name", terms())
def test_a_term_is_used(name):
    used = [file.read_text(encoding="utf-8") for file in sorted(DOCS.glob("*.md")) if file.stem != "glossary"]
    used += [file.read_text(encoding="utf-8") for file in sorted((ROOT / "gft_edge/cli").rglob("*.py"))]
    used.append((ROOT / "README.md").read_text(encoding="utf-8"))
    flags = 0 if len(name) == 1 else re.IGNORECASE
    word = re.compile(rf"(?<!\w){re.escape(name)}(?:s|es)?(?!\w)".replace("\\ ", r"\s+"), flags)
    assert any(word.search(text) for text in used)


@pytest.fixture(scope="module")
def found():
    return idea_pictures.find()


def pixels(svg: str) -> tuple[str, list[np.ndarray]]:
    """The text of a picture without its images, and their pixels: a compressed stream depends on the version of zlib."""
    data = re.findall(r'"data:image/png;base64,([^"]*)"', svg)
    images = [np.asarray(Image.open(io.BytesIO(base64.b64decode(text)))) for text in data]
    return re.sub(r'"data:[^"]*"', '""', svg), images


def test_pictures_of_the_idea_are_what_the_model_gives(found):
    made = idea_pictures.pictures(found)
    assert set(made) == set(re.findall(r"\]\((idea-\w+\.svg)\)", page("idea")))
    for name, svg in made.items():
        (text, images), (stored, kept) = pixels(svg), pixels((DOCS / name).read_text(encoding="utf-8"))
        assert text == stored, f"run python -m gft_edge.benchmarks.experiments.idea_pictures docs ({name})"
        assert len(images) == len(kept)
        assert all(np.array_equal(*pair) for pair in zip(images, kept))


def test_figures_of_the_idea_page_are_those_of_its_pictures(found):
    text, config = page("idea"), found.config
    columns, rows = (idea_pictures.jaccard(*pair) for pair in (found.shift.columns, found.shift.rows))
    assert columns == 1
    assert f"Jaccard index of {rows:.2f}" in text
    assert f"{found.kept[-1].sum()} of {config.num_patches} patches" in re.sub(r"\s+", " ", text)
    assert found.answers[0][0] == found.answers[1][0] == found.label
    assert all(alt for alt in re.findall(r"!\[([^]]*)\]", text))


def test_attention_that_depends_on_the_shift_is_refused(found, monkeypatch):
    monkeypatch.setattr(idea_pictures, "SAME_ATTENTION", found.shift.attention)
    with pytest.raises(CheckFailed, match="attention changed by"):
        idea_pictures.find()


EXPLAIN = {"idea", "selection", "models", "evidence", "promises", "mutations", "deployment", "int8"}
EXPLAIN |= {"artefact_format", "cli", "glossary", "troubleshooting"}
"""Pages of the README that explain, list or compare; every other one is a how-to."""


def how_tos() -> list[str]:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    table = readme.split("## Everything else\n", 1)[1] + section(readme, "I have ...")
    return sorted(set(re.findall(r"\(docs/(\w+)\.md\)", table)) - EXPLAIN)


def test_every_task_of_the_readme_has_a_page():
    assert len(how_tos()) > 15


@pytest.mark.parametrize("name", how_tos())
def test_a_how_to_begins_with_its_command(name):
    lines = page(name).splitlines()
    assert re.match(r"# \S", lines[0])
    start = "\n".join(lines[:16])
    command = re.compile(r"^(?: {4}|)((?:gft-edge|python -m|from) \S.*)$", re.MULTILINE).search(start)
    assert command, start
    if command[1].startswith("gft-edge "):
        verb, *arguments = shlex.split(command[1].partition(" ")[2].rstrip("\\"), comments=True)
        if command[1].endswith("\\"):
            return
        verb_parser(verb, verb_module(verb)).parse_args(arguments)
