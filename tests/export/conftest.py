from __future__ import annotations

import dataclasses
import functools
import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from gft_edge.budget import TokenBudget
from gft_edge.calibration.ptq import quantize_int8
from gft_edge.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from gft_edge.export.onnx.artifact import export_artifact
from gft_edge.export.onnx.options import GraphOptions
from gft_edge.manifest import MODEL, Artifact, load_artifact, register_files
from gft_edge.quant.policy import DEFAULT_POLICY, uniform_policy


@pytest.fixture(scope="session")
def clear_images(tiny_model) -> np.ndarray:
    """Twelve images whose class the FP32 model gives with a wide margin, so that INT8 must agree on it."""
    images = np.random.default_rng(0).standard_normal((400, 3, 32, 32), dtype=np.float32)
    with torch.no_grad():
        ordered = tiny_model(torch.from_numpy(images)).sort(dim=1).values
    margin = (ordered[:, -1] - ordered[:, -2]).numpy()
    return images[margin > 0.45][:12]


@pytest.fixture(scope="session")
def checkpoints(tiny_checkpoint, tiny_info, tiny_model, tmp_path_factory) -> dict[str, Checkpoint]:
    """The same weights in full precision, calibrated for INT8 and FP8, and with INT8 weights."""
    images = np.random.default_rng(1).standard_normal((32, 3, 32, 32), dtype=np.float32)
    found = {"fp32": load_checkpoint(tiny_checkpoint)}
    policies = {"int8": DEFAULT_POLICY, "fp8": uniform_policy("fp8"), "weights": uniform_policy("int8-weights")}
    for name, policy in policies.items():
        quantized = quantize_int8(tiny_model, [images], policy)
        folder = tmp_path_factory.mktemp(name) / "checkpoint"
        save_checkpoint(folder, dataclasses.replace(tiny_info, quantization=quantized.summary), quantized.model)
        found[name] = load_checkpoint(folder)
    return found


@pytest.fixture(scope="session")
def exported_once(checkpoints, clear_images, filled_once) -> Callable[..., Artifact]:
    """Exports a checkpoint with budgets and options, the same ones once in a run; artefacts are not to be changed."""

    @functools.cache
    def make(precision: str, options: GraphOptions, budgets: tuple[TokenBudget, ...] = ()) -> Artifact:
        if budgets == (checkpoints[precision].info.model.budget,):
            budgets = ()  # the same artefact
        named = repr((precision, options, [budget.id for budget in budgets]))
        name = f"exported-{hashlib.sha256(named.encode()).hexdigest()[:16]}"
        return load_artifact(
            filled_once(name, lambda out: export_artifact(checkpoints[precision], out, clear_images, budgets, options))
        )

    return make


@pytest.fixture(scope="session")
def exported(exported_once) -> Callable[[str], Artifact]:
    """Artefacts by name (``fp32-none``, ``fp32-compact-full``, ``fp32-compact-uint8``); not to be changed."""

    def find(name: str) -> Artifact:
        precision, maps, *more = name.split("-")
        options = GraphOptions(maps, input="uint8" if "uint8" in more else "float")
        return exported_once(precision, options, (TokenBudget.full(2, 16),) if "full" in more else ())

    return find


@pytest.fixture
def copied(exported, tmp_path) -> Callable[[str], Artifact]:
    """A copy of an exported artefact that a test may change."""

    def copy(name: str) -> Artifact:
        return load_artifact(Path(shutil.copytree(exported(name).path, tmp_path / name)))

    return copy


@pytest.fixture
def edited(copied) -> Callable[[str, Callable[[onnx.ModelProto], None]], Artifact]:
    """A copy of an exported artefact whose graph was changed and entered in the manifest again."""

    def edit(name: str, change: Callable[[onnx.ModelProto], None]) -> Artifact:
        artifact = copied(name)
        model = onnx.load(artifact.path / MODEL)
        change(model)
        onnx.save(model, artifact.path / MODEL)
        return register_files(artifact, [MODEL])

    return edit
