"""Calibrate activation ranges on training images and quantize the linear layers to INT8."""

from __future__ import annotations

import argparse
from pathlib import Path

from gft_edge.cli.calibrate import add_calibration_arguments

EXAMPLE = "gft-edge quantize builtin --images 256 --out runs/int8"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the verb's arguments."""
    parser.add_argument("checkpoint", metavar="CKPT", help="checkpoint folder, or 'builtin'")
    add_calibration_arguments(parser)
    parser.add_argument("--precision", choices=("int8",), default="int8", help="of the linear layers (int8)")
    parser.add_argument("--ranges", type=Path, metavar="FILE", help="ranges.json of calibrate, instead of calibrating")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="checkpoint folder to write")


def run(args: argparse.Namespace) -> int:
    """Runs the verb."""
    import dataclasses

    from gft_edge.calibration.images import model_features
    from gft_edge.calibration.modules import quantized_names
    from gft_edge.calibration.observe import Collector, observe
    from gft_edge.calibration.policy import DEFAULT_POLICY
    from gft_edge.calibration.ptq import quantize_with
    from gft_edge.calibration.ranges import Ranges, read_ranges
    from gft_edge.calibration.safety import selection_safety
    from gft_edge.checkpoint import load_checkpoint, save_checkpoint
    from gft_edge.cli.calibrate import chosen_images, describe_ranges, gather, write_calibration
    from gft_edge.cli.console import result, table, track
    from gft_edge.data.batches import evaluation_batches
    from gft_edge.errors import ConfigError
    from gft_edge.files import new_folder, write_json

    checkpoint = load_checkpoint(args.checkpoint)
    info, model = checkpoint.info, checkpoint.model
    spec = info.preprocess
    if info.quantization is not None:
        raise ConfigError(f"checkpoint {checkpoint.path} is quantized already; give the full-precision one")
    with new_folder(args.out) as folder:
        known = read_ranges(args.ranges) if args.ranges else None
        if known is not None:
            known.require_model(checkpoint.sha256, f"checkpoint {checkpoint.path}")
        card, images = chosen_images(args, spec, info.labels, lambda: model_features(model, spec))
        if known is None:
            collector = Collector(quantized_names(model, DEFAULT_POLICY), args.method, args.percentile)
            gather(args, collector, images, spec, checkpoint.sha256, card, lambda b: observe(model, collector, b))
            ranges = Ranges.of(collector, "module inputs", checkpoint.sha256, card.id, spec.id)
        else:
            ranges = known
        quantized = quantize_with(model, ranges.values, DEFAULT_POLICY, ranges.method, ranges.images)
        batches = (batch for batch, _ in evaluation_batches(images, spec))
        safety = selection_safety(model, quantized.model, track(batches, "check selection", -(-len(images) // 64)))
        summary = {
            **quantized.summary,
            "data": args.data,
            "split": args.split,
            "preprocess": spec.id,
            "calibration_set": ranges.card_id,
        }
        provenance = {**info.provenance, "quantized_from": checkpoint.sha256}
        new_info = dataclasses.replace(info, quantization=summary, provenance=provenance)
        save_checkpoint(folder, new_info, quantized.model)
        write_calibration(folder / "calibration", card if known is None else None, ranges)
        selection = {**safety.to_json(), "calibration_set": card.id, "data": args.data, "split": args.split}
        write_json(folder / "calibration/selection.json", selection)
    values = quantized.summary["ranges"]
    lines = [(name, f"{value:.4g}") for name, value in values.items()]
    text = (
        f"{args.out}: {len(values)} linear layers in INT8, calibrated on {ranges.images} images\n"
        f"{card.describe()}\n{describe_ranges(ranges)}\n{safety.describe()}\n"
    )
    data = {"out": str(args.out), **summary, "selection": safety.to_json()}
    result(args, data, text + table(("input of", "range"), lines))
    return 0
