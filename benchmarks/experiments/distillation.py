"""Distillation against training without a teacher: the same student, the same steps and images, three seeds.

The teacher is a trained model with every patch; the student has fewer blocks, starts from the teacher's first ones and keeps few
patches. Every arm takes the same images in the same order. An interrupted study goes on with the same command.

python -m gft_edge.benchmarks.experiments.distillation builtin --out runs/distillation --page benchmarks/DISTILLATION.md
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from gft_edge.benchmarks.experiments.markdown import render, table
from gft_edge.benchmarks.experiments.teaching.measuring import as_text, from_texts
from gft_edge.benchmarks.experiments.teaching.plan import Plan, fitted
from gft_edge.budget import TokenBudget
from gft_edge.checkpoint import (
    CheckpointInfo,
    load_checkpoint,
    load_weights,
    read_info,
    resolve_checkpoint,
    save_checkpoint,
)
from gft_edge.config.recipe import DataSection, DistillSection, ModelSection, Recipe, TrainSection
from gft_edge.data.batches import indexed_batches
from gft_edge.data.datasets import open_images
from gft_edge.distill.teacher import load_teacher, masked_logits
from gft_edge.errors import exit_code
from gft_edge.files import read_json, write_json, writing
from gft_edge.hardware.environment import machine
from gft_edge.model.build import build_model, logits_function
from gft_edge.model.gft import FocalGFT
from gft_edge.model.macs import count_macs
from gft_edge.stats.gain import mean_difference
from gft_edge.stats.metrics import mcnemar
from gft_edge.train.loop import train

CONTROL = "no teacher"
ARMS: Mapping[str, dict[str, Any] | None] = {
    CONTROL: None,
    "KL, temperature 1": {"loss": "kl", "temperature": 1.0},
    "KL": {"loss": "kl", "temperature": 4.0},
    "DIST": {"loss": "dist", "weight": 2.0, "temperature": 4.0},
    "KL, masked teacher": {"loss": "kl", "temperature": 4.0, "masked": True},
}
"""Fields of ``[distill]`` by arm."""


@dataclass(frozen=True)
class Study:
    """Sizes of the study.

    Attributes:
        data, size: images and their side in pixels.
        depth, stages, budget: of the student.
        labelled: number of different training images; the trainings go through them several times.
        steps, batch_size, lr: of each training.
        images: of the test.
        seeds: of the order of the images.
    """

    data: str = "scenes,share=0.06,distractors=3"
    size: int = 96
    depth: int = 3
    stages: tuple[int, ...] = (1,)
    budget: str = "36"
    labelled: int = 640
    steps: int = 240
    batch_size: int = 32
    lr: float = 3e-4
    images: int = 1600
    seeds: tuple[int, ...] = (0, 1, 2)


def make_models(source: str, study: Study, out: Path) -> tuple[Path, Path]:
    """Writes teacher and untrained student for the study's images, the position embedding cut to their grid.

    Returns:
        their folders.
    """
    teacher, student = out / "teacher", out / "student"
    if not student.exists():
        checkpoint = load_checkpoint(resolve_checkpoint(source))
        plan = Plan(data=study.data, size=study.size, stages=study.stages, budgets=(study.budget,))
        config, weights = fitted(checkpoint.model.state_dict(), checkpoint.info.model, plan, source)
        spec = dataclasses.replace(checkpoint.info.preprocess, height=study.size, width=study.size)
        budget = TokenBudget.parse(study.budget, config.num_patches)
        for folder, own in (
            (teacher, config),
            (student, dataclasses.replace(config, depth=study.depth, budget=budget)),
        ):
            model = build_model(own)
            names = model.state_dict().keys()
            load_weights(model, {name: weights[name] for name in names}, source)
            save_checkpoint(folder, CheckpointInfo(own, checkpoint.info.labels, spec), model)
    return teacher, student


def recipe_of(study: Study, models: tuple[Path, Path], arm: str, seed: int) -> Recipe:
    """Returns the training of an arm."""
    fields, (teacher, student) = ARMS[arm], models
    return Recipe(
        ModelSection("gft_scenes", depth=study.depth, image_size=study.size, stages=study.stages, budget=study.budget),
        DataSection(study.data, train_images=study.labelled, eval_images=16, num_workers=0),
        TrainSection(
            steps=study.steps,
            batch_size=study.batch_size,
            lr=study.lr,
            warmup_steps=study.steps // 10,
            label_smoothing=0.05,
            elastic=False,
            precision="bf16",
            checkpoint_every=0,
            seed=seed,
            init=str(student),
        ),
        None if fields is None else DistillSection(str(teacher), **fields),
    )


def measure(folder: Path, study: Study) -> str:
    """Returns which test images a checkpoint has right at its own budget, a character of 0 or 1 for each."""
    checkpoint = load_checkpoint(folder)
    images = open_images(study.data, "test", study.images, study.size)
    forward = logits_function(checkpoint.model.eval())
    parts = [
        forward(pixels).argmax(axis=1) == truth
        for _, pixels, truth in indexed_batches(images, checkpoint.info.preprocess)
    ]
    return as_text(np.concatenate(parts))


def teacher_times(teacher: Path, study: Study, rounds: int = 10) -> tuple[float, float]:
    """Returns the median seconds of a teacher's answers to a batch: with every patch, and with half of them; in turns."""
    loaded = load_teacher(teacher, load_checkpoint(teacher).info.preprocess, torch.device("cpu")).model
    assert isinstance(loaded, FocalGFT)
    pixels = torch.randn(study.batch_size, 3, study.size, study.size, generator=torch.Generator().manual_seed(0))
    patches = loaded.config.num_patches
    kept = torch.arange(0, patches, 2).expand(study.batch_size, -1)
    seconds: tuple[list[float], list[float]] = ([], [])
    with torch.inference_mode():
        for _ in range(rounds + 1):
            for times, run in zip(seconds, (lambda: loaded(pixels), lambda: masked_logits(loaded, pixels, kept))):
                started = time.perf_counter()
                run()
                times.append(time.perf_counter() - started)
    full, half = (statistics.median(times[1:]) for times in seconds)  # the first round warms up
    return full, half


