"""Sizes of a run of the suite."""

from __future__ import annotations

from dataclasses import dataclass

from gft_edge.benchmarks.experiments import calibration_speed as calibration
from gft_edge.budget import TokenBudget
from gft_edge.config.model import GFTConfig, preset

SMALLER = ("vit_small_patch16_224", "vit_tiny_patch16_224")
CLASSES = 1000


@dataclass(frozen=True)
class Scale:
    """Sizes of a run.

    Args:
        config: the focal model; its backbone is that of every peer.
        smaller: timm names of further plain models.
        presets: further GFTs, by name.
        preset: the one that is exported and verified in a fresh process.
        calibrated: presets whose calibration is timed against plain inference.
        patches: numbers of patches at which only the importance is measured.
        repeats: fresh processes for each start-up figure.
        rounds, runs, warmup_seconds: of the protocol.
        threads: one measurement each.
    """

    config: GFTConfig
    smaller: tuple[str, ...] = SMALLER
    presets: tuple[str, ...] = ("gft_small", "gft_tiny")
    preset: str = "gft_base"
    calibrated: tuple[str, ...] = calibration.PRESETS
    patches: tuple[int, ...] = (196, 784, 3136)
    repeats: int = 7
    rounds: int = 10
    runs: int = 5
    warmup_seconds: float = 0.5
    threads: tuple[int, ...] = (1, 2)


def full_scale() -> Scale:
    """Returns the sizes of ``gft_base`` against ViT-B."""
    return Scale(preset("gft_base"))


def quick_scale() -> Scale:
    """Returns the width of ``gft_tiny``, two blocks, 36 patches: shows that everything runs; its ratios mean nothing."""
    config = preset("gft_tiny", image_size=96, depth=2, stages=(1,), budget=TokenBudget((18,), 36), num_classes=CLASSES)
    return Scale(
        config,
        smaller=(),
        presets=(),
        preset="gft_typeface",
        calibrated=("gft_typeface",),
        patches=(49, 196),
        repeats=1,
        rounds=2,
        runs=1,
        warmup_seconds=0.0,
        threads=(1,),
    )
