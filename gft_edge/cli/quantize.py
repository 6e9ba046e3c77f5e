"""Calibrate activation ranges on training images and quantize the linear layers to INT8."""

from __future__ import annotations

import argparse
from pathlib import Path

from gft_edge.cli.common import add_data_arguments

EXAMPLE = "gft-edge quantize builtin --images 256 --out runs/int8"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the verb's arguments."""
    parser.add_argument("checkpoint", metavar="CKPT", help="checkpoint folder, or 'builtin'")
    add_data_arguments(parser, images=256, split="train")
    parser.add_argument("--precision", choices=("int8",), default="int8", help="of the linear layers (int8)")
    parser.add_argument("--method", choices=("max",), default="max", help="how ranges are found (max)")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="checkpoint folder to write")


def run(args: argparse.Namespace) -> int:
    """Runs the verb."""
    import dataclasses

    from gft_edge.calibration.ptq import quantize_int8
    from gft_edge.checkpoint import load_checkpoint, save_checkpoint
    from gft_edge.cli.common import labelled_batches
    from gft_edge.cli.console import result, table, track
    from gft_edge.errors import ConfigError, DataError
    from gft_edge.files import new_folder

    checkpoint = load_checkpoint(args.checkpoint)
    info = checkpoint.info
    if info.quantization is not None:
        raise ConfigError(f"checkpoint {checkpoint.path} is quantized already; give the full-precision one")
    with new_folder(args.out) as folder:
        count, batches = labelled_batches(args.data, args.split, args.images, info.model, info.labels, info.preprocess)
        if count < args.images:
            raise DataError(f"data {args.data}: {count} images, {args.images} asked for; lower --images")
        images = (batch for batch, _ in track(batches, "calibrate", -(-count // 64)))
        quantized = quantize_int8(checkpoint.model, images)
        summary = {**quantized.summary, "data": args.data, "split": args.split, "preprocess": info.preprocess.id}
        provenance = {**info.provenance, "quantized_from": checkpoint.sha256}
        new_info = dataclasses.replace(info, quantization=summary, provenance=provenance)
        save_checkpoint(folder, new_info, quantized.model)
    ranges = quantized.summary["ranges"]
    lines = [(name, f"{value:.4g}") for name, value in ranges.items()]
    text = f"{args.out}: {len(ranges)} linear layers in INT8, calibrated on {count} images\n"
    result(args, {"out": str(args.out), **summary}, text + table(("input of", "largest magnitude"), lines))
    return 0
