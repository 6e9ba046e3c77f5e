"""Creates the files to attack: a tiny model in every form that the toolkit writes."""

from __future__ import annotations

import argparse
import contextlib
import io
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from gft_edge.budget import TokenBudget
from gft_edge.checkpoint import CheckpointInfo, save_checkpoint
from gft_edge.config.model import GFTConfig, preset
from gft_edge.errors import exit_code
from gft_edge.files import write_json
from gft_edge.hardware.environment import machine, versions
from gft_edge.model.build import build_model
from gft_edge.preprocess import PreprocessSpec

LABELS = ("ant", "bee", "cat", "dog")
SIDE = 32
IMAGES = 6
"""Number of images of each class in each split."""

RECIPE = """[model]
preset = "gft_typeface"
image_size = 32

[data]
name = "{data}"
train_images = 24
eval_images = 8
num_workers = 0

[train]
steps = 4
batch_size = 4
warmup_steps = 1
eval_every = 2
checkpoint_every = 1
seed = {seed}
threads = 1
init = "{init}"
"""

POLICY = """smoothquant = 0.5

[[rules]]
pattern = "*.mlp.fc1"
precision = "int8"
reason = "half of the work"

[[rules]]
pattern = "*.attn.qkv"
precision = "int8"
reason = "a large product"
"""


@dataclass(frozen=True)
class Materials:
    """Paths of the files to attack, in one folder.

    Attributes:
        root: the folder.
        data: image folder with train, val and test, four classes.
        image: one image.
        recipe: TOML recipe of a training with four steps.
        checkpoint, quantized: checkpoints in full precision and in INT8.
        artifact: FP32 with compact maps, reports, calibration, and an engine if TensorRT-RTX is installed.
        family: FP32 with two token budgets and shared weights.
        ranges: ranges of the checkpoint, with card.json.
        bench: bench file of the FP32 and the INT8 artefact.
        run: folder of a run for the report page.
    """

    root: Path

    @property
    def data(self) -> Path:
        """Returns the image folder."""
        return self.root / "data"

    @property
    def image(self) -> Path:
        """Returns one image."""
        return next(iter(sorted((self.data / "test" / LABELS[0]).iterdir())))

    @property
    def recipe(self) -> Path:
        """Returns the recipe of the training."""
        return self.root / "recipe.toml"

    @property
    def policy(self) -> Path:
        """Returns the quantization policy."""
        return self.root / "policy.toml"

    @property
    def checkpoint(self) -> Path:
        """Returns the checkpoint in full precision."""
        return self.root / "checkpoint"

    @property
    def trained(self) -> Path:
        """Returns the output of a training that stopped after half of its steps."""
        return self.root / "trained"

    @property
    def quantized(self) -> Path:
        """Returns the INT8 checkpoint."""
        return self.root / "int8"

    @property
    def run(self) -> Path:
        """Returns the folder of a run."""
        return self.root / "run"

    @property
    def artifact(self) -> Path:
        """Returns the FP32 artefact."""
        return self.run / "fp32-pruned"

    @property
    def plain(self) -> Path:
        """Returns the FP32 artefact as export wrote it."""
        return self.root / "plain"

    @property
    def int8_artifact(self) -> Path:
        """Returns the INT8 artefact."""
        return self.run / "int8-pruned"

    @property
    def family(self) -> Path:
        """Returns the artefact with two budgets."""
        return self.root / "family"

    @property
    def ranges(self) -> Path:
        """Returns the output folder of calibrate."""
        return self.root / "ranges"

    @property
    def bench(self) -> Path:
        """Returns the bench file."""
        return self.run / "bench.json"

    def key(self) -> str:
        """Returns the key of the artefact's engine, empty if there is no engine."""
        return next((file.stem for file in sorted((self.artifact / "engines").glob("*.engine"))), "")


def command(*words: object) -> int:
    """Runs a verb in this process without output; returns the exit code."""
    from gft_edge.cli.main import main

    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            return main([str(word) for word in words])
        except SystemExit as stop:
            return stop.code if isinstance(stop.code, int) else 1


def require(*words: object) -> None:
    """Runs a verb that must succeed.

    Raises:
        RuntimeError: the verb fails.
    """
    from gft_edge.cli.main import main

    errors = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(errors):
        code = main([str(word) for word in words])
    if code:
        raise RuntimeError(f"gft-edge {' '.join(map(str, words))}: exit code {code}: {errors.getvalue()[-2000:]}")


