"""Trains and measures every arm from one checkpoint, seed by seed; each result is a file, so an interrupted study goes on."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gft_edge.benchmarks.experiments.teaching.measuring import (
    full_answers,
    measure,
    measure_targets,
    require_marks,
)
from gft_edge.benchmarks.experiments.teaching.plan import ARMS, PLAIN, Arm, Plan, fitted
from gft_edge.benchmarks.experiments.teaching.training import Start, fine_tune
from gft_edge.checkpoint import load_checkpoint
from gft_edge.data.datasets import open_images
from gft_edge.data.sets import Kept
from gft_edge.errors import ConfigError
from gft_edge.evaluation import torch_threads
from gft_edge.files import read_json, require_writable_folder, write_json
from gft_edge.progress import Track, silent

KEPT_BYTES = 1 << 28
"""Of test images that stay in memory between the runs."""
PLAN, START = "plan.json", "start.json"


@dataclasses.dataclass(frozen=True)
class Study:
    """A study in a folder.

    Attributes:
        out: the folder.
        plan: sizes.
        start: what every arm starts from.
    """

    out: Path
    plan: Plan
    start: Start

    def result_file(self, arm: Arm, seed: int) -> Path:
        """Returns the file of the result of a training."""
        return self.out / f"{arm.name}-{seed}.json"


def open_study(checkpoint: str, out: Path, plan: Plan) -> Study:
    """Opens a new study, or one that was interrupted.

    Raises:
        ArtifactError: no usable checkpoint.
        ConfigError: model and plan do not fit, or the folder holds a study of another plan or checkpoint.
    """
    require_writable_folder(out)
    opened = load_checkpoint(checkpoint)
    if opened.info.quantization is not None:
        raise ConfigError(f"checkpoint {opened.path}: is quantized; give the one that it was made from")
    where = f"checkpoint {opened.path}"
    config, weights = fitted(opened.model.state_dict(), opened.info.model, plan, where)
    plan.token_budgets(config)
    images = open_images(plan.data, "test", plan.images, plan.size)
    require_marks(images, plan.data)
    if tuple(images.labels) != tuple(opened.info.labels):
        raise ConfigError(f"{where}: its classes are not those of data {plan.data}")
    spec = dataclasses.replace(opened.info.preprocess, height=plan.size, width=plan.size)
    identity = {"plan": plan.to_json(), "checkpoint": opened.sha256}
    file = out / PLAN
    if file.exists():
        saved = read_json(file, "plan")
        if saved != identity:
            raise ConfigError(f"output {out}: holds a study with another plan or checkpoint; give another --out")
    else:
        write_json(file, identity)
    return Study(out, plan, Start(config, weights, spec, opened.sha256, _is_taught(opened.info.provenance)))


def _is_taught(provenance: Mapping[str, Any]) -> bool:
    """Returns whether the recipe that a checkpoint records has ``train.align``."""
    train = provenance.get("recipe", {}).get("train", {})
    return bool(train.get("align"))


def run(
    study: Study,
    arms: Sequence[Arm],
    seeds: Sequence[int],
    threads: int = 1,
    track: Track = silent,
    say: Callable[[str], None] = lambda line: None,
) -> None:
    """Measures the start, then trains and measures every arm with every seed, the first seed of all arms first.

    Raises:
        CheckFailed: a loss or logits are NaN or infinite.
    """
    plan, start = study.plan, study.start
    budgets = plan.token_budgets(start.config)
    images = Kept(open_images(plan.data, "test", plan.images, plan.size), KEPT_BYTES)
    mask_of = require_marks(images, plan.data)
    with torch_threads(threads):
        if not (study.out / START).exists():
            say("measuring the start")
            model, _ = start.model(ARMS[PLAIN])
            found = {
                "full": full_answers(model, images, start.spec),
                "budgets": measure(model, budgets, images, start.spec, mask_of),
                "targets": measure_targets(model, budgets, images, start.spec, mask_of),
            }
            write_json(study.out / START, found)
        for seed in seeds:
            for arm in arms:
                file = study.result_file(arm, seed)
                if file.exists():
                    continue
                say(f"{arm.name}, seed {seed}")
                state = study.out / f"{arm.name}-{seed}.state.pt"
                model, curve = fine_tune(start, arm, seed, plan, state, track)
                measured: dict[str, Any] = {
                    "curve": curve,
                    "budgets": measure(model, budgets, images, start.spec, mask_of),
                }
                if arm.gate:
                    measured["gates"] = [float(v) for n, v in model.named_parameters() if n.endswith(".gate")]
                write_json(file, measured)
                state.unlink(missing_ok=True)


def results(study: Study) -> dict[str, Any]:
    """Returns what has been measured so far, as plain JSON values: the start, and the runs by arm and seed."""
    runs: dict[str, dict[str, Any]] = {}
    for arm in ARMS.values():
        seeds = sorted(int(file.stem.rpartition("-")[2]) for file in study.out.glob(f"{arm.name}-[0-9]*.json"))
        found = {str(seed): read_json(study.result_file(arm, seed), "result") for seed in seeds}
        if found:
            runs[arm.name] = found
    return {
        "plan": study.plan.to_json(),
        "checkpoint": study.start.sha256,
        "is_taught": study.start.is_taught,
        "budgets": [budget.id for budget in study.plan.token_budgets(study.start.config)],
        "patches": study.start.config.num_patches,
        "start": read_json(study.out / START, "result"),
        "runs": runs,
    }
