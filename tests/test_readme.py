"""The command blocks and links of the README."""

import re
from pathlib import Path

import pytest

from gft_edge.cli.main import VERBS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)


def test_the_first_block_names_targets_of_the_makefile():
    language, text = BLOCKS[0]
    targets = re.findall(r"^make (\S+)", text, re.MULTILINE)
    assert (language, targets) == ("sh", ["demo", "test"])
    makefile = (ROOT / "Makefile").read_text()
    assert all(f"\n{target}: " in makefile for target in targets)


def test_the_other_blocks_are_commands_and_a_program():
    """``tests/cli/test_adopt.py`` runs the quickest path, ``tests/cli/test_demo.py`` the others."""
    assert [language for language, _ in BLOCKS[1:]] == ["text", "text", "sh", "python"]
    lines = [line for _, text in BLOCKS[1:4] for line in text.strip().splitlines()]
    scripts = [line for line in lines if not line.startswith("gft-edge ")]
    assert all(line.split()[1] in VERBS for line in lines if line not in scripts)
    assert scripts == ["cd bundle && ./build.sh && ./bench.sh"]  # tests/export/deploy/test_jetson.py runs them


@pytest.mark.parametrize("link", re.findall(r"\]\(([^)]+)\)", README))
def test_links_lead_to_files(link):
    assert (ROOT / link).is_file()
