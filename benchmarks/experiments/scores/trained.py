"""Scores on a trained checkpoint, by its own classifier; with G and recall where the data knows its marks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from gft_edge.benchmarks.experiments.scores.candidates import Learned, candidates
from gft_edge.benchmarks.experiments.scores.learned import MARKS, TAYLOR, by_block, learn, learn_taylor
from gft_edge.benchmarks.experiments.scores.measuring import Cache, Features, measure
from gft_edge.benchmarks.experiments.scores.passes import Setting
from gft_edge.benchmarks.experiments.scores.results import Reading, section
from gft_edge.budget import TokenBudget
from gft_edge.checkpoint import Checkpoint, load_checkpoint
from gft_edge.config.model import GFTConfig
from gft_edge.control_checkpoint import require_dropping
from gft_edge.control_rules import require_selection
from gft_edge.data.datasets import held_out_split, split_names
from gft_edge.data.for_model import Note, Request, known_data, labelled_images
from gft_edge.data.splits import SPLITS, Split
from gft_edge.errors import ConfigError
from gft_edge.evaluation import torch_threads
from gft_edge.model.gft import FocalGFT
from gft_edge.progress import Track, silent

SHARES = (0.25, 0.125, 0.0625)
"""Of the patches, kept to the end."""
CLASSIFIER = "top-1"


@dataclass(frozen=True)
class TrainedOptions:
    """Options of :func:`trained`.

    Attributes:
        data: a name for :func:`~gft_edge.data.datasets.open_images`; None is the data that the model was trained on.
        images: that are measured.
        train_images: others, for the static places and the learned queries.
        threads: of PyTorch; 0 leaves them alone.

    Raises:
        ConfigError: a number is out of range.
    """

    data: str | None = None
    images: int = 800
    train_images: int = 384
    threads: int = 0

    def __post_init__(self) -> None:
        if self.images < 1 or self.train_images < 1:
            raise ConfigError(f"images: needs 1 or more, found {self.images} and {self.train_images} to learn from")
        if self.threads < 0:
            raise ConfigError(f"threads must be 0 (those of PyTorch) or more, found {self.threads}")


def open_focal(name: str) -> tuple[Checkpoint, FocalGFT]:
    """Returns a checkpoint and its model, which must be focal and in floating point.

    Raises:
        ArtifactError: it is missing or damaged.
        ConfigError: it is of another kind.
    """
    checkpoint = load_checkpoint(name)
    where = f"checkpoint {checkpoint.path}"
    require_selection(checkpoint.info.model, where)
    if checkpoint.info.quantization is not None:
        raise ConfigError(f"{where}: is quantized; give the checkpoint that it was made from")
    if checkpoint.info.model.is_distilled:
        raise ConfigError(f"{where}: has a second classifier on a distillation token, which this study does not read")
    assert isinstance(checkpoint.model, FocalGFT)
    return checkpoint, checkpoint.model


def setting_at(config: GFTConfig, first: int, share: float) -> Setting:
    """Returns the configured selections moved so that the first is in a given block, in the configured proportions.

    Args:
        config: of a focal model.
        first: number of the first selecting block, from 1.
        share: of the patches, kept to the end.

    Raises:
        ConfigError: nothing is dropped, fewer than two patches are left, or no selecting block has another one behind it.
    """
    last = config.budget.keep[-1]
    moved = [(block - config.stages[0] + first, keep / last) for block, keep in zip(config.stages, config.budget.keep)]
    read = [
        (block, part) for block, part in moved if block < config.depth
    ]  # after the last block nothing reads patches
    if not read:
        raise ConfigError(
            f"a first selection in block {first} of {config.depth} has no block behind it; give an earlier one"
        )
    budget = TokenBudget.from_ratios(tuple(min(1.0, share * part) for _, part in read), config.num_patches)
    setting = Setting(tuple(block for block, _ in read), budget)
    require_dropping(budget, setting.of(config))
    return setting


def settings_of(config: GFTConfig) -> list[Setting]:
    """Returns three budgets with the first selection in block 1 and in the configured block (or block 2, if that is block 1)."""
    return [setting_at(config, first, share) for first in (1, max(config.stages[0], 2)) for share in SHARES]


def other_split(data: str, split: Split) -> Split:
    """Returns train, or the next part that is not measured; the measured one where there is no other."""
    names = split_names(data)
    return next((name for name in SPLITS if name in names and name != split), split)


def trained(
    name: str, out: Path, options: TrainedOptions | None = None, note: Note | None = None, track: Track = silent
) -> dict[str, Any]:
    """Measures every candidate at three budgets and two depths; returns plain JSON values.

    Args:
        name: of the checkpoint.
        out: folder for what the classifier reads, so that an interrupted run goes on.
        options: defaults where None.
        note: receives how the images were found.
        track: shows progress.

    Raises:
        ArtifactError: the checkpoint is missing or damaged.
        ConfigError: it is not focal, or its sizes do not allow the budgets.
        DataError: nothing usable in the data, or the model does not know a class.
        OutputError: the folder cannot be written to.
    """
    options = options or TrainedOptions()
    checkpoint, model = open_focal(name)
    info, config = checkpoint.info, model.config
    settings = settings_of(config)
    data = known_data(options.data, info.data, f"checkpoint {checkpoint.path}")
    split = held_out_split(data)
    images = labelled_images(
        Request(data, split, options.images), config.image_size, info.labels, checkpoint.path, note
    )
    learning = other_split(data, split)
    lessons = labelled_images(Request(data, learning, options.train_images), config.image_size, info.labels)
    identity = {
        "checkpoint": checkpoint.sha256,
        "data": data,
        "splits": [learning, split],
        "images": [len(lessons), len(images)],
        "preprocess": info.preprocess.id,
    }
    cache = Cache(out / "trained", identity)
    blocks = sorted({block for setting in settings for block in setting.stages})
    with torch_threads(options.threads):
        arrays = learn(model, lessons, info.preprocess, blocks, cache, track)
        queries = {TAYLOR: learn_taylor(model, lessons, info.preprocess, blocks, model.head, cache, track)}
        if f"marks {blocks[0]}" in arrays:
            queries[MARKS] = by_block(arrays, "marks", blocks)
        learned = Learned(queries, by_block(arrays, "places", blocks))
        features = measure(
            model,
            settings,
            lambda indices, marked: candidates(learned, config.grid, indices, marked),
            images,
            info.preprocess,
            cache,
            track,
        )
        reading = classified(model, features, settings)
    return {
        "checkpoint": checkpoint.path.name,
        "sha256": checkpoint.sha256,
        "data": data,
        "split": split,
        "learned_from": {"split": learning, "images": len(lessons)},
        **section(features, [reading], settings, config),
    }


def classified(model: FocalGFT, features: Features, settings: Sequence[Setting]) -> Reading:
    """Returns what the model's own classifier says."""

    def classes(tokens: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
        with torch.no_grad():
            found: npt.NDArray[np.int64] = model.head(torch.from_numpy(tokens)).argmax(dim=1).numpy()
        return found

    pruned = {
        setting: {name: np.stack([classes(draw) for draw in draws]) for name, draws in features.pruned[setting].items()}
        for setting in settings
    }
    return Reading(CLASSIFIER, classes(features.full), pruned)
