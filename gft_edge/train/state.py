"""The saved state of a training: weights, optimiser, scaler, averages, counters; random numbers follow from the step."""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from timm.utils import ModelEmaV3
from torch import nn

from gft_edge.checkpoint import load_weights
from gft_edge.config.recipe import Recipe
from gft_edge.data.trained import TRAINED
from gft_edge.distill.answers import ANSWERS
from gft_edge.errors import ArtifactError, ConfigError
from gft_edge.files import replacing, require_free
from gft_edge.storage.leftovers import is_temporary
from gft_edge.train.log import LOG, TENSORBOARD

STATE = "state.pt"
BEST = "best"


@dataclass
class Progress:
    """Counters of a training.

    Attributes:
        step: optimiser steps done.
        best: best validation accuracy so far, or -1.
        stale: evaluations since the best one.
        unreadable: messages about images that were left out so far.
    """

    step: int = 0
    best: float = -1.0
    stale: int = 0
    unreadable: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class TrainingState:
    """Every object of a training that has a state dict; ``average`` is None without weight averaging."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    average: nn.Module | None

    @property
    def evaluated(self) -> nn.Module:
        """The model to measure and save: the averaged weights if there are any."""
        return self.average.module if isinstance(self.average, ModelEmaV3) else self.model


def recipe_text(recipe: Recipe) -> str:
    """Returns the recipe as text that can be compared."""
    return json.dumps(recipe.to_json(), sort_keys=True)


def _differences(saved: str, recipe: Recipe) -> str:
    """Lists the values that differ between the recipe of a state and this one, three at most."""
    try:
        then = _flat(json.loads(saved))
    except (ValueError, RecursionError):
        return "the saved recipe cannot be read"
    now = _flat(recipe.to_json())
    found = [key for key in sorted(then.keys() | now.keys()) if then.get(key) != now.get(key)]
    texts = [f"{key} is {json.dumps(now.get(key))}, was {json.dumps(then.get(key))}" for key in found[:3]]
    return "; ".join(texts) + (f"; and {len(found) - 3} more" if len(found) > 3 else "")


def _flat(data: Any) -> dict[str, Any]:
    """Returns ``{"train.lr": 1}`` for ``{"train": {"lr": 1}}``."""
    sections = data if isinstance(data, dict) else {}
    return {
        f"{section}.{key}": value
        for section, values in sections.items()
        for key, value in (values if isinstance(values, dict) else {"": values}).items()
    }


def save_state(out: Path, recipe: Recipe, state: TrainingState, progress: Progress) -> None:
    """Writes state.pt atomically."""
    saved = {
        "recipe": recipe_text(recipe),
        "progress": vars(progress),
        "model": state.model.state_dict(),
        "optimizer": state.optimizer.state_dict(),
        "scaler": state.scaler.state_dict(),
        "average": None if state.average is None else state.average.state_dict(),
    }
    # Opened here: torch.save hides the cause when it cannot open a file.
    with replacing(out / STATE) as temporary, temporary.open("wb") as file:
        torch.save(saved, file)


def saved_step(out: Path) -> int | None:
    """Returns the step from which a folder resumes; None if no state was saved or it cannot be read."""
    try:
        step = torch.load(str(out / STATE), map_location="cpu", weights_only=True, mmap=True)["progress"]["step"]
    except Exception:  # torch.load raises any exception on damaged bytes
        return None
    return step if isinstance(step, int) else None


def started_without_state(out: Path) -> bool:
    """Returns True when a folder holds only files that a training writes before its first state."""
    names = {path.name for path in out.iterdir() if not is_temporary(path.name)} if out.is_dir() else set()
    return out.is_dir() and names <= {LOG, BEST, TENSORBOARD, TRAINED, ANSWERS}


def require_new(out: Path) -> None:
    """Refuses a folder that is not empty; for one that holds a training, the message says how to resume it.

    Raises:
        ConfigError: the folder holds something.
    """
    step = saved_step(out)
    if step is not None:
        raise ConfigError(
            f"output {out}: holds a training saved at step {step}; resume it with --resume, or give another --out"
        )
    if started_without_state(out) and any(out.iterdir()):
        raise ConfigError(
            f"output {out}: holds a training that stopped before it saved a state; restart it with --resume, or give "
            "another --out"
        )
    require_free(out, stays=True)


def resume_hint(out: Path) -> str:
    """Returns a sentence about how an interrupted training resumes."""
    step = saved_step(out)
    if step is not None:
        return f"--resume continues from step {step}"
    if out.is_dir():
        return (
            "no state was saved yet; --resume starts from the beginning (train.checkpoint_every sets how often to save)"
        )
    return "no state was saved yet"


def restore_state(out: Path, recipe: Recipe, state: TrainingState, device: torch.device) -> Progress:
    """Fills a state from state.pt.

    Raises:
        ArtifactError: missing, damaged, or saved by a version that groups weights otherwise.
        ConfigError: saved by another recipe.
    """
    file = out / STATE
    try:
        with zipfile.ZipFile(file) as archive:  # torch does not check the checksums that it writes
            damaged = archive.testzip()
        if damaged is not None:
            raise ValueError(damaged)
        saved: dict[str, Any] = torch.load(file, map_location=device, weights_only=True)
        text = saved["recipe"]
        progress = Progress(**saved["progress"])
        weights, moments = saved["model"], saved["optimizer"]
        scaler, average = saved["scaler"], saved["average"]
        whole = isinstance(progress.step, int) and isinstance(text, str)
    except FileNotFoundError:
        raise ArtifactError(f"resume: {file} does not exist; start without --resume") from None
    except Exception as error:  # torch.load raises any exception on damaged bytes
        raise ArtifactError(
            f"resume: {file} is damaged ({type(error).__name__}); start again in another folder"
        ) from None
    if not whole:
        raise ArtifactError(f"resume: {file} is damaged (malformed counters); start again in another folder")
    if text != recipe_text(recipe):
        raise ConfigError(
            f"resume: {file} was saved with another recipe or other --set values: {_differences(text, recipe)}"
        )
    load_weights(state.model, weights, f"resume: {file}")
    try:
        state.optimizer.load_state_dict(moments)
    except ValueError:
        raise ArtifactError(
            f"resume: {file} groups the weights in its optimiser otherwise, so another version saved it; start again in another "
            "folder"
        ) from None
    state.scaler.load_state_dict(scaler)
    if state.average is not None:
        load_weights(state.average, average, f"resume: {file} (average)")
    return progress
