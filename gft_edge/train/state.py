"""What resuming exactly needs: weights, optimiser, scaler, averages, counters; random numbers follow from the step."""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gft_edge.checkpoint import load_weights
from gft_edge.config.recipe import Recipe
from gft_edge.data.trained import TRAINED
from gft_edge.errors import ArtifactError, ConfigError
from gft_edge.files import replacing
from gft_edge.leftovers import is_temporary
from gft_edge.train.log import LOG, TENSORBOARD

STATE = "state.pt"
BEST = "best"


@dataclass
class Progress:
    """Counters of a training.

    Attributes:
        step: optimiser steps done.
        best: best validation accuracy so far, or -1.
        stale: evaluations since then.
        unreadable: what is wrong with images that were left out so far.
    """

    step: int = 0
    best: float = -1.0
    stale: int = 0
    unreadable: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Parts:
    """Everything of a training that has a state dict; ``average`` is None without weight averaging."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    average: nn.Module | None


def recipe_text(recipe: Recipe) -> str:
    """The recipe in a form that can be compared."""
    return json.dumps(recipe.to_json(), sort_keys=True)


def _differences(saved: str, recipe: Recipe) -> str:
    """Which values differ between the recipe of a state and this one; three at most."""
    try:
        then = _flat(json.loads(saved))
    except (ValueError, RecursionError):
        return "its own cannot be read"
    now = _flat(recipe.to_json())
    found = [key for key in sorted(then.keys() | now.keys()) if then.get(key) != now.get(key)]
    parts = [f"{key} is {json.dumps(now.get(key))}, was {json.dumps(then.get(key))}" for key in found[:3]]
    return "; ".join(parts) + (f"; and {len(found) - 3} more" if len(found) > 3 else "")


def _flat(data: Any) -> dict[str, Any]:
    """``{"train": {"lr": 1}}`` as ``{"train.lr": 1}``."""
    sections = data if isinstance(data, dict) else {}
    return {
        f"{section}.{key}": value
        for section, values in sections.items()
        for key, value in (values if isinstance(values, dict) else {"": values}).items()
    }


def save_state(out: Path, recipe: Recipe, parts: Parts, progress: Progress) -> None:
    """Writes state.pt, whole or not at all."""
    state = {
        "recipe": recipe_text(recipe),
        "progress": vars(progress),
        "model": parts.model.state_dict(),
        "optimizer": parts.optimizer.state_dict(),
        "scaler": parts.scaler.state_dict(),
        "average": None if parts.average is None else parts.average.state_dict(),
    }
    with replacing(out / STATE) as temporary, temporary.open("wb") as file:  # torch.save hides why its own file failed
        torch.save(state, file)


def saved_step(out: Path) -> int | None:
    """The step that resuming in a folder goes on from; None where no state was saved, or it cannot be read."""
    try:
        step = torch.load(str(out / STATE), map_location="cpu", weights_only=True, mmap=True)["progress"]["step"]
    except Exception:  # torch.load raises whatever the damaged bytes lead it to
        return None
    return step if isinstance(step, int) else None


def started_without_state(out: Path) -> bool:
    """Whether a folder holds nothing but what a training writes before its first state."""
    names = {path.name for path in out.iterdir() if not is_temporary(path.name)} if out.is_dir() else set()
    return out.is_dir() and names <= {LOG, BEST, TENSORBOARD, TRAINED}


def restore_state(out: Path, recipe: Recipe, parts: Parts, device: torch.device) -> Progress:
    """Fills all parts from state.pt.

    Raises:
        ArtifactError: missing or damaged.
        ConfigError: made by another recipe.
    """
    file = out / STATE
    try:
        with zipfile.ZipFile(file) as archive:  # torch does not compare the checksums that it writes
            damaged = archive.testzip()
        if damaged is not None:
            raise ValueError(damaged)
        state: dict[str, Any] = torch.load(file, map_location=device, weights_only=True)
        text = state["recipe"]
        progress = Progress(**state["progress"])
        weights, moments = state["model"], state["optimizer"]
        scaler, average = state["scaler"], state["average"]
        whole = isinstance(progress.step, int) and isinstance(text, str)
    except FileNotFoundError:
        raise ArtifactError(f"resume: {file} does not exist; start without --resume") from None
    except Exception as error:  # torch.load raises whatever the damaged bytes lead it to
        raise ArtifactError(
            f"resume: {file} is damaged ({type(error).__name__}); start again in another folder"
        ) from None
    if not whole:
        raise ArtifactError(f"resume: {file} is damaged (malformed counters); start again in another folder")
    if text != recipe_text(recipe):
        raise ConfigError(
            f"resume: {file} was made by another recipe or other --set values: {_differences(text, recipe)}"
        )
    load_weights(parts.model, weights, f"resume: {file}")
    parts.optimizer.load_state_dict(moments)
    parts.scaler.load_state_dict(scaler)
    if parts.average is not None:
        load_weights(parts.average, average, f"resume: {file} (average)")
    return progress
