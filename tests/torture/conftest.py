from __future__ import annotations

from pathlib import Path

import pytest
import torch

from gft_edge.benchmarks.torture.materials import Materials, make_apart
from gft_edge.benchmarks.torture.readers import Reader, readers


@pytest.fixture(scope="session")
def made(tmp_path_factory) -> Materials:
    """A tiny model in every form, made once; attacks restore what they change."""
    torch.set_num_threads(1)  # threads do not survive a fork
    return make_apart(tmp_path_factory.mktemp("torture") / "made", small=True)


@pytest.fixture(scope="session")
def scratch(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("scratch")


@pytest.fixture(scope="session")
def every_reader(made, scratch) -> dict[str, Reader]:
    return {reader.name: reader for reader in readers(made, scratch)}
