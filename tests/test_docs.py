"""The pages: programs run, commands parse, links lead somewhere, and every name that they give exists."""

import contextlib
import importlib
import io
import re
import shlex
from collections import Counter
from pathlib import Path

import pytest
import torch

import gft_edge
from gft_edge.cli.main import VERBS, verb_module
from gft_edge.cli.parsing import verb_parser
from gft_edge.config.model import SCORES

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGE = (DOCS / "python.md").read_text(encoding="utf-8")
SELECTION = (DOCS / "selection.md").read_text(encoding="utf-8")
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)

ELSEWHERE = {
    "chain.md": "cli/test_demo.py",
    "controls.md": "test_controls.py",
    "governor.md": "export/onnx/test_governed.py",
    "modelopt.md": "cli/test_demo.py",
    "scenes.md": "data/test_scenes.py",
    "sweep.md": "search/test_costs.py",
}
"""Pages whose programs another test runs, on what it has made already."""

SMALLER = {
    "python.md": (("images=64", "images=16"), ("images=160", "images=64")),
    "certificates.md": (("runs/int8", "runs/python/checkpoint-int8"),),
    "search.md": (("points=8", "points=2"), ("images=32", "images=16")),
}
"""What stands on a page, and what the test takes in its place."""

PRINTS = {
    "python.md": r"(pass|inconclusive)\n(1\.0|0\.[89]\d*) \(.*\)\nonnxruntime: .*\nQ \[\('Q', .*\] Timings\(.*\)\n",
    "search.md": r"(?s)gft-edge export builtin --budget .*",
    "selection.md": r"True\n\[147, 98, 49\]\n",
}
"""Patterns of what a page's programs print."""


def markdown() -> list[Path]:
    """Every Markdown file of the repository that a reader opens; templates of bundles are none."""
    found = [
        path for place in ("*.md", "docs", "benchmarks", "examples", "gft_edge", "tests") for path in _below(place)
    ]
    assert len(found) > 50
    return sorted(found)


def _below(place: str):
    return ROOT.glob(place) if "*" in place else (ROOT / place).rglob("*.md")


def pages_with_programs() -> list[str]:
    return [path.name for path in sorted(DOCS.glob("*.md")) if programs(path)]


def programs(path: Path) -> list[str]:
    return [text for language, text in FENCED.findall(path.read_text(encoding="utf-8")) if language == "python"]


def run(page: str, folder: Path, names: dict) -> str:
    """Runs the programs of a page one after the other in a folder, as a reader does; returns what they print."""
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.chdir(folder)
        for program in programs(DOCS / page):
            for shown, used in SMALLER.get(page, ()):
                program = program.replace(shown, used)
            exec(compile(program, f"docs/{page}", "exec"), names)
    return printed.getvalue()


@pytest.fixture(scope="module")
def ran_python_page(tmp_path_factory) -> tuple[Path, str]:
    """The folder in which the programs of docs/python.md ran, and what they printed."""
    folder = tmp_path_factory.mktemp("python")
    return folder, run("python.md", folder, {})


@pytest.mark.parametrize("page", [page for page in pages_with_programs() if page not in ELSEWHERE])
def test_the_programs_of_a_page_run(page, ran_python_page, tmp_path):
    folder, printed = ran_python_page
    if page == "certificates.md":
        names = {"images": torch.randn(2, 3, 192, 192)}
        printed = run(page, folder, names)
        assert names["found"].certified.shape == (2,)
    elif page != "python.md":
        printed = run(page, tmp_path, {})
    assert re.fullmatch(PRINTS.get(page, "(?s).*"), printed), printed


def test_what_the_tests_replace_stands_on_the_pages():
    for page, pairs in SMALLER.items():
        text = "".join(programs(DOCS / page))
        assert all(shown in text for shown, _ in pairs), page


@pytest.mark.parametrize("page", ELSEWHERE)
def test_the_other_programs_are_run_by_the_named_test(page):
    assert programs(DOCS / page)
    test = (ROOT / "tests" / ELSEWHERE[page]).read_text(encoding="utf-8")
    assert re.search(rf'"[^"\n]*\b{re.escape(page)}"', test)


