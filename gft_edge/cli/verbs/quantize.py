"""Calibrate activation ranges on training images and quantize the linear layers, and attention where asked for; says whether
selection survives it.

With --qat-epochs or --qat-steps the quantized model is then trained (QAT), taught by the full-precision one, and told beside a
control: the full-precision model trained for as many steps on the same images and quantized afterwards.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gft_edge.cli.verbs.calibrate import add_calibration_arguments
from gft_edge.cli.verbs.qat import add_qat_arguments

if TYPE_CHECKING:
    from torch import nn

    from gft_edge.calibration.images import CalibrationSet, HeldOut
    from gft_edge.calibration.ptq import PostTrained
    from gft_edge.calibration.ranges import Ranges
    from gft_edge.calibration.safety import SelectionSafety
    from gft_edge.checkpoint import Checkpoint
    from gft_edge.data.datasets import ImageSet
    from gft_edge.quant.policy import AttentionPrecision, QuantPolicy

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
    add_qat_arguments(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="checkpoint folder to write")


def run(args: argparse.Namespace) -> int:
    """Runs the verb."""
    import dataclasses
    import functools

    from gft_edge.calibration.images import held_out_images, model_features
    from gft_edge.calibration.ptq import observed_names
    from gft_edge.calibration.ranges import read_ranges
    from gft_edge.checkpoint import load_checkpoint, save_checkpoint
    from gft_edge.cli.common import settle_data
    from gft_edge.cli.console import result
    from gft_edge.cli.verbs.calibrate import chosen_images, write_calibration
    from gft_edge.cli.verbs.qat import describe_qat, open_qat, qat_settings, train_qat
    from gft_edge.data.trained import write_trained
    from gft_edge.errors import ConfigError, OutputError
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
    settings = qat_settings(args)
    settle_data(args, info, f"checkpoint {checkpoint.path}")
    data: dict[str, Any] = {}
    text = ""
    try:
        with new_folder(args.out) as folder:
            known = read_ranges(args.ranges) if args.ranges else None
            if known is not None:
                known.require_model(checkpoint.sha256, f"checkpoint {checkpoint.path}")
            calibrating = policy.smoothquant is not None or (known is None and bool(observed))
            held_out = held_out_images(args.data, args.against, args.images, spec.height, checkpoint.path)
            qat_data = None if settings is None else open_qat(args, settings, info, checkpoint.path)
            chosen = None
            if calibrating or held_out is None:
                chosen = chosen_images(args, spec, info.labels, lambda: model_features(model, spec))
            post_training = functools.partial(_post_training, args, checkpoint, policy, known, chosen)
            done = post_training(model)
            quantized, ranges, report = done.quantized, done.ranges, None
            if qat_data is not None:
                quantized, report = train_qat(
                    qat_data, checkpoint, done, lambda control: post_training(control).quantized
                )
            safety, where = _check_selection(args, checkpoint, quantized.model, held_out, chosen)
            card = None if chosen is None else chosen[0]
            summary = {
                **quantized.summary,
                "data": args.data,
                "split": args.split,
                "preprocess": spec.id,
                "calibration_set": None if ranges is None else ranges.card_id,
            }
            selection = {**safety.to_json(), **where}
            data = {"out": str(args.out), **summary, "selection": selection}
            text = _text(args.out, checkpoint, policy, summary, _calibration_in_words(ranges, card), safety, where)
            if report is not None:
                text += f"\n\n{describe_qat(report)}"
                data["qat_report"] = report.to_json()
            provenance = {**info.provenance, "quantized_from": checkpoint.sha256}
            new_info = dataclasses.replace(info, quantization=summary, provenance=provenance)
            save_checkpoint(folder, new_info, quantized.model)
            write_trained(folder, None if qat_data is None else qat_data.training, checkpoint.path)
            if ranges is not None:
                write_calibration(folder / "calibration", card if known is None else None, ranges)
            write_json(folder / "calibration/selection.json", selection)
            if report is not None:
                write_json(folder / "calibration/qat.json", report.to_json())
    except OutputError:
        if data:  # what took long to find out is not lost with the folder
            result(args, data, text)
        raise
    result(args, data, text)
    return 0


def _post_training(
    args: argparse.Namespace,
    checkpoint: Checkpoint,
    policy: QuantPolicy,
    known: Ranges | None,
    chosen: tuple[CalibrationSet, ImageSet] | None,
    model: nn.Module,
) -> PostTrained:
    """Evens out channels and finds ranges, where that is asked for and needed, and quantizes.

    Args:
        args: how ranges are found.
        checkpoint: what the model is or was trained from.
        policy: what becomes what.
        known: ranges that are known already.
        chosen: calibration images; there are some unless nothing needs them.
        model: full precision; left untouched.
    """
    from gft_edge.calibration.observe import Collector, observe
    from gft_edge.calibration.ptq import NO_METHOD, PostTrained, observed_names, quantize_with
    from gft_edge.calibration.ranges import Ranges
    from gft_edge.calibration.smoothquant import smooth
    from gft_edge.cli.verbs.calibrate import gather
    from gft_edge.data.batches import evaluation_batches

    spec = checkpoint.info.preprocess
    if policy.smoothquant is not None:
        assert chosen is not None
        model = smooth(model, (batch for batch, _ in evaluation_batches(chosen[1], spec)), policy)
    names = observed_names(model, policy)
    if not names:
        return PostTrained(model, None, quantize_with(model, {}, policy, NO_METHOD, 0))
    ranges = known
    if ranges is None:
        assert chosen is not None
        card, images = chosen
        collector = Collector(names, args.method, args.percentile)
        gather(args, collector, images, spec, checkpoint.sha256, card, lambda b: observe(model, collector, b))
        ranges = Ranges.of(collector, "module inputs", checkpoint.sha256, card.id, spec.id)
    return PostTrained(model, ranges, quantize_with(model, ranges.values, policy, ranges.method, ranges.images))


def _check_selection(
    args: argparse.Namespace,
    checkpoint: Checkpoint,
    quantized: nn.Module,
    held_out: HeldOut | None,
    chosen: tuple[CalibrationSet, ImageSet] | None,
) -> tuple[SelectionSafety, dict[str, Any]]:
    """Whether selection survives, on held-out images where some are known, else on those chosen; and which these were."""
    from gft_edge.calibration.safety import selection_safety
    from gft_edge.cli.console import say, track
    from gft_edge.data.batches import evaluation_batches

    if held_out is not None:
        data, split, images = held_out.data, held_out.split, held_out.images
    else:
        assert chosen is not None
        data, split, images = args.data, args.split, chosen[1]
    batches = evaluation_batches(images, checkpoint.info.preprocess, problem=lambda text: say(f"left out: {text}"))
    watched = track((batch for batch, _ in batches), "check selection", -(-len(images) // 64))
    where = {"data": data, "split": split, "held_out": held_out is not None}
    return selection_safety(checkpoint.model, quantized, watched), where


def _calibration_in_words(ranges: Ranges | None, card: CalibrationSet | None) -> str:
    from gft_edge.cli.verbs.calibrate import describe_ranges

    if ranges is None:
        return "which needs no calibration"
    lines = [f"calibrated on {ranges.images} images", describe_ranges(ranges)]
    if card is not None:
        lines.insert(1, card.describe())
    return "\n".join(line for line in lines if line)


def _policy(args: argparse.Namespace) -> QuantPolicy:
    """The policy that the arguments ask for."""
    import dataclasses

    from gft_edge.errors import ConfigError
    from gft_edge.quant.policy import read_policy, uniform_policy

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


def _text(
    out: Path,
    checkpoint: Checkpoint,
    policy: QuantPolicy,
    summary: dict[str, Any],
    calibration: str,
    safety: SelectionSafety,
    where: dict[str, Any],
) -> str:
    """What people should know of a quantized checkpoint."""
    from gft_edge.cli.console import table

    precisions = summary["precisions"]
    kind = {"int8": "INT8", "fp8": "FP8 (emulated)", "int8-weights": "INT8 weights"}.get(summary["precision"], "mixed")
    lines = [f"{out}: {_count(precisions)} in {kind}, {calibration}"]
    images = "held out" if where["held_out"] else "the calibration images"
    lines += [safety.describe(), f"  on {where['split']} images of {where['data']}, {images}"]
    lines.append(table(("layers", "of", "precision", "range", "why"), _layer_rows(checkpoint.model, policy, summary)))
    lines.append("each layer by itself: --json")
    return "\n".join(lines)


def _layer_rows(model: nn.Module, policy: QuantPolicy, summary: dict[str, Any]) -> list[tuple[str, int, str, str, str]]:
    """Layers of the same name in every block share a row when the same was done to them for the same reason."""
    import re

    from gft_edge.quant.attention import MEASURED_PARTS, attention_names
    from gft_edge.quant.modules import QUANTIZABLE

    values, precisions = summary["ranges"], summary["precisions"]
    names = [name for name, module in model.named_modules() if isinstance(module, QUANTIZABLE)]
    groups: dict[tuple[str, str, str], list[str]] = {}
    for name in [*names, *attention_names(model)]:
        key = (re.sub(r"(?<=\.)\d+(?=\.|$)", "*", name), precisions.get(name, "high"), _reason(policy, name))
        groups.setdefault(key, []).append(name)
    rows = []
    for (pattern, precision, reason), members in groups.items():
        keys = [
            key for name in members for key in (name, *(f"{name}.{part}" for part in MEASURED_PARTS)) if key in values
        ]
        found = [values[key] for key in keys]
        span = "" if not found else f"{min(found):.4g}" if len(found) == 1 else f"{min(found):.4g} to {max(found):.4g}"
        rows.append((pattern if len(members) > 1 else members[0], len(members), precision, span, reason))
    return rows


def _reason(policy: QuantPolicy, name: str) -> str:
    rule = policy.rule_for(name)
    return "no rule matches: stays in high precision" if rule is None else rule.reason


def _count(precisions: dict[str, str]) -> str:
    """How many layers and attentions are quantized."""
    from gft_edge.quant.policy import is_attend

    attentions = sum(map(is_attend, precisions))
    return f"{len(precisions) - attentions} layers" + (f" and {attentions} attentions" if attentions else "")
