from __future__ import annotations

from pathlib import Path

import pytest
import torch

from gft_edge.benchmarks.torture.materials import Materials, in_child, make_all, make_basics
from gft_edge.benchmarks.torture.readers import Reader, readers


@pytest.fixture(scope="session")
def made(tmp_path_factory) -> Materials:
    """A tiny model in every form, made once; attacks restore what they change."""
    torch.set_num_threads(1)  # threads do not survive a fork
    root = tmp_path_factory.mktemp("torture") / "made"
    in_child(lambda: make_all(make_basics(root), small=True), "making the files to attack")
    return Materials(root)


@pytest.fixture(scope="session")
def scratch(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("scratch")


@pytest.fixture(scope="session")
def every_reader(made, scratch) -> dict[str, Reader]:
    return {reader.name: reader for reader in readers(made, scratch)}
