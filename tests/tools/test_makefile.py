"""What make says before it installs."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def checkout(tmp_path) -> Path:
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


def make(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["make", "--silent", *arguments], cwd=folder, capture_output=True, text=True, timeout=60)


def test_a_disk_that_is_too_small_is_said_in_one_line_before_anything_is_made(checkout):
    done = make(checkout, "install", "NEED=100000000")
    assert done.returncode == 2
    first = done.stderr.splitlines()[0]
    assert first.endswith(
        "GB are free on the disk of "
        + f"{checkout}, .venv takes about 100000000; free some, or set NEED=0 to try all the same"
    )
    assert not (checkout / ".venv").exists()


def test_an_environment_that_has_pytorch_needs_no_room(checkout):
    """A changed pyproject.toml installs again, into what is there."""
    (checkout / ".venv/lib/python3.11/site-packages/torch").mkdir(parents=True)
    done = make(checkout, "install", "NEED=100000000", "PYTHON=false")
    assert "GB are free" not in done.stderr and not (checkout / ".venv/installed").exists()


def test_enough_room_is_not_mentioned(checkout):
    done = make(checkout, "install", "NEED=0", "PYTHON=false")  # false makes no environment
    assert done.returncode == 2 and "GB are free" not in done.stderr
