"""Calibrate activation ranges on training images and quantize the linear layers, and attention where asked for; says whether
selection survives it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from gft_edge.cli.calibrate import add_calibration_arguments

if TYPE_CHECKING:
    from gft_edge.calibration.policy import QuantPolicy

EXAMPLE = "gft-edge quantize builtin --images 256 --out runs/int8"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the verb's arguments."""
    parser.add_argument("checkpoint", metavar="CKPT", help="checkpoint folder, or 'builtin'")
    add_calibration_arguments(parser)
    parser.add_argument(
        "--precision",
        choices=("int8", "int8-weights", "fp8"),
        default="int8",
        help="of the linear layers of blocks and stages (int8)",
    )
    parser.add_argument(
        "--attention",
        choices=("int8", "fp8", "high"),
        help="of both products of attention; INT8 up to 512 tokens, FP8 from compute capability 8.9 (high)",
    )
    parser.add_argument("--policy", type=Path, metavar="FILE", help="rules (TOML or JSON) in place of --precision")
    parser.add_argument(
        "--smoothquant",
        type=float,
        nargs="?",
        const=0.5,
        metavar="ALPHA",
        help="even out the channels of LayerNorms first, exact in full precision (0.5 when given without a value)",
    )
    parser.add_argument("--ranges", type=Path, metavar="FILE", help="ranges.json of calibrate, instead of calibrating")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="checkpoint folder to write")


def run(args: argparse.Namespace) -> int:
    """Runs the verb."""
    import dataclasses

    from gft_edge.calibration.attention import MEASURED_PARTS, attention_names
    from gft_edge.calibration.images import model_features
    from gft_edge.calibration.modules import QUANTIZABLE
    from gft_edge.calibration.observe import Collector, observe
    from gft_edge.calibration.ptq import observed_names, quantize_with
    from gft_edge.calibration.ranges import Ranges, read_ranges
    from gft_edge.calibration.safety import selection_safety
    from gft_edge.calibration.smoothquant import smooth
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
    policy = _policy(args)
    if policy.smoothquant is not None and args.ranges:
        raise ConfigError("quantize: SmoothQuant changes the ranges; leave out --ranges")
    observed = observed_names(model, policy)  # refuses a policy that does not fit before images are read
    with new_folder(args.out) as folder:
        known = read_ranges(args.ranges) if args.ranges else None
        if known is not None:
            known.require_model(checkpoint.sha256, f"checkpoint {checkpoint.path}")
        card, images = chosen_images(args, spec, info.labels, lambda: model_features(model, spec))
        if policy.smoothquant is not None:
            model = smooth(model, (batch for batch, _ in evaluation_batches(images, spec)), policy)
        if known is None:
            collector = Collector(observed, args.method, args.percentile)
            gather(args, collector, images, spec, checkpoint.sha256, card, lambda b: observe(model, collector, b))
            ranges = Ranges.of(collector, "module inputs", checkpoint.sha256, card.id, spec.id)
        else:
            ranges = known
        quantized = quantize_with(model, ranges.values, policy, ranges.method, ranges.images)
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
    values, precisions = quantized.summary["ranges"], quantized.summary["precisions"]
    rows = [
        (name, precisions.get(name, "high"), f"{values[name]:.4g}" if name in values else "", _reason(policy, name))
        for name, module in checkpoint.model.named_modules()
        if isinstance(module, QUANTIZABLE)
    ]
    rows += [
        (name, precisions.get(name, "high"), _ranges(values, name, MEASURED_PARTS), _reason(policy, name))
        for name in attention_names(checkpoint.model)
    ]
    kind = {"int8": "INT8", "fp8": "FP8 (emulated)", "int8-weights": "INT8 weights"}.get(summary["precision"], "mixed")
    text = (
        f"{args.out}: {_count(precisions)} in {kind}, calibrated on {ranges.images} images\n"
        f"{card.describe()}\n{describe_ranges(ranges)}\n{safety.describe()}\n"
    )
    data = {"out": str(args.out), **summary, "selection": safety.to_json()}
    result(args, data, text + table(("layer", "precision", "range", "why"), rows))
    return 0


def _policy(args: argparse.Namespace) -> QuantPolicy:
    """The policy that the arguments ask for."""
    import dataclasses

    from gft_edge.calibration.policy import AttentionPrecision, read_policy, uniform_policy
    from gft_edge.errors import ConfigError

    if args.policy and args.attention:
        raise ConfigError(
            "quantize: --policy decides on attention too; give it a rule for '*.attend' in place of --attention"
        )
    attention: AttentionPrecision = args.attention or "high"
    if attention not in ("high", args.precision):
        raise ConfigError(
            f"quantize: a graph has one 8-bit type; --attention {attention} goes with --precision {attention}, not "
            f"{args.precision}"
        )
    policy = read_policy(args.policy) if args.policy else uniform_policy(args.precision, attention=attention)
    return policy if args.smoothquant is None else dataclasses.replace(policy, smoothquant=args.smoothquant)


def _reason(policy: QuantPolicy, name: str) -> str:
    rule = policy.rule_for(name)
    return "no rule matches" if rule is None else rule.reason


def _count(precisions: dict[str, str]) -> str:
    """How many layers and attentions are quantized."""
    from gft_edge.calibration.policy import is_attend

    attentions = sum(map(is_attend, precisions))
    return f"{len(precisions) - attentions} layers" + (f" and {attentions} attentions" if attentions else "")


def _ranges(values: dict[str, float], name: str, parts: tuple[str, ...]) -> str:
    """Ranges of an attention's operands, if it is quantized."""
    return ", ".join(f"{part} {values[key]:.4g}" for part in parts if (key := f"{name}.{part}") in values)
