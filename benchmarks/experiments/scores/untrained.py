"""Scores on a trained backbone that was never pruned, and real images: a linear probe on the class token tells what is left."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gft_edge.benchmarks.experiments.backbone.weights import backbone_file, read_backbone
from gft_edge.benchmarks.experiments.scores import elpv, stamps
from gft_edge.benchmarks.experiments.scores.candidates import Learned, candidates
from gft_edge.benchmarks.experiments.scores.learned import TAYLOR, by_block, learn, learn_taylor
from gft_edge.benchmarks.experiments.scores.measuring import Arrays, Cache, Features, measure
from gft_edge.benchmarks.experiments.scores.page import FULL_PROBE
from gft_edge.benchmarks.experiments.scores.passes import Setting
from gft_edge.benchmarks.experiments.scores.probes import DECAY, FOLDS, Probe, fit_probe, refit_classes
from gft_edge.benchmarks.experiments.scores.results import Reading, columns, rows, section
from gft_edge.budget import TokenBudget
from gft_edge.checkpoint import load_weights
from gft_edge.config.model import GFTConfig
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
DATA = (elpv.DISTRIBUTION, stamps.NAME)
STAGES = (3, 5, 7)
"""Those of ``gft-edge adopt``."""
SETTINGS = (
    (STAGES, (0.75, 0.5, 0.25)),
    (STAGES, (0.5, 0.25, 0.125)),
    (STAGES, (0.25, 0.125, 0.0625)),
    ((1, 3, 5), (0.5, 0.25, 0.125)),
)
"""Selecting blocks and shares of the patches that they keep."""
REFIT = "refit probe"
DECAYS = (0.001, 0.01, 0.1, 1.0)
"""Penalties of further probes, since the order of the candidates may depend on it."""


@dataclass(frozen=True)
class UntrainedOptions:
    """Sizes of :func:`untrained`.

    Attributes:
        data: one of :data:`DATA`.
        packages: folder in which the packages of the stamps lie as in the root of a file system.
        images: that are measured.
        train_images: others, for the probe and the static places.
        query_images: of these, for the learned queries.
        threads: of PyTorch; 0 leaves them alone.

    Raises:
        ConfigError: too few images, or a negative number of threads.
    """

    data: str = DATA[0]
    packages: Path = Path("/")
    images: int = 400
    train_images: int = 512
    query_images: int = 96
    threads: int = 0

    def __post_init__(self) -> None:
        if self.images < FOLDS or self.train_images < FOLDS:
            raise ConfigError(
                f"images: needs {FOLDS} or more, found {self.images} and {self.train_images} to learn from"
            )
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
    budget = TokenBudget.from_ratios(SETTINGS[0][1], patches)
    return GFTConfig("vit_small_patch14_dinov2", SIZE, num_classes, PATCH, 384, 12, 6, SETTINGS[0][0], budget)


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
    """Measures every candidate in all settings; returns plain JSON values.

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
    train, test = _images(options)
    file, config, spec = backbone_file(), vit_config(len(test.labels)), PreprocessSpec(SIZE, SIZE)
    return _study(out, backbone_model(config, file), sha256(file), train, test, spec, options, track)


def _images(options: UntrainedOptions) -> tuple[ImageSet, ImageSet]:
    """Returns images to learn from and others to measure on."""
    if options.data == stamps.NAME:
        return stamps.parts(options.packages, options.train_images, options.images)
    return elpv.parts(elpv.solar_cells(elpv.data_folder()), options.train_images, options.images)


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
    settings = [Setting(blocks, TokenBudget.from_ratios(r, model.config.num_patches)) for blocks, r in SETTINGS]
    identity = {
        "weights": sha,
        "data": options.data,
        "preprocess": spec.id,
        "train_images": options.train_images,
        "query_images": options.query_images,
    }
    cache = Cache(out / options.data, identity)
    with torch_threads(options.threads):
        blocks = sorted({block for setting in settings for block in setting.stages})
        arrays = learn(model, train, spec, blocks, cache, track)
        probe = fit_probe(arrays["tokens"], arrays["labels"], model.config.num_classes)
        few = Subset(train, tuple(range(options.query_images)))
        queries = learn_taylor(model, few, spec, blocks, probe, cache, track)
        learned = Learned({TAYLOR: queries}, by_block(arrays, "places", blocks))
        features = measure(
            model,
            settings,
            lambda indices, marked: candidates(learned, model.config.grid, indices, marked),
            test,
            spec,
            cache,
            track,
        )
    readings = [probe_reading(features, probe), refit_reading(features, model.config.num_classes)]
    overall = columns(features, readings[0], settings)
    shares = np.array([test.share(index) if isinstance(test, stamps.Stamps) else 0.0 for index in range(len(test))])
    return {
        "data": options.data,
        "classes": model.config.num_classes,
        "train_images": options.train_images,
        "query_images": options.query_images,
        "folds": FOLDS,
        "decay": DECAY,
        "shares": [
            {
                "share": float(share),
                "images": int((shares == share).sum()),
                "full": float((readings[0].full == features.labels)[shares == share].mean()),
                "rows": rows(overall.of(shares == share), features.kinds),
            }
            for share in np.unique(shares[shares > 0])
        ],
        "probe_free": probe_free(features),
        "other_probes": other_probes(features, arrays, model.config.num_classes),
        **section(features, readings, settings, model.config),
    }


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


def probe_free(features: Features) -> dict[str, float]:
    """Returns the mean cosine of the class tokens with those of the full model, over images, settings and draws, by candidate."""
    full = features.full / np.linalg.norm(features.full, axis=1, keepdims=True)

    def cosine(tokens: npt.NDArray[np.float32]) -> float:
        return float(((tokens * full).sum(axis=1) / np.linalg.norm(tokens, axis=1)).mean())

    return {
        name: float(np.mean([cosine(draw) for found in features.pruned.values() for draw in found[name]]))
        for name in features.kinds
    }


def other_probes(features: Features, lessons: Arrays, num_classes: int) -> list[dict[str, Any]]:
    """Returns accuracies over all settings by probes of other penalties: with every patch, and by candidate.

    Args:
        features: what was measured.
        lessons: tokens and labels to learn from.
        num_classes: of the task.
    """
    found = []
    for decay in DECAYS:
        probe = fit_probe(lessons["tokens"], lessons["labels"], num_classes, decay)
        reading = probe_reading(features, probe)
        right = {
            name: float(np.mean([(of_one[name] == features.labels).mean() for of_one in reading.pruned.values()]))
            for name in features.kinds
        }
        found.append({"decay": decay, "full": float((reading.full == features.labels).mean()), "top1": right})
    return found
