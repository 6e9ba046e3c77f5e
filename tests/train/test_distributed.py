"""Two processes with batches of B train as one that accumulates two batches of B, on windows and whole images; only the first
writes."""

import json
import subprocess
import sys

import numpy as np
import pytest

from gft_edge.checkpoint import read_info

# Batch norm sees the images of one process, or of one accumulated batch.
RECIPE = {
    "model": {"preset": "gft_scenes", "image_size": 64, "budget": "16,8,8"},
    "data": {
        "name": "scenes",
        "train_images": 300,
        "eval_images": 70,
        "num_workers": 0,
        "curriculum": [[0, 1, 6, 32], [0.5, 1, 6]],
    },
    "train": {
        "steps": 6,
        "batch_size": 4,
        "warmup_steps": 2,
        "lr": 3e-4,
        "eval_every": 3,
        "threads": 1,
        "checkpoint_every": 0,
    },
}


def start(folder, processes: int, accumulate: int) -> None:
    recipe = {**RECIPE, "train": {**RECIPE["train"], "accumulate": accumulate}}
    (folder / "recipe.json").write_text(json.dumps(recipe))
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command = [sys.executable, *(launcher if processes > 1 else []), "-m", "gft_edge.cli.main", "train"]
    command += ["--config", str(folder / "recipe.json"), "--out", str(folder / "out")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folders = {count: tmp_path_factory.mktemp(f"processes{count}") for count in (1, 2)}
    start(folders[1], 1, 2)
    start(folders[2], 2, 1)
    return {count: folder / "out" for count, folder in folders.items()}


def rows(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_loss_curves_are_the_same(runs):
    one, two = rows(runs[1]), rows(runs[2])
    assert [row["step"] for row in one] == [row["step"] for row in two] == list(range(1, 7))
    np.testing.assert_allclose([r["loss"] for r in two], [r["loss"] for r in one], rtol=2e-4)
    assert [r["train_top1"] for r in two] == pytest.approx([r["train_top1"] for r in one], abs=0.13)


def test_validation_counts_every_image_once(runs):
    assert read_info(runs[2]).metrics["val_images"] == 70
    for row in rows(runs[2]):
        if "val_top1_full" in row:
            assert row["val_top1_full"] * 70 == pytest.approx(round(row["val_top1_full"] * 70))


def test_only_the_first_process_writes(runs):
    assert read_info(runs[2]).provenance["processes"] == 2
    files = {path.name for path in runs[2].iterdir()}
    assert files == {"config.json", "model.safetensors", "log.jsonl", "state.pt", "best"}
    assert len(rows(runs[2])) == 6
