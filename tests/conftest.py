from __future__ import annotations

import dataclasses
import gc
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings
from torch import nn

from gft_edge.budget import TokenBudget
from gft_edge.checkpoint import (
    CheckpointInfo,
    load_checkpoint,
    load_weights,
    read_info,
    read_weights,
    resolve_checkpoint,
    save_checkpoint,
)
from gft_edge.config.model import GFTConfig, preset
from gft_edge.model.adapt import adapt_weights
from gft_edge.model.build import build_model
from gft_edge.preprocess import PreprocessSpec
from gft_edge.storage.locks import locked

settings.register_profile("gft_edge", deadline=None, derandomize=True, database=None)
settings.load_profile("gft_edge")

RECORDED = Path(__file__).parent / "recorded"


FIRST = (
    "test_demo",
    "test_suite",
    "test_costs",
    "test_cost_model",
    "test_distributed",
    "test_docs",
    "test_repeat",
    "test_soak",
)
"""Files of few tests that take long. Begun last, one of them would leave the other worker idle."""


def pytest_configure(config: pytest.Config) -> None:
    """Workers take files in the order of :func:`pytest_collection_modifyitems`, not those of most tests first."""
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts long files first when workers share the files, then those of most tests."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        tests = Counter(item.path for item in items)
        items.sort(key=lambda item: (item.path.stem not in FIRST, -tests[item.path], item.path))


def pytest_collection_finish() -> None:
    """Leaves modules and collected tests out of garbage collection: every export runs several, each over a million objects."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_config() -> GFTConfig:
    """Convolutional stem, 16 patches, blocks 1 and 2 of 3 select."""
    return preset(
        "gft_typeface",
        image_size=32,
        num_classes=4,
        embed_dim=32,
        depth=3,
        num_heads=2,
        stages=(1, 2),
        budget=TokenBudget((12, 6), 16),
    )


@pytest.fixture(scope="session")
def randomize() -> Callable[..., nn.Module]:
    """Gives every weight and buffer of a model a random value far from its initial one; returns the model in eval mode."""

    def fill(model: nn.Module, seed: int = 0) -> nn.Module:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, tensor in model.state_dict().items():
                if not tensor.is_floating_point():
                    continue
                noise = torch.randn(tensor.shape, generator=generator)
                if name.endswith("running_var"):
                    tensor.copy_(0.5 + noise.abs())
                elif name.endswith("smooth.weight") or (tensor.ndim == 1 and name.endswith(("weight", "gamma"))):
                    tensor.copy_(1 + 0.2 * noise)
                else:
                    tensor.copy_(0.2 * noise)
        return model.eval()

    return fill


@pytest.fixture(scope="session")
def make_model(randomize) -> Callable[..., nn.Module]:
    """Builds a model in eval mode whose every weight and buffer is random and far from its initial value."""
    return lambda config, seed=0: randomize(build_model(config), seed)


@pytest.fixture(scope="session")
def tiny_model(tiny_config, make_model) -> nn.Module:
    return make_model(tiny_config)


@pytest.fixture(scope="session")
def tiny_info(tiny_config) -> CheckpointInfo:
    return CheckpointInfo(tiny_config, ("ant", "bee", "cat", "dog"), PreprocessSpec(32, 32), {"top1": 0.5})


@pytest.fixture(scope="session")
def tiny_checkpoint(tiny_model, tiny_info, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tiny") / "checkpoint"
    save_checkpoint(folder, tiny_info, tiny_model)
    return folder


@pytest.fixture(scope="session")
def filled_once(tmp_path_factory) -> Callable[[str, Callable[[Path], object]], Path]:
    """Fills a folder once in a run of the tests, however many workers it has; its content is not to be changed."""
    root = tmp_path_factory.getbasetemp()
    root = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root

    def fill(name: str, filler: Callable[[Path], object]) -> Path:
        place = root / "filled-once" / name
        place.mkdir(parents=True, exist_ok=True)
        with locked(place, wait=900):
            if not (place / "done").exists():
                shutil.rmtree(place / "content", ignore_errors=True)
                filler(place / "content")
                (place / "done").touch()
        return place / "content"

    return fill


@pytest.fixture(scope="session")
def git_checkout() -> Path:
    """The root of this working tree, where git tells its files."""
    root = Path(__file__).parents[1]
    try:
        listed = subprocess.run(
            ["git", "-C", root, "ls-files", "--error-unmatch", "pyproject.toml"], capture_output=True
        )
    except FileNotFoundError:
        pytest.skip("git is not installed")
    if listed.returncode:
        pytest.skip(f"needs a checkout of git: {listed.stderr.decode(errors='replace').strip()[:100]}")
    return root


@pytest.fixture(scope="session")
def own_copy(filled_once, tmp_path_factory) -> Callable[[str, Callable[[Path], object]], Path]:
    """As ``filled_once``, but returns this worker's own copy, which verbs may write reports into."""

    def copy(name: str, filler: Callable[[Path], object]) -> Path:
        return Path(shutil.copytree(filled_once(name, filler), tmp_path_factory.mktemp(name) / "own"))

    return copy


