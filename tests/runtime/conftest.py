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
from gft_edge.export.onnx.options import GraphOptions
from gft_edge.manifest import Artifact, load_artifact


@pytest.fixture(scope="session")
def images() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((5, 3, 32, 32), dtype=np.float32)


@pytest.fixture(scope="session")
def with_maps(tiny_checkpoint, images, own_copy) -> Artifact:
    def fill(out: Path) -> None:
        export_artifact(load_checkpoint(tiny_checkpoint), out, images, options=GraphOptions("compact"))

    return load_artifact(own_copy("with_maps", fill))


@pytest.fixture(scope="session")
def int8(tiny_info, tiny_model, images, own_copy) -> Artifact:
    def fill(out: Path) -> None:
        quantized = quantize_int8(tiny_model, [images])
        info = dataclasses.replace(tiny_info, quantization=quantized.summary)
        save_checkpoint(out / "checkpoint", info, quantized.model)
        export_artifact(load_checkpoint(out / "checkpoint"), out / "int8", images)

    return load_artifact(own_copy("int8", fill) / "int8")


@pytest.fixture
def copied(tmp_path) -> Callable[[Artifact], Artifact]:
    """A copy of an artefact that a test may change."""
    return lambda artifact: load_artifact(Path(shutil.copytree(artifact.path, tmp_path / "artifact")))
