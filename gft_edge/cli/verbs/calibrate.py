"""Find the ranges of activations on images that are not those of the evaluation, and how many images that needs.

For a checkpoint: ranges.json for quantize --ranges. For an FP32 artefact: ranges of its graph's linear layers and TensorRT
calibration caches (8.x to 10.x), in its calibration folder and manifest.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from gft_edge.cli.common import add_calibration_arguments, add_new_folder, is_artifact

if TYPE_CHECKING:
    from gft_edge.calibration.calibrate import Calibrated

EXAMPLE = "gft-edge calibrate builtin --images 256 --method entropy --out runs/ranges"

VERSIONS = "8.6.1,10.3.0"
"""Of ``--tensorrt`` where it is left out; a checkpoint takes none."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the verb's arguments."""
    from gft_edge.calibration.options import CACHE_ALGORITHMS

    parser.add_argument(
        "model", metavar="CKPT|ARTIFACT", help="full-precision checkpoint folder, 'builtin', or artefact"
    )
    add_calibration_arguments(parser)
    parser.add_argument(
        "--attention",
        action="store_true",
        help="checkpoint only: also queries, keys, values, for quantize --attention",
    )
    parser.add_argument(
        "--state", type=Path, metavar="FILE", help="keep the statistics here; an interrupted run resumes from the file"
    )
    parser.add_argument(
        "--tensorrt",
        metavar="V,...",
        help="artefact only: versions to write a cache for; one name writes one (two: 8.6.1,10.3.0)",
    )
    parser.add_argument(
        "--calibrator",
        choices=tuple(CACHE_ALGORITHMS),
        help="TensorRT class that will read the caches, whatever the method; trtexec's is entropy2 (entropy2)",
    )
    add_new_folder(parser, "ranges and card (an artefact's own calibration folder)", required=False)


def run(args: argparse.Namespace) -> int:
    """Runs the verb."""
    from gft_edge.cli.common import result_kept

    def show(found: Calibrated) -> None:
        _show(args, found)

    with result_kept(show):
        found = _of_artifact(args) if is_artifact(args.model) else _of_checkpoint(args)
    show(found)
    return 0


def _of_checkpoint(args: argparse.Namespace) -> Calibrated:
    from gft_edge.checkpoint import load_checkpoint
    from gft_edge.cli.common import calibration_callbacks, calibration_options
    from gft_edge.cli.early import checkpoint_info, require_data
    from gft_edge.errors import ConfigError
    from gft_edge.files import require_free

    options, info = calibration_options(args), checkpoint_info(args.model, full_precision=True)
    if args.out is None:
        raise ConfigError("a checkpoint needs --out DIR")
    for name in ("tensorrt", "calibrator"):
        if getattr(args, name) is not None:
            raise ConfigError(f"--{name} is for artefacts, whose caches it describes; {args.model} is a checkpoint")
    require_free(args.out)
    require_data(args.data, info.data)
    from gft_edge.calibration.calibrate import calibrate_checkpoint

    checkpoint = load_checkpoint(args.model)
    return calibrate_checkpoint(checkpoint, options, args.out, args.attention, calibration_callbacks())


def _of_artifact(args: argparse.Namespace) -> Calibrated:
    from gft_edge.cli.common import calibration_callbacks, calibration_options, comma_separated
    from gft_edge.cli.early import require_data
    from gft_edge.errors import ConfigError
    from gft_edge.manifest import load_artifact

    if args.attention:
        raise ConfigError("--attention is for checkpoints; calibration caches leave attention in FP16")
    options, artifact = calibration_options(args), load_artifact(Path(args.model))
    require_data(args.data, artifact.manifest.data)
    from gft_edge.calibration.calibrate import CacheOptions, calibrate_artifact

    caches = CacheOptions(comma_separated(_versions(args)), args.calibrator or CacheOptions.calibrator)
    return calibrate_artifact(artifact, options, caches, args.out, calibration_callbacks())


def _versions(args: argparse.Namespace) -> str:
    return VERSIONS if args.tensorrt is None else str(args.tensorrt)


def _show(args: argparse.Namespace, found: Calibrated) -> None:
    from gft_edge.cli.console import result, table

    ranges, data = found.ranges, found.to_json()
    rows = [(name, f"{value:.4g}") for name, value in ranges.values.items()]
    text = (
        f"{found.out}: ranges of {len(rows)} tensors by {ranges.method}\n{found.card.describe()}\n{ranges.describe()}\n"
    )
    if data["caches"]:
        text += (
            f"TensorRT caches (not read by a TensorRT yet; one for each version of --tensorrt {_versions(args)}): "
            f"{', '.join(data['caches'])}\n"
        )
    result(args, data, text + table(("tensor", "range"), rows))