def make_basics(root: Path, seed: int = 0) -> Materials:
    """Creates the images, the recipe, the policy and the checkpoint without running a verb."""
    made = Materials(root)
    rng = np.random.default_rng(seed)
    tint = rng.uniform(0, 255, (len(LABELS), 3))
    for split in ("train", "val", "test"):
        for label, color in zip(LABELS, tint):
            folder = made.data / split / label
            folder.mkdir(parents=True)
            for number in range(IMAGES):
                pixels = np.clip(color + rng.normal(0, 60, (SIDE, SIDE, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    config = preset(
        "gft_typeface",
        image_size=SIDE,
        num_classes=len(LABELS),
        embed_dim=32,
        depth=3,
        num_heads=2,
        stages=(1, 2),
        budget=TokenBudget((12, 6), 16),
    )
    generator = torch.Generator().manual_seed(seed)
    model = build_model(config)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                noise = torch.randn(tensor.shape, generator=generator)
                scale = tensor.ndim == 1 and name.endswith("weight")
                tensor.copy_(
                    0.5 + noise.abs() if name.endswith("running_var") else 1 + 0.2 * noise if scale else 0.2 * noise
                )
    info = CheckpointInfo(config, LABELS, PreprocessSpec(SIDE, SIDE), {"top1": 0.5})
    save_checkpoint(made.checkpoint, info, model.eval())
    started = root / "start"
    save_checkpoint(started, CheckpointInfo(_typeface(), LABELS, PreprocessSpec(SIDE, SIDE)), build_model(_typeface()))
    made.recipe.write_text(RECIPE.format(data=made.data, seed=seed, init=started), encoding="utf-8")
    made.policy.write_text(POLICY, encoding="utf-8")
    return made


def _typeface() -> GFTConfig:
    return preset("gft_typeface", image_size=SIDE, num_classes=len(LABELS))


def make_artifact(made: Materials) -> None:
    """Creates the FP32 artefact."""
    require("export", made.checkpoint, "--data", made.data, "--maps", "compact", "--out", made.artifact)


def make_all(made: Materials, small: bool = False) -> None:
    """Creates all other files with the toolkit's verbs.

    Args:
        made: result of :func:`make_basics`.
        small: run one export instead of three, no quantization and no engine build; copies replace the other forms.
    """
    from gft_edge.config.recipe import load_recipe
    from gft_edge.train.loop import train

    data = ("--data", made.data)
    make_artifact(made)
    shutil.copytree(made.artifact, made.plain)
    if small:
        shutil.copytree(made.artifact, made.family)
        shutil.copytree(made.checkpoint, made.quantized)
        shutil.copytree(made.artifact, made.int8_artifact)
    else:
        budgets = ("--budget", "12,6", "--budget", "8,4")
        require("export", made.checkpoint, *data, *budgets, "--out", made.family)
        require("quantize", made.checkpoint, *data, "--images", 16, "--out", made.quantized)
        require("export", made.quantized, *data, "--out", made.int8_artifact)
    require("calibrate", made.checkpoint, *data, "--images", 16, "--out", made.ranges)
    require("calibrate", made.artifact, *data, "--images", 16)
    require("verify", made.artifact)
    evaluated = made.run / "evaluate-fp32.json"
    require("evaluate", made.artifact, *data, "--images", 8, "--threads", 1, "--out", evaluated)
    require("evaluate", made.checkpoint, *data, "--images", 8, "--out", made.run / "evaluate-torch.json")
    quick = ("--rounds", 2, "--runs", 1, "--warmup", 0.01, "--skip", "process", "throughput", "--power", "none")
    require("bench", made.artifact, made.int8_artifact, *quick, "--out", made.bench)
    maps = ("--maps", made.run / "maps", "--out", made.run / "predictions.json")
    require("predict", made.artifact, made.image, *maps)
    steps = [{"title": "export", "command": "gft-edge export", "seconds": 1.0}]
    record = {"small": True, "seconds": 1.0, "steps": steps, "machine": machine(), "versions": versions()}
    write_json(made.run / "run.json", record)
    train(load_recipe(made.recipe), made.trained, stop_after=2)
    (made.run / "checkpoint").mkdir()
    shutil.copy(made.trained / "log.jsonl", made.run / "checkpoint/log.jsonl")
    if small:
        return
    with contextlib.suppress(ImportError, OSError):
        import tensorrt_rtx  # noqa: F401

        require("build", made.artifact, "--target", "rtx", "--compute-capability", "8.6")


def make_apart(root: Path, seed: int = 0, small: bool = False) -> Materials:
    """Creates the files in a separate process: autograd does not work in a fork of a process that has used it.

    Raises:
        RuntimeError: the process failed; its traceback is on stderr.
    """
    command = [sys.executable, "-m", "gft_edge.benchmarks.torture.materials", str(root), "--seed", str(seed)]
    if subprocess.run([*command, *(["--small"] if small else [])]).returncode:
        raise RuntimeError("cannot create the files to attack; see the error above")
    return Materials(root)


def main(argv: Sequence[str] | None = None) -> int:
    """Creates the files from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root", type=Path, metavar="DIR", help="new folder")
    parser.add_argument("--seed", type=int, default=0, help="seed of all random numbers (0)")
    parser.add_argument("--small", action="store_true", help="create only the files that the tests need")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    make_all(make_basics(args.root, args.seed), args.small)
    return 0


if __name__ == "__main__":
    raise SystemExit(exit_code(main))
