"""Scores on a trained backbone that was never pruned, and real images: a linear probe on the class token tells what is left."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gft_edge.benchmarks.experiments.backbone.weights import backbone_file, read_backbone
from gft_edge.benchmarks.experiments.scores.candidates import Learned, candidates
from gft_edge.benchmarks.experiments.scores.elpv import DISTRIBUTION, data_folder, parts, solar_cells
from gft_edge.benchmarks.experiments.scores.learned import TAYLOR, Places, Ridge, taylor
from gft_edge.benchmarks.experiments.scores.measuring import BATCH, Arrays, Cache, Features, measure
from gft_edge.benchmarks.experiments.scores.passes import Setting, full_pass
from gft_edge.benchmarks.experiments.scores.probes import FOLDS, Probe, fit_probe, refit_classes
from gft_edge.benchmarks.experiments.scores.results import Reading, section
from gft_edge.budget import TokenBudget
from gft_edge.checkpoint import load_weights
from gft_edge.config.model import GFTConfig
from gft_edge.data.batches import batch_count, indexed_batches
from gft_edge.data.sets import ImageSet, Subset
from gft_edge.errors import ConfigError
from gft_edge.evaluation import torch_threads
from gft_edge.files import sha256
from gft_edge.model.backbone import timm_vit
from gft_edge.model.build import build_model
from gft_edge.model.gft import FocalGFT
from gft_edge.preprocess import PreprocessSpec
from gft_edge.progress import Track, silent

SIZE, PATCH = 224, 14
STAGES = ((1, 3, 5), (3, 5, 7))
RATIOS = ((0.75, 0.5, 0.25), (0.5, 0.25, 0.125), (0.25, 0.125, 0.0625))
FULL_PROBE, REFIT = "probe", "refit probe"


@dataclass(frozen=True)
class UntrainedOptions:
    """Sizes of :func:`untrained`.

    Attributes:
        images: that are measured.
        train_images: others, for the probe and the static places.
        query_images: of these, for the learned queries.
        threads: of PyTorch; 0 leaves them alone.

    Raises:
        ConfigError: too few images, or a negative number of threads.
    """

    images: int = 240
    train_images: int = 512
    query_images: int = 96
    threads: int = 0

    def __post_init__(self) -> None:
        if self.images < FOLDS or self.train_images < FOLDS:
            raise ConfigError(f"images: needs {FOLDS} or more, found {self.images} and {self.train_images} to learn from")
        if not 1 <= self.query_images <= self.train_images:
            raise ConfigError(
                f"images for the learned queries: 1 to {self.train_images}, which are those to learn from, found "
                f"{self.query_images}"
            )
        if self.threads < 0:
            raise ConfigError(f"threads must be 0 (those of PyTorch) or more, found {self.threads}")


def vit_config(num_classes: int) -> GFTConfig:
    """Returns the configuration of the backbone; its classifier is not used."""
    patches = (SIZE // PATCH) ** 2
    budget = TokenBudget.from_ratios(RATIOS[0], patches)
    return GFTConfig("vit_small_patch14_dinov2", SIZE, num_classes, PATCH, 384, 12, 6, STAGES[1], budget)


def backbone_model(config: GFTConfig, file: Path) -> FocalGFT:
    """Returns the focal model with the weights of the file, in eval mode.

    Raises:
        ArtifactError: the weights do not fit.
    """
    model = build_model(config)
    assert isinstance(model, FocalGFT)
    backbone = read_backbone(file, timm_vit(config, False, 0.0, num_classes=0))
    load_weights(model, {**model.state_dict(), **backbone}, f"backbone {file}")
    return model.eval().requires_grad_(False)


def untrained(out: Path, options: UntrainedOptions | None = None, track: Track = silent) -> dict[str, Any]:
    """Measures every candidate at three budgets and two depths; returns plain JSON values.

    Args:
        out: folder for what the classifier reads, so that an interrupted run goes on and another probe needs no network.
        options: defaults where None.
        track: shows progress.

    Raises:
        MissingExtraError: a package with images or weights is not installed.
        DataError: too few images, or one cannot be read.
        OutputError: the folder cannot be written to.
    """
    options = options or UntrainedOptions()
    images, file = solar_cells(data_folder()), backbone_file()
    train, test = parts(images, options.train_images, options.images)
    config, spec = vit_config(len(images.labels)), PreprocessSpec(SIZE, SIZE)
    return _study(out, backbone_model(config, file), sha256(file), train, test, spec, options, track)


def _study(
    out: Path,
    model: FocalGFT,
    sha: str,
    train: ImageSet,
    test: ImageSet,
    spec: PreprocessSpec,
    options: UntrainedOptions,
    track: Track,
) -> dict[str, Any]:
    settings = [
        Setting(stages, TokenBudget.from_ratios(ratios, model.config.num_patches))
        for stages in STAGES
        for ratios in RATIOS
    ]
    identity = {
        "weights": sha,
        "data": DISTRIBUTION,
        "preprocess": spec.id,
        "train_images": options.train_images,
        "query_images": options.query_images,
    }
    cache = Cache(out / "untrained", identity)
    with torch_threads(options.threads):
        learned, probe = learn(model, train, spec, options.query_images, cache, track)
        features = measure(
            model,
            settings,
            lambda setting, indices, marked: candidates(learned, setting.stages, model.config.grid, indices, marked),
            test,
            spec,
            cache,
            track,
        )
    readings = [probe_reading(features, probe), refit_reading(features, model.config.num_classes)]
    return {
        "data": DISTRIBUTION,
        "classes": model.config.num_classes,
        "train_images": options.train_images,
        "query_images": options.query_images,
        "folds": FOLDS,
        **section(features, readings, settings, model.config),
    }


def learn(
    model: FocalGFT, images: ImageSet, spec: PreprocessSpec, query_images: int, cache: Cache, track: Track = silent
) -> tuple[Learned, Probe]:
    """Returns places and queries that were learned from images with every patch, and the probe of the class token.

    Args:
        model: in eval mode.
        images: to learn from.
        spec: preprocessing.
        query_images: the first so many, for the queries.
        cache: for the places, the queries and the tokens.
        track: shows progress, batch by batch.
    """
    config, blocks = model.config, sorted({block for stages in STAGES for block in stages})
    heads, prefix = config.num_heads, config.num_prefix_tokens
    arrays = cache.get("learned")
    if not arrays:
        places, tokens, labels = Places(config.num_patches, blocks), [], []
        batches = indexed_batches(images, spec, BATCH)
        for _, pixels, truth in track(batches, "probe", batch_count(len(images), BATCH)):
            with torch.no_grad():
                entries, full = full_pass(model, torch.from_numpy(pixels), blocks)
            places.add(entries, heads, prefix)
            tokens.append(full.numpy())
            labels.append(truth)
        arrays = {"tokens": np.concatenate(tokens), "labels": np.concatenate(labels)}
        arrays.update({f"places {block}": found.numpy() for block, found in places.ranks().items()})
        cache.put("learned", arrays)
    probe = fit_probe(arrays["tokens"], arrays["labels"], config.num_classes)
    queries = cache.get("queries")
    if not queries:
        queries = _queries(model, Subset(images, tuple(range(query_images))), spec, blocks, probe, track)
        cache.put("queries", queries)
    return Learned(
        {TAYLOR: {block: torch.from_numpy(queries[str(block)]) for block in blocks}},
        {block: torch.from_numpy(arrays[f"places {block}"]) for block in blocks},
    ), probe


def _queries(
    model: FocalGFT, images: ImageSet, spec: PreprocessSpec, blocks: list[int], probe: Probe, track: Track
) -> Arrays:
    fits = {block: Ridge(model.config.embed_dim) for block in blocks}
    batches = indexed_batches(images, spec, BATCH)
    for _, pixels, labels in track(batches, "learned queries", batch_count(len(images), BATCH)):
        found = taylor(model, torch.from_numpy(pixels), torch.from_numpy(labels), blocks, probe)
        for block, (keys, target) in found.items():
            fits[block].add(keys, target)
    return {str(block): fit.solve().numpy() for block, fit in fits.items()}


def probe_reading(features: Features, probe: Probe) -> Reading:
    """Returns what the probe of the full model says."""
    return Reading(
        FULL_PROBE,
        probe.classes(features.full),
        {
            setting: {name: np.stack([probe.classes(draw) for draw in draws]) for name, draws in found.items()}
            for setting, found in features.pruned.items()
        },
    )


def refit_reading(features: Features, num_classes: int) -> Reading:
    """Returns what probes say that were fitted on the class tokens of the pruned network itself."""
    labels = features.labels
    return Reading(
        REFIT,
        refit_classes(features.full, labels, num_classes),
        {
            setting: {
                name: np.stack([refit_classes(draw, labels, num_classes) for draw in draws])
                for name, draws in found.items()
            }
            for setting, found in features.pruned.items()
        },
    )
