from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
import json
import re
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from torch import nn

from gft_edge.checkpoint import Checkpoint, CheckpointInfo
from gft_edge.cli.main import main
from gft_edge.data import sets
from gft_edge.data.images import read_image
from gft_edge.data.splits import content_key, part_of
from gft_edge.export.onnx.options import GraphOptions
from gft_edge.export.verify import trace
from gft_edge.manifest import DeploymentManifest

PROGRESS = re.compile(r": \d+ of \d+, about .+ left$")


@dataclass(frozen=True)
class Done:
    """Exit code and output of a command; ``notes`` are the lines on stderr that describe how images were found."""

    code: int
    out: str
    err: str
    notes: tuple[str, ...] = ()

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture(scope="session")
def gft_edge() -> Callable[..., Done]:
    """Runs the command line in this process; argument errors end it as they would end a process."""

    def run(*command: object) -> Done:
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                code = main([str(part) for part in command])
            except SystemExit as stop:
                code = stop.code
        # A slow machine prints how far a verb is.
        lines = [line for line in err.getvalue().splitlines(keepends=True) if not PROGRESS.search(line)]
        notes = tuple(line.strip() for line in lines if line.startswith("data: "))
        return Done(code, out.getvalue(), "".join(line for line in lines if not line.startswith("data: ")), notes)

    return run


@pytest.fixture(scope="session")
def animals(tiny_model, tiny_info, filled_once) -> Path:
    """An image folder of the tiny model's four classes, without splits: its hash split gives 24 images of each part, six of
    each class. The model's classes of these images are clear-cut, most of all of the test images."""
    return filled_once("data", lambda out: _write_animals(out / "animals", tiny_model, tiny_info)) / "animals"


def _write_animals(root: Path, tiny_model: nn.Module, tiny_info: CheckpointInfo) -> None:
    images = np.random.default_rng(0).integers(0, 256, (1600, 32, 32, 3), dtype=np.uint8)
    with torch.no_grad():
        ordered = tiny_model(torch.from_numpy(tiny_info.preprocess.normalize(images))).sort(dim=1).values
    margin = (ordered[:, -1] - ordered[:, -2]).numpy()
    root.mkdir(parents=True)
    candidate = root.with_name("candidate.png")
    had: Counter[str] = Counter()
    for image in images[np.argsort(-margin)]:
        Image.fromarray(image).save(candidate)
        part = part_of(content_key(candidate))
        if had[part] < 24:
            number = had[part] + 24 * ("test", "train", "val").index(part)
            folder = root / tiny_info.labels[had[part] % 4]
            folder.mkdir(parents=True, exist_ok=True)
            candidate.rename(folder / f"{number:02d}.png")
            had[part] += 1
    candidate.unlink(missing_ok=True)
    assert set(had.values()) == {24}


@pytest.fixture(scope="session")
def write_damaged() -> Callable[[Path, str], None]:
    """Writes a file that is no image and whose hash sends it to a part of the data."""

    def write(path: Path, part: str) -> None:
        for number in itertools.count():
            path.write_text(f"not an image {number}")
            if part_of(content_key(path)) == part:
                return

    return write


@pytest.fixture
def seen(monkeypatch) -> set[str]:
    """The sha256 of every image file that is decoded."""
    found: set[str] = set()

    def read(path, at_least=0):
        found.add(hashlib.sha256(Path(path).read_bytes()).hexdigest())
        return read_image(path, at_least)

    monkeypatch.setattr(sets, "read_image", read)
    return found


@pytest.fixture(scope="session")
def quantized(gft_edge, tiny_checkpoint, animals, own_copy) -> Path:
    """A quantized checkpoint of the tiny model."""

    def fill(out: Path) -> None:
        done = gft_edge("quantize", tiny_checkpoint, "--data", animals, "--images", 24, "--out", out / "ckpt8")
        assert done.code == 0, done.err

    return own_copy("quantized", fill) / "ckpt8"


@pytest.fixture(scope="session")
def made(gft_edge, tiny_checkpoint, quantized, animals, own_copy) -> dict[str, Path]:
    """Paths of a quantized checkpoint ``ckpt8`` and of artefacts ``fp32`` (without maps) and ``int8`` (with them)."""
    commands = {
        "fp32": ["export", tiny_checkpoint, "--data", animals],
        "int8": ["export", quantized, "--data", animals, "--maps", "compact"],
    }

    def fill(out: Path) -> None:
        for name, command in commands.items():
            done = gft_edge(*command, "--out", out / name)
            assert done.code == 0, done.err

    root = own_copy("made", fill)
    return {"ckpt": tiny_checkpoint, "ckpt8": quantized, **{name: root / name for name in commands}}


@pytest.fixture(scope="session")
def _fresh_graphs() -> dict[str, bytes]:
    return {}


@pytest.fixture
def one_export_each(_fresh_graphs, monkeypatch) -> None:
    """``verify --checkpoint`` exports the same checkpoint with the same options once; another verification takes that graph."""
    real = trace.fresh_graph

    def fresh_graph(checkpoint: Checkpoint, manifest: DeploymentManifest) -> onnx.ModelProto:
        info = checkpoint.info
        key = repr((checkpoint.sha256, info.model, info.preprocess, manifest.budget, GraphOptions.of(manifest)))
        if key not in _fresh_graphs:
            _fresh_graphs[key] = real(checkpoint, manifest).SerializeToString(deterministic=True)
        return onnx.ModelProto.FromString(_fresh_graphs[key])

    monkeypatch.setattr(trace, "fresh_graph", fresh_graph)


@pytest.fixture
def copied(made, tmp_path) -> Callable[[str], Path]:
    """Copies a checkpoint or artefact of ``made``, so that a test may change it."""
    return lambda name: Path(shutil.copytree(made[name], tmp_path / name))
