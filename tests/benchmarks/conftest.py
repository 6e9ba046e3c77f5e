from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from gft_edge.manifest import Artifact, load_artifact

RECORDED = Path(__file__).parents[1] / "recorded"


@pytest.fixture(scope="session")
def recorded_line() -> Callable[[str], str]:
    """Returns the recorded line of tegrastats of that name."""
    return lambda name: (RECORDED / f"tegrastats/{name}.txt").read_text(encoding="utf-8").strip()


@pytest.fixture
def tegrastats(tmp_path, monkeypatch) -> Callable[..., None]:
    """Puts a tegrastats on PATH that prints a line every 10 ms, so many times, and writes its process id to ``pid``."""

    def make(line: str, times: int = 100_000) -> None:
        folder = tmp_path / "bin"
        folder.mkdir(exist_ok=True)
        (tmp_path / "line").write_text(line + "\n", encoding="utf-8")
        loop = f"i=0\nwhile [ $i -lt {times} ]; do cat {tmp_path}/line; sleep 0.01; i=$((i+1)); done\n"
        (folder / "tegrastats").write_text(f"#!/bin/sh\necho $$ > {tmp_path}/pid\n{loop}")
        (folder / "tegrastats").chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")

    return make


@pytest.fixture(scope="session")
def exported(tiny_artifact, tmp_path_factory) -> Artifact:
    """The tiny model as an artefact named ``first``; tests that change it take a copy."""
    return load_artifact(Path(shutil.copytree(tiny_artifact, tmp_path_factory.mktemp("exported") / "first")))


@pytest.fixture
def copied(exported, tmp_path) -> Callable[[str], Artifact]:
    """Copies the exported artefact to a folder of that name below the test's own."""
    return lambda name: load_artifact(Path(shutil.copytree(exported.path, tmp_path / name)))
