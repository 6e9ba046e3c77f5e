"""The README: its length, its commands, its links, and its figures, which other pages must have."""

import re
from pathlib import Path

import pytest

from gft_edge.benchmarks.experiments.readme_figures import main, table, with_table
from gft_edge.cli.main import VERBS
from gft_edge.errors import ArtifactError

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)


def test_it_is_short():
    assert len(README.splitlines()) <= 150


def test_the_first_block_names_targets_of_the_makefile():
    language, text = BLOCKS[0]
    targets = re.findall(r"^make (\S+)", text, re.MULTILINE)
    assert (language, targets) == ("sh", ["demo", "test"])
    makefile = (ROOT / "Makefile").read_text()
    assert all(f"\n{target}: " in makefile for target in targets)


def test_the_other_blocks_are_commands():
    """``tests/cli/test_journeys.py`` runs them, ``tests/export/deploy/test_jetson.py`` the scripts of the board."""
    assert [language for language, _ in BLOCKS[1:]] == ["text"] * 4
    lines = [line for _, text in BLOCKS[1:] for line in text.strip().splitlines()]
    scripts = [line for line in lines if not line.startswith("gft-edge ")]
    assert all(line.split()[1] in VERBS for line in lines if line not in scripts)
    assert scripts == ["cd bundle", "./build.sh", 'sudo env PATH="$PATH" ./bench.sh']


@pytest.mark.parametrize("link", re.findall(r"\]\(([^)#]+)\)", README))
def test_links_lead_to_files(link):
    assert (ROOT / link).is_file()


def test_links_lead_to_headings():
    headings = {
        re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in re.findall(r"^#+ (.*)$", README, re.M)
    }
    targets = re.findall(r"\]\(#([^)]+)\)", README)
    assert targets and set(targets) <= headings


def test_figures_are_those_of_the_pages():
    assert with_table(README, ROOT) == README, "run python -m gft_edge.benchmarks.experiments.readme_figures README.md"


def test_a_figure_that_no_page_has_is_refused(tmp_path, capsys):
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks/RESULTS.md").write_text("| other | 1 |\n")
    with pytest.raises(ArtifactError, match=r"RESULTS.md: no table has a row 'GFT against ViT"):
        table(tmp_path)
    page = tmp_path / "README.md"
    page.write_text("no marks")
    assert main([str(page)]) != 0
    assert "figures: begin" in capsys.readouterr().err
    assert page.read_text() == "no marks"