def run(source: str, out: Path, study: Study) -> dict[str, Any]:
    """Trains and measures what is missing in ``out`` and returns the results."""
    out.mkdir(parents=True, exist_ok=True)
    teacher, student = make_models(source, study, out)
    of_teacher, config = read_info(teacher).model, read_info(student).model
    file = out / "results.json"
    found: dict[str, Any] = read_json(file, "results") if file.exists() else {}
    found["study"] = dataclasses.asdict(study)
    found["macs"] = [count_macs(config), count_macs(of_teacher)]
    found.setdefault("teacher", measure(teacher, study))
    found.setdefault("start", measure(student, study))
    runs: dict[str, dict[str, str]] = found.setdefault("runs", {})
    for seed in study.seeds:
        for arm in ARMS:
            if str(seed) in runs.get(arm, {}):
                continue
            folder = out / f"{arm.replace(',', '').replace(' ', '-')}-{seed}"
            train(recipe_of(study, (teacher, student), arm, seed), folder, resume=folder.exists())
            runs.setdefault(arm, {})[str(seed)] = measure(folder, study)
            write_json(file, found)
            print(f"{arm}, seed {seed}: {from_texts([runs[arm][str(seed)]]).mean():.2%}", flush=True)
    if "seconds" not in found:
        found["seconds"] = teacher_times(teacher, study)
    found["machine"] = machine()
    write_json(file, found)
    return found


def page(found: dict[str, Any]) -> str:
    """Returns the Markdown page of the results."""
    teacher = from_texts([found["teacher"]])[0]
    control = _runs(found, CONTROL)
    rows = []
    for arm in ARMS:
        right = _runs(found, arm)
        rows.append(
            [
                arm,
                f"{right.mean():.2%}",
                _points(right.mean(axis=0), teacher),
                "" if arm == CONTROL else _points(right.mean(axis=0), control.mean(axis=0)),
                ""
                if arm == CONTROL
                else ", ".join(f"{100 * (a.mean() - b.mean()):+.1f}" for a, b in zip(right, control)),
                "" if arm == CONTROL else f"{max(mcnemar(b, a) for a, b in zip(right, control)):.2g}",
            ]
        )
    header = ["learns from", "top-1", "less the teacher, points", "over no teacher, points", "each seed", "largest p"]
    full, half = found["seconds"]
    return render(
        Path(__file__).with_name("distillation.md.j2"),
        study=found["study"],
        share=found["macs"][0] / found["macs"][1],
        teacher=teacher.mean(),
        start=from_texts([found["start"]])[0].mean(),
        table=table(header, rows),
        masked=_points(_runs(found, "KL, masked teacher").mean(axis=0), _runs(found, "KL").mean(axis=0)),
        relation=_points(_runs(found, "DIST").mean(axis=0), _runs(found, "KL").mean(axis=0)),
        time=half / full,
        cpu=found["machine"]["cpu"],
    )


def _runs(found: dict[str, Any], arm: str) -> npt.NDArray[np.bool_]:
    """Returns right answers of an arm, (seeds, images)."""
    return from_texts(list(found["runs"][arm].values()))


def _points(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> str:
    estimate = mean_difference(a, b)
    low, high = estimate.interval
    return f"{100 * estimate.value:+.2f} ({100 * low:+.2f} to {100 * high:+.2f})"


def main(arguments: Sequence[str] | None = None) -> int:
    """Parses the arguments, runs the study and writes its page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", metavar="CKPT", help="trained on scenes; its weights are teacher and start")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of trainings and results")
    parser.add_argument("--page", type=Path, metavar="FILE", help="Markdown page")
    for name in ("data", "size", "depth", "budget", "labelled", "steps", "batch_size", "lr", "images"):
        default = getattr(Study(), name)
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default, help=f"({default})")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(Study().seeds), help="(0 1 2)")
    args = vars(parser.parse_args(arguments))
    source, out, file = args.pop("source"), args.pop("out"), args.pop("page")
    found = run(source, out, Study(**{**args, "seeds": tuple(args["seeds"])}))
    text = page(found)
    if file is not None:
        with writing(file):
            file.write_text(text, encoding="utf-8")
    print(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(exit_code(main))
