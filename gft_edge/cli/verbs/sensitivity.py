"""Measure the effect of INT8 layer by layer, and choose layers for a mixed-precision policy.

Each layer alone in INT8, and all but each: logit SQNR, top-1 and kept patches against full precision. With a limit
(--max-loss, --min-sqnr), the layers that save most time within it: policy.json for quantize --policy. The evaluation
images are those of --eval-split, so that the test images have no part in the choice.

Noise and accuracy are computed in PyTorch. Times of layers are of ONNX Runtime on this processor, or bounds of --target: there is
no --backend, since TensorRT fuses layers, so that the time of one alone says little about an engine.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gft_edge.cli.common import (
    add_calibration_arguments,
    add_new_folder,
    add_ranges_argument,
    add_threads_argument,
    positive,
)
from gft_edge.data.splits import SPLITS

if TYPE_CHECKING:
    from gft_edge.calibration.options import CalibrationOptions
    from gft_edge.calibration.sensitivity.study import SensitivityOptions, SensitivityResult
    from gft_edge.quant.policy import QuantPolicy

EXAMPLE = "gft-edge sensitivity builtin --images 128 --min-sqnr 30 --out runs/sensitivity"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the verb's arguments."""
    parser.add_argument("checkpoint", metavar="CKPT", help="full-precision checkpoint folder, or 'builtin'")
    add_calibration_arguments(parser)
    add_ranges_argument(parser)
    parser.add_argument(
        "--policy", type=Path, metavar="FILE", help="rules whose INT8 layers are measured (those INT8 by default)"
    )
    parser.add_argument("--eval-data", metavar="D", help="evaluation images, as for --data (those of --data)")
    parser.add_argument("--eval-images", type=positive, default=640, metavar="N", help="how many of them (640)")
    parser.add_argument("--eval-split", choices=SPLITS, default="val", help="which part of them (val)")
    parser.add_argument(
        "--max-loss", type=float, metavar="POINTS", help="choose a policy: top-1 it may lose, in points"
    )
    parser.add_argument("--min-sqnr", type=float, metavar="DB", help="choose a policy: least logit SQNR, in dB")
    parser.add_argument(
        "--target",
        metavar="DEVICE",
        help="time of layers by this device's roofline, a bound; by default measured here in ONNX Runtime",
    )
    add_threads_argument(parser, default=1)
    add_new_folder(parser, "figures, ranges, page, and the policy where one is chosen")


def run(args: argparse.Namespace) -> int:
    """Runs the verb."""
    from gft_edge.checkpoint import load_checkpoint
    from gft_edge.cli.common import calibration_callbacks, calibration_options, result_kept
    from gft_edge.cli.console import track
    from gft_edge.cli.early import checkpoint_info, require_data, require_file
    from gft_edge.errors import CheckFailed
    from gft_edge.files import require_free
    from gft_edge.quant.policy import DEFAULT_POLICY, read_policy

    calibration, info = calibration_options(args), checkpoint_info(args.checkpoint, full_precision=True)
    policy = DEFAULT_POLICY if args.policy is None else read_policy(args.policy)
    require_file(args.ranges, "--ranges")
    require_data(args.data, info.data)
    require_data(args.eval_data)
    require_free(args.out)
    from gft_edge.benchmarks.measuring.layer_times import layer_timer
    from gft_edge.calibration.sensitivity.study import study_sensitivity
    from gft_edge.report.pages.sensitivity import write_sensitivity_page

    options = _options(args, calibration, policy)
    time_layers = layer_timer(args.target, args.threads, track)
    checkpoint = load_checkpoint(args.checkpoint)

    def show(found: SensitivityResult) -> None:
        _show(args, found)

    with result_kept(show):
        found = study_sensitivity(
            checkpoint, options, time_layers, args.out, calibration_callbacks(), write_sensitivity_page
        )
    show(found)
    if found.unmet is not None:
        raise CheckFailed(found.unmet)
    return 0