def commands(path: Path) -> list[str]:
    """Returns the lines of gft-edge in every block of a page, indented ones too, except those of the kind ``text``."""
    text = path.read_text(encoding="utf-8")
    blocks = [block for language, block in FENCED.findall(text) if language in ("", "sh")]
    indented = re.findall(r"^ {4}(?=gft-edge )(.*(?:\\\n.*)*)", FENCED.sub("", text), re.MULTILINE)
    lines = "\n".join([*blocks, *indented]).replace("\\\n", " ").splitlines()
    return [line.strip() for line in lines if re.match(r"\s*(\$ )?gft-edge ", line)]


@pytest.mark.parametrize("page", sorted(path.relative_to(ROOT).as_posix() for path in markdown() if commands(path)))
def test_the_commands_of_a_page_parse(page, capsys):
    for line in commands(ROOT / page):
        words = shlex.split(line.removeprefix("$ "), comments=True)
        stop = next((n for n, word in enumerate(words) if word in ("|", "&&", ";", ">", "2>", "&")), len(words))
        verb, *arguments = words[1:stop]
        if verb.startswith("-"):
            continue
        assert verb in VERBS, line
        try:
            verb_parser(verb, verb_module(verb)).parse_args(arguments)
        except SystemExit as end:
            assert end.code == 0, f"{line}\n{capsys.readouterr().err}"


def test_the_page_of_the_command_line_is_that_of_the_parsers():
    text = (DOCS / "cli.md").read_text(encoding="utf-8")
    assert text == tool("cli_page").page(), "run python docs/site/cli_page.py docs/cli.md"


def tool(name: str):
    """Imports a module of docs/site as mkdocs does, from its folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(DOCS / "site"))
        return importlib.import_module(name)


def prose(path: Path) -> str:
    """Returns the text of a page without blocks and inline code, in which brackets are no links."""
    text = re.sub(r"^ {4}.*$", "", FENCED.sub("", path.read_text(encoding="utf-8")), flags=re.MULTILINE)
    return re.sub(r"`[^`\n]*`", lambda code: "`" if "](" not in code[0] else "", text)


def anchors(path: Path) -> set[str]:
    """Returns the anchors of a page's headings, as GitHub and the site make them."""
    text = FENCED.sub("", path.read_text(encoding="utf-8"))
    titles = [re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", title) for title in re.findall(r"^#+ (.*)$", text, re.MULTILINE)]
    slugs = [re.sub(r"[^\w -]", "", title.lower()).strip().replace(" ", "-") for title in titles]
    seen: Counter[str] = Counter()
    found = set()
    for slug in slugs:
        found.add(slug if not seen[slug] else f"{slug}-{seen[slug]}")
        seen[slug] += 1
    return found


def problems(path: Path) -> list[str]:
    """Returns the links of a page that lead nowhere."""
    found = []
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(path)):
        if re.match(r"[a-z]+:", link):
            continue
        place, _, anchor = link.partition("#")
        target = path.parent / place if place else path
        if not target.exists() or (anchor and anchor not in anchors(target)):
            found.append(link)
    return found


@pytest.mark.parametrize("page", [path.relative_to(ROOT).as_posix() for path in markdown()])
def test_every_link_and_anchor_leads_somewhere(page):
    assert problems(ROOT / page) == []


def test_links_that_lead_nowhere_are_found(tmp_path):
    page = tmp_path / "page.md"
    (tmp_path / "other.md").write_text("# One\n## Two: of `three`\n## One\n```\n# no heading\n```\n")
    good = "[a](other.md) [`b`](other.md#two-of-three) ![c](other.md#one-1) [d](#e-f) [x](https://x.y/z) `[n](none)`"
    bad = "[a](others.md) [b](other.md#two) [c](other.md#one-2) [d](#e) [e](other.md#no-heading)"
    page.write_text(f"# E & F\n# e f\n{good} {bad}\n\n```\n[n](none.md)\n```\n")
    assert problems(page) == ["others.md", "other.md#two", "other.md#one-2", "#e", "other.md#no-heading"]