@pytest.fixture(scope="session")
def tiny_artifact(tiny_checkpoint, own_copy) -> Path:
    """The tiny model as an FP32 artefact without maps; tests that change it take a copy."""

    def fill(out: Path) -> None:
        from gft_edge.export.onnx.artifact import export_artifact

        golden = np.random.default_rng(0).standard_normal((4, 3, 32, 32), dtype=np.float32)
        export_artifact(load_checkpoint(tiny_checkpoint), out, golden)

    return own_copy("tiny-artifact", fill)


@pytest.fixture(scope="session")
def small_builtin(filled_once) -> Path:
    """The built-in checkpoint at 96 pixels: trained weights and 144 patches, at a fraction of its cost. Not to be changed."""
    return filled_once("small-builtin", _shrink_builtin)


def _shrink_builtin(out: Path) -> None:
    path = resolve_checkpoint("builtin")
    info = read_info(path)
    config = preset("gft_scenes", image_size=96, stages=(2, 3, 4))  # late enough for matrices that INT8 makes faster
    model = build_model(config)
    load_weights(model, adapt_weights(read_weights(path), info.model, config), "the built-in checkpoint at 96 px")
    spec = dataclasses.replace(info.preprocess, height=96, width=96)
    save_checkpoint(
        out, CheckpointInfo(config, info.labels, spec, {}, {"recipe": info.provenance["recipe"]}), model.eval()
    )


@pytest.fixture(scope="session")
def wheel(filled_once) -> Path:
    """The wheel of this working tree."""
    return next(filled_once("wheel", _build_wheel).glob("*.whl"))


def _build_wheel(out: Path) -> None:
    """Builds in a copy, since earlier builds leave files that setuptools would take along."""
    root = Path(__file__).parents[1]
    for name in ("gft_edge", "export", "calibration", "benchmarks"):
        shutil.copytree(root / name, out / "tree" / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(root / name, out / "tree")
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(out),
        str(out / "tree"),
    ]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr


@pytest.fixture(scope="session")
def link_distributions() -> Callable[[Sequence[str], Path], None]:
    """Links distributions into a folder, so that nothing else of this environment can be found there."""

    def link(names: Sequence[str], site: Path) -> None:
        for name in names:
            distribution = importlib.metadata.distribution(name)
            for top in {Path(file).parts[0] for file in distribution.files or ()} - {"..", "__pycache__"}:
                if not (site / top).exists():
                    (site / top).symlink_to(distribution.locate_file(top))

    return link


@pytest.fixture
def plant(tmp_path) -> Callable[..., Path]:
    """Writes the recorded files of a board below a folder; text of None becomes a folder, which cannot be read as a file."""

    def make(name: str, **changes: str | None) -> Path:
        recorded = json.loads((RECORDED / "boards" / f"{name}.json").read_text(encoding="utf-8"))
        for path, text in {**recorded, **changes}.items():
            file = tmp_path / path
            file.parent.mkdir(parents=True, exist_ok=True)
            if text is None:
                file.mkdir(exist_ok=True)  # reading gives an OSError, as EAGAIN does
            else:
                file.write_text(text)
        return tmp_path

    return make