def _options(args: argparse.Namespace, calibration: CalibrationOptions, policy: QuantPolicy) -> SensitivityOptions:
    """Returns what the arguments ask for."""
    from gft_edge.calibration.sensitivity.mixed import AccuracyLimit
    from gft_edge.calibration.sensitivity.study import SensitivityOptions

    limited = args.max_loss is not None or args.min_sqnr is not None
    return SensitivityOptions(
        calibration=calibration,
        policy=policy,
        ranges=args.ranges,
        eval_data=args.eval_data,
        eval_images=args.eval_images,
        eval_split=args.eval_split,
        limit=AccuracyLimit(args.max_loss, args.min_sqnr) if limited else None,
    )


def _show(args: argparse.Namespace, found: SensitivityResult) -> None:
    from gft_edge.cli.console import result

    data = found.to_json()
    evaluation = data["evaluation"]
    head = f"{args.out}: {len(data['layers'])} layers on {evaluation['images']} {evaluation['split']} images\n"
    text = f"{head}{found.overlap}\n{_text(args, found.options.calibration.data, data)}"
    result(args, {"out": str(args.out), **data}, text)


def _text(args: argparse.Namespace, calibration_data: str | None, data: dict[str, Any]) -> str:
    """Returns the measurements for people."""
    from gft_edge.calibration.sensitivity.study import POLICY
    from gft_edge.cli.console import command, table
    from gft_edge.report.figures.plots import chosen_layers

    best = chosen_layers(data)
    everything = data["everything"]
    rows = [
        (
            row["name"],
            row["shape"],
            _db(row["only"]),
            _points(row["only"]),
            f"{min(row['only']['jaccard'], default=1):.3f}",
            _db(row["all_but"]),
            _points(row["all_but"]),
            f"{row['high_ms']:.4f}",
            f"{row['int8_ms']:.4f}",
            *([] if best is None else ["INT8" if row["name"] in best else "high"]),
        )
        for row in data["layers"]
    ]
    times = data["times"]
    head = ["layer", "rows x in x out", "alone, dB", "top-1", "kept sets", "without it, dB", "top-1"]
    head += [f"{times['high']}, ms", "INT8, ms", *([] if best is None else ["chosen"])]
    text = (
        f"full precision: top-1 {data['top1']:.2%}; all in INT8 {everything['top1']:.2%} ({_points(everything)} points), "
        f"logit SQNR {_db(everything)} dB\n"
        f"time of layers alone: {times['source']}{', a bound' if times['kind'] == 'bound' else ''}\n"
        + table(head, rows)
    )
    search = data["search"]
    if search is None:
        return text
    tries = [
        (
            f"{number + 1}{', chosen' if number == search['best'] else ''}",
            f"{len(one['int8'])} of {len(rows)}",
            _db(one, 2),
            _db(one["observed"], 2),
            _points(one),
            f"{_points(one['observed'])} ({100 * one['observed']['paired']['interval'][0]:+.2f} to "
            f"{100 * one['observed']['paired']['interval'][1]:+.2f})",
            f"{one['saved_ms']:.4f}",
            "yes" if one["holds"] else "no",
        )
        for number, one in enumerate(search["tries"])
    ]
    columns = (
        "set",
        "INT8",
        "dB predicted",
        "observed",
        "top-1 predicted",
        "observed (95 %)",
        "saved, ms",
        "within the limit",
    )
    text += f"\n\nmixed precision, {search['limit']['text']}\n" + table(columns, tries)
    if search["best"] is None:
        return text
    images = ("--images", args.images) if args.images else ()
    made = ("--ranges", f"{args.out}/ranges.json", "--policy", f"{args.out}/{POLICY}", "--out", "runs/mixed")
    return (
        f"{text}\n{args.out}/{POLICY}: {len(best or [])} of {len(rows)} layers in INT8, predicted to save "
        f"{search['tries'][search['best']]['saved_ms']:.4f} of {sum(row['high_ms'] for row in data['layers']):.4f} ms; "
        f"chosen on these images, so check it on others\n"
        + command("quantize", args.checkpoint, "--data", calibration_data, *images, *made)
    )


def _db(effect: dict[str, Any], digits: int = 1) -> str:
    return "exact" if effect["sqnr_db"] is None else f"{effect['sqnr_db']:.{digits}f}"


def _points(effect: dict[str, Any]) -> str:
    return f"{round(-effect['lost_points'], 2) + 0.0:+.2f}"  # no -0.00