def test_every_page_is_in_the_navigation_once():
    config = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    listed = re.findall(r"^ +- [^:]+: (\S+\.md)$", config.partition("\nnav:\n")[2], re.MULTILINE)
    pages = [path for path in tool("hooks").sources() if path.endswith(".md")]
    assert sorted(listed) == pages
    assert {path.relative_to(ROOT).as_posix() for path in DOCS.rglob("*.md")} <= set(pages)


def test_lists_become_what_python_markdown_reads():
    head = "words:{}\n- one\n{}more\n- two\n\n```\nx\n- y\n```\nnext{}\n"
    item = "1. three\n\n{0}four\n\n{0}```\n{0}z\n{0}- z\n{0}```\n2. five\n\nend\n"
    made = tool("hooks").on_page_markdown(head.format("", "  ", "") + item.format("   "))
    assert made == head.format("\n", "    ", "\n") + item.format("    ")


def test_no_block_is_of_a_kind_that_the_tests_would_overlook():
    for path in markdown():
        text = path.read_text(encoding="utf-8")
        kinds = set(re.findall(r"^ *(?:```|~~~)(\S+)$", text, re.MULTILINE))
        assert not kinds & {"py", "python3", "pycon", "bash", "shell", "console", "shell-session", "zsh"}, path
        assert not re.search(r"^ +```(sh|python)$|^~~~", text, re.MULTILINE), f"{path}: an indented block is not run"


def test_what_a_page_would_load_from_elsewhere_is_found(tmp_path):
    (tmp_path / "good.html").write_text(
        '<a href="https://a.b/c">x</a><img src="../d.png"><link rel="stylesheet" href="e.css">'
        '<script src="f.js">g = "https://h.i"</script><p>url(https://j.k)</p><style>.l{background:url(data:x)}</style>'
    )
    (tmp_path / "bad.html").write_text(
        '<img src="//a.b/c.png" srcset="d.png 1x, https://e.f/g.png 2x"><link rel="icon" href="https://h.i/j.ico">'
        "<style>@import url('https://k.l/m.css')</style><p style=\"background: url(http://n.o/p.png)\">"
        '<div class="x mermaid"></div>'
    )
    (tmp_path / "bad.css").write_text('@import "https://q.r/s.css"; a { background: url(t.png) }')
    found = tool("offline").external_loads(tmp_path)
    loads = ["//a.b/c.png", "https://e.f/g.png", "https://h.i/j.ico", "https://k.l/m.css", "http://n.o/p.png"]
    assert found[0] == "bad.css: https://q.r/s.css"
    assert found[1:6] == [f"bad.html: {load}" for load in loads]
    assert found[6].endswith("mermaid") and len(found) == 7


def test_the_selection_page_lists_every_score():
    names = re.findall(r"^\| `([a-z-]+)`", SELECTION, re.MULTILINE)
    assert tuple(names) == SCORES


def functions_of_the_table() -> list[str]:
    """Returns the full names of the functions in the table of docs/python.md."""
    found = []
    for row in re.findall(r"^\| `[a-z]+` \| (`gft_edge\..*) \|$", PAGE, re.MULTILINE):
        names = re.findall(r"`([\w.]+)`", row.partition(";")[0])
        package = ""
        for name in names:
            package = name.rpartition(".")[0] or package
            found.append(f"{package}.{name.rpartition('.')[2]}")
    return found


def test_functions_of_the_table_exist():
    assert gft_edge.__version__
    assert functions_of_the_table()
    for name in functions_of_the_table():
        package, _, function = name.rpartition(".")
        assert callable(getattr(importlib.import_module(package), function)), name


def test_the_reference_has_the_functions_of_the_table_and_the_names_of_its_overview():
    pages = {path.stem: path.read_text(encoding="utf-8") for path in (DOCS / "api").glob("*.md")}
    shown = {name for text in pages.values() for name in re.findall(r"^::: (\S+)$", text, re.MULTILINE)}
    assert {*functions_of_the_table(), "gft_edge.runtime.classifier.Classifier"} <= shown
    for title, names in re.findall(r"^\| \[.*\]\((\w+)\.md\) \| (.*) \|$", pages["index"], re.MULTILINE):
        for name in re.findall(r"`(\w+)`", names):
            assert f".{name}\n" in pages[title], name
