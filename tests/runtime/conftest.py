from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from gft_edge.calibration.ptq import quantize_int8
from gft_edge.checkpoint import load_checkpoint, save_checkpoint
from gft_edge.export.onnx.artifact import export_artifact
from gft_edge.export.onnx.tracing import GraphOptions
from gft_edge.manifest import Artifact, load_artifact


@pytest.fixture(scope="session")
def images() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((5, 3, 32, 32), dtype=np.float32)


@pytest.fixture(scope="session")
def with_maps(tiny_checkpoint, images, tmp_path_factory) -> Artifact:
    out = tmp_path_factory.mktemp("runtime") / "with_maps"
    return export_artifact(load_checkpoint(tiny_checkpoint), out, images, options=GraphOptions("compact"))


@pytest.fixture(scope="session")
def int8(tiny_info, tiny_model, images, tmp_path_factory) -> Artifact:
    folder = tmp_path_factory.mktemp("runtime")
    quantized = quantize_int8(tiny_model, [images])
    info = dataclasses.replace(tiny_info, quantization=quantized.summary)
    save_checkpoint(folder / "checkpoint", info, quantized.model)
    return export_artifact(load_checkpoint(folder / "checkpoint"), folder / "int8", images)


@pytest.fixture
def copied(tmp_path) -> Callable[[Artifact], Artifact]:
    """A copy of an artefact that a test may change."""
    return lambda artifact: load_artifact(Path(shutil.copytree(artifact.path, tmp_path / "artifact")))
