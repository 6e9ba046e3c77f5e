"""Every command block of the README runs as it stands."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)


def run(command: list[str] | str, folder: Path, shell: bool = False) -> str:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        command, cwd=folder, shell=shell, capture_output=True, text=True, env={**os.environ, "PATH": path}
    )
    assert done.returncode == 0, f"{command}\n{done.stderr}"
    return done.stdout


def test_the_first_block_names_targets_of_the_makefile():
    language, text = BLOCKS[0]
    targets = re.findall(r"^make (\S+)", text, re.MULTILINE)
    assert (language, targets) == ("sh", ["demo", "test"])
    makefile = (ROOT / "Makefile").read_text()
    assert all(f"\n{target}: " in makefile for target in targets)


def test_all_other_blocks_run_in_order(tmp_path):
    languages = [language for language, _ in BLOCKS[1:]]
    assert languages == ["sh", "python"]
    for language, text in BLOCKS[1:]:
        if language == "sh":
            for line in text.strip().splitlines():
                run(line, tmp_path, shell=True)
        else:
            assert "patches kept" in run([sys.executable, "-c", text], tmp_path)
    assert (tmp_path / "runs/readme/report.html").stat().st_size > 10_000


@pytest.mark.parametrize("link", re.findall(r"\]\(([^)]+)\)", README))
def test_links_lead_to_files(link):
    assert (ROOT / link).is_file()
