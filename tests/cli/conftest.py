from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from gft_edge.cli.main import main


@dataclass(frozen=True)
class Done:
    """What a command left behind."""

    code: int
    out: str
    err: str

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
        return Done(code, out.getvalue(), err.getvalue())

    return run


@pytest.fixture(scope="session")
def animals(tiny_model, tiny_info, tmp_path_factory) -> Path:
    """An image folder of the tiny model's four classes; the model's classes of these images are clear-cut."""
    images = np.random.default_rng(0).integers(0, 256, (400, 32, 32, 3), dtype=np.uint8)
    with torch.no_grad():
        ordered = tiny_model(torch.from_numpy(tiny_info.preprocess.normalize(images))).sort(dim=1).values
    margin = (ordered[:, -1] - ordered[:, -2]).numpy()
    chosen = images[np.argsort(-margin)[:24]]
    root = tmp_path_factory.mktemp("data") / "animals"
    for number, image in enumerate(chosen):
        folder = root / tiny_info.labels[number % 4]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{number:02d}.png")
    return root


@pytest.fixture(scope="session")
def made(gft_edge, tiny_checkpoint, animals, tmp_path_factory) -> dict[str, Path]:
    """Paths of a quantized checkpoint ``ckpt8`` and of artefacts ``fp32`` (without maps) and ``int8`` (with them)."""
    root = tmp_path_factory.mktemp("made")
    commands = {
        "ckpt8": ["quantize", tiny_checkpoint, "--data", animals, "--images", 24],
        "fp32": ["export", tiny_checkpoint, "--data", animals],
        "int8": ["export", root / "ckpt8", "--data", animals, "--maps", "compact"],
    }
    for name, command in commands.items():
        done = gft_edge(*command, "--out", root / name)
        assert done.code == 0, done.err
    return {"ckpt": tiny_checkpoint, **{name: root / name for name in commands}}
