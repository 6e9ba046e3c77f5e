from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
import json
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from gft_edge.cli.main import main
from gft_edge.data import sets
from gft_edge.data.images import read_image
from gft_edge.data.splits import content_key, part_of


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
        lines = err.getvalue().splitlines(keepends=True)
        notes = tuple(line.strip() for line in lines if line.startswith("data: "))
        return Done(code, out.getvalue(), "".join(line for line in lines if not line.startswith("data: ")), notes)

    return run


@pytest.fixture(scope="session")
def animals(tiny_model, tiny_info, tmp_path_factory) -> Path:
    """An image folder of the tiny model's four classes, without splits: its hash split gives 24 images of each part, six of
    each class. The model's classes of these images are clear-cut, most of all of the test images."""
    images = np.random.default_rng(0).integers(0, 256, (1600, 32, 32, 3), dtype=np.uint8)
    with torch.no_grad():
        ordered = tiny_model(torch.from_numpy(tiny_info.preprocess.normalize(images))).sort(dim=1).values
    margin = (ordered[:, -1] - ordered[:, -2]).numpy()
    root = tmp_path_factory.mktemp("data") / "animals"
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
    assert set(had.values()) == {24}
    return root


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
def quantized(gft_edge, tiny_checkpoint, animals, tmp_path_factory) -> Path:
    """A quantized checkpoint of the tiny model."""
    out = tmp_path_factory.mktemp("quantized") / "ckpt8"
    done = gft_edge("quantize", tiny_checkpoint, "--data", animals, "--images", 24, "--out", out)
    assert done.code == 0, done.err
    return out


@pytest.fixture(scope="session")
def made(gft_edge, tiny_checkpoint, quantized, animals, tmp_path_factory) -> dict[str, Path]:
    """Paths of a quantized checkpoint ``ckpt8`` and of artefacts ``fp32`` (without maps) and ``int8`` (with them)."""
    root = tmp_path_factory.mktemp("made")
    commands = {
        "fp32": ["export", tiny_checkpoint, "--data", animals],
        "int8": ["export", quantized, "--data", animals, "--maps", "compact"],
    }
    for name, command in commands.items():
        done = gft_edge(*command, "--out", root / name)
        assert done.code == 0, done.err
    return {"ckpt": tiny_checkpoint, "ckpt8": quantized, **{name: root / name for name in commands}}


@pytest.fixture
def copied(made, tmp_path) -> Callable[[str], Path]:
    """Copies a checkpoint or artefact of ``made``, so that a test may change it."""
    return lambda name: Path(shutil.copytree(made[name], tmp_path / name))
