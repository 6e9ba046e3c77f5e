from __future__ import annotations

from pathlib import Path

import pytest
import torch

from gft_edge.benchmarks.torture.materials import Materials, make_apart
from gft_edge.benchmarks.torture.readers import Reader, readers


@pytest.fixture(scope="session")
def made(own_copy) -> Materials:
    """A tiny model in every form, made once in a run; attacks restore what they change in this worker's copy.

    The recipe and the records still name the images and checkpoints of the original, which nothing changes.
    """
    torch.set_num_threads(1)  # threads do not survive a fork
    return Materials(own_copy("torture", lambda out: make_apart(out, small=True)))


@pytest.fixture(scope="session")
def scratch(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("scratch")


@pytest.fixture(scope="session")
def every_reader(made, scratch) -> dict[str, Reader]:
    return {reader.name: reader for reader in readers(made, scratch)}
