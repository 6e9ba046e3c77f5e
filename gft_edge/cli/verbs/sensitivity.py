"""Measure what INT8 does to the model layer by layer, and choose layers for a mixed-precision policy.

Each layer alone in INT8, and all but each: logit SQNR, top-1 and kept patches against full precision. With a limit
(--max-loss, --min-sqnr), the layers that save most time within it: policy.json for quantize --policy. The evaluation
images are those of --eval-split, so that the test images have no part in the choice.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gft_edge.cli.common import positive
from gft_edge.cli.verbs.calibrate import add_calibration_arguments

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gft_edge.benchmarks.measuring.linears import LayerShape, LayerTime
    from gft_edge.calibration.images import CalibrationSet
    from gft_edge.calibration.mixed import AccuracyLimit, MixedPrecision
    from gft_edge.calibration.ranges import Ranges
    from gft_edge.calibration.sensitivity import Effect, Sensitivity
    from gft_edge.checkpoint import Checkpoint
    from gft_edge.data.datasets import ImageSet
    from gft_edge.hardware.devices import Device
    from gft_edge.quant.policy import QuantPolicy

Hashed = tuple[str, tuple[str, ...]]
"""What evaluation images were hashed by, and the hash of each."""

EXAMPLE = "gft-edge sensitivity builtin --images 128 --min-sqnr 30 --out runs/sensitivity"
SCHEMA = 1
BATCH = 16
POLICY = "policy.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the verb's arguments."""
    parser.add_argument("checkpoint", metavar="CKPT", help="full-precision checkpoint folder, or 'builtin'")
    add_calibration_arguments(parser)
    parser.add_argument("--ranges", type=Path, metavar="FILE", help="ranges.json of calibrate, instead of calibrating")
    parser.add_argument(
        "--policy", type=Path, metavar="FILE", help="rules whose INT8 layers are measured (those INT8 by default)"
    )
    parser.add_argument("--eval-data", metavar="D", help="evaluation images, as for --data (those of --data)")
    parser.add_argument("--eval-images", type=positive, default=640, metavar="N", help="how many of them (640)")
    parser.add_argument(
        "--eval-split", choices=("train", "val", "test"), default="val", help="which part of them (val)"
    )
    parser.add_argument(
        "--max-loss", type=float, metavar="POINTS", help="choose a policy: top-1 it may lose, in points"
    )
    parser.add_argument("--min-sqnr", type=float, metavar="DB", help="choose a policy: least logit SQNR, in dB")
    parser.add_argument(
        "--target",
        metavar="DEVICE",
        help="time of layers by this device's roofline, a bound; by default measured here in ONNX Runtime",
    )
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="of ONNX Runtime; 0: one per core (1)")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="new folder")


def run(args: argparse.Namespace) -> int:
    """Runs the verb."""
    import functools

    from gft_edge.benchmarks.measuring.linears import layer_shapes
    from gft_edge.calibration.images import hash_images
    from gft_edge.calibration.mixed import AccuracyLimit, mixed_policy, search_mixed
    from gft_edge.calibration.sensitivity import MixedModel, measure_sensitivity, run_mixed
    from gft_edge.checkpoint import load_checkpoint
    from gft_edge.cli.common import settle_data
    from gft_edge.cli.console import result, say, track
    from gft_edge.cli.verbs.calibrate import write_calibration
    from gft_edge.data.batches import evaluation_batches
    from gft_edge.errors import CheckFailed, ConfigError, OutputError
    from gft_edge.files import new_folder, write_json
    from gft_edge.hardware.devices import device
    from gft_edge.quant.modules import quantized_names
    from gft_edge.report.pages.sensitivity import DATA, write_sensitivity_page

    limited = args.max_loss is not None or args.min_sqnr is not None
    limit = AccuracyLimit(args.max_loss, args.min_sqnr) if limited else None
    target = device(args.target) if args.target else None
    if args.threads < 0:
        raise ConfigError(f"threads must be 0 (one per core) or more, found {args.threads}")
    checkpoint = load_checkpoint(args.checkpoint)
    info = checkpoint.info
    if info.quantization is not None:
        raise ConfigError(f"checkpoint {checkpoint.path} is quantized already; give the full-precision one")
    names = quantized_names(checkpoint.model, _candidates(args.policy))
    settle_data(args, info, f"checkpoint {checkpoint.path}")
    data: dict[str, Any] = {}

    def tell() -> None:
        text = f"{args.out}: {len(names)} layers on {len(images)} {args.eval_split} images\n{overlap}\n"
        result(args, {"out": str(args.out), **data}, text + _text(args, data))

    try:
        with new_folder(args.out) as folder:
            images = _evaluation_images(args, checkpoint)
            hashed = hash_images(images)
            card, ranges, overlap = _calibrated(args, checkpoint, names, hashed)
            shapes = layer_shapes(checkpoint.model, names, info.model.image_size)
            times = _times(shapes, target, args.threads)
            mixed = MixedModel(checkpoint.model, ranges.values, names)
            batches = functools.partial(evaluation_batches, images, info.preprocess, BATCH)
            found, judge = measure_sensitivity(mixed, batches, -(-len(images) // BATCH), info.model.num_patches, track)
            search = policy = None
            if limit is not None:

                def observe(int8: Sequence[str]) -> Effect:
                    say(f"sensitivity: running {len(int8)} of {len(names)} layers in INT8")
                    return judge.effect(run_mixed(mixed, int8, batches))

                saved = {name: time.saved_ms for name, time in times.items()}
                search = search_mixed(found, saved, limit, observe)
                if search.best is not None:
                    policy = mixed_policy(found, saved, search.best.int8)
            data = _record(args, checkpoint, ranges, hashed, found, shapes, times, target, search)
            if policy is not None:
                write_json(folder / POLICY, policy.to_json())
            write_calibration(folder, card, ranges)
            write_json(folder / DATA, data)
            write_sensitivity_page(folder)
    except OutputError:
        if data:  # what took long to measure is not lost with the folder
            tell()
        raise
    tell()
    if search is not None and search.best is None:
        raise CheckFailed(_unmet(found, times, search.limit, args.out))
    return 0


def _candidates(path: Path | None) -> QuantPolicy:
    """The rules whose INT8 layers are measured."""
    from gft_edge.errors import ConfigError
    from gft_edge.quant.policy import DEFAULT_POLICY, read_policy

    policy = DEFAULT_POLICY if path is None else read_policy(path)
    other = [rule for rule in policy.rules if rule.precision not in ("int8", "high")]
    if other or policy.smoothquant is not None:
        what = f"{other[0].pattern!r} in {other[0].precision}" if other else "SmoothQuant"
        raise ConfigError(f"sensitivity: measures INT8 against full precision only; take {what} out of {path}")
    return policy


def _evaluation_images(args: argparse.Namespace, checkpoint: Checkpoint) -> ImageSet:
    from gft_edge.cli.common import labelled_images

    info = checkpoint.info
    data = args.eval_data or args.data
    return labelled_images(
        data, args.eval_split, args.eval_images, info.model.image_size, info.labels, model=checkpoint.path
    )


def _calibrated(
    args: argparse.Namespace, checkpoint: Checkpoint, names: list[str], hashed: Hashed
) -> tuple[CalibrationSet | None, Ranges, str]:
    """The card where it is known, the ranges, and how their images compare with those of the evaluation."""
    from gft_edge.calibration.images import model_features
    from gft_edge.calibration.observe import Collector, observe
    from gft_edge.calibration.ranges import Ranges, read_ranges
    from gft_edge.cli.verbs.calibrate import chosen_images, gather

    model, info = checkpoint.model, checkpoint.info
    if args.ranges:
        ranges = read_ranges(args.ranges)
        ranges.require_model(checkpoint.sha256, f"checkpoint {checkpoint.path}")
        card = _card_beside(args.ranges, ranges)
        return card, ranges, _compared(args, card, hashed)
    spec = info.preprocess
    card, images = chosen_images(args, spec, info.labels, lambda: model_features(model, spec))
    overlap = _compared(args, card, hashed)
    collector = Collector(names, args.method, args.percentile)
    gather(args, collector, images, spec, checkpoint.sha256, card, lambda b: observe(model, collector, b))
    return card, Ranges.of(collector, "module inputs", checkpoint.sha256, card.id, spec.id), overlap


def _card_beside(path: Path, ranges: Ranges) -> CalibrationSet | None:
    """The card that calibrate wrote with the ranges, if it lies there."""
    from gft_edge.calibration.images import CalibrationSet
    from gft_edge.seals import read_sealed

    file = path.parent / "card.json"
    if not file.is_file():
        return None
    card = CalibrationSet.from_json(
        read_sealed(file, "calibration card", "calibrate again"), f"calibration card {file}"
    )
    return card if card.id == ranges.card_id else None


def _compared(args: argparse.Namespace, card: CalibrationSet | None, hashed: Hashed) -> str:
    """Refuses evaluation images that ranges were found on; says what was compared."""
    from gft_edge.errors import DataError

    kind, hashes = hashed
    where = f"{len(hashes)} {args.eval_split} images of {args.eval_data or args.data}"
    if card is None or card.hashed != kind:
        return f"calibration images not compared with the {where}: their hashes are not known"
    common = len(set(hashes) & set(card.hashes))
    if common and not args.force:
        raise DataError(
            f"data {card.data}: {common} calibration images are also among the {where}; choose another --split, "
            "--eval-split or --eval-data, or --force"
        )
    return f"{card.describe()}; {common} of them among the {where}"


def _times(shapes: dict[str, LayerShape], target: Device | None, threads: int) -> dict[str, LayerTime]:
    from gft_edge.benchmarks.measuring.linears import bound_times, measured_times
    from gft_edge.cli.console import track

    return measured_times(shapes, threads, track=track) if target is None else bound_times(shapes, target)


def _record(
    args: argparse.Namespace,
    checkpoint: Checkpoint,
    ranges: Ranges,
    hashed: Hashed,
    found: Sensitivity,
    shapes: dict[str, LayerShape],
    times: dict[str, LayerTime],
    target: Device | None,
    search: MixedPrecision | None,
) -> dict[str, Any]:
    """The content of sensitivity.json."""
    import hashlib

    from gft_edge.benchmarks.measuring.protocol import conditions
    from gft_edge.files import canonical_json
    from gft_edge.seals import sealed

    kind, hashes = hashed
    layers = [
        {
            "name": layer.name,
            "shape": str(shapes[layer.name]),
            "macs": shapes[layer.name].macs,
            "high_ms": times[layer.name].high_ms,
            "int8_ms": times[layer.name].int8_ms,
            "only": layer.only.to_json(),
            "all_but": layer.all_but.to_json(),
        }
        for layer in found.layers
    ]
    if target is None:
        source = f"ONNX Runtime, {args.threads or 'all'} thread(s)"
        measured: dict[str, Any] = {"source": source, "high": "FP32", "kind": "measured", "machine": conditions()}
    else:
        measured = {"source": f"roofline of {target.title}", "high": "FP16", "kind": "bound", "machine": None}
    chosen = None
    if search is not None:
        data = search.to_json()
        chosen = {**data, "limit": {**data["limit"], "text": str(search.limit)}}
    return {
        "schema": SCHEMA,
        "checkpoint": checkpoint.sha256,
        "budget": checkpoint.info.model.budget.id,
        "preprocess": checkpoint.info.preprocess.id,
        "ranges": {
            "sha256": hashlib.sha256(canonical_json(sealed(ranges.to_json())).encode()).hexdigest(),  # of ranges.json
            "calibration_set": ranges.card_id,
            "method": ranges.method,
            "images": ranges.images,
        },
        "evaluation": {
            "data": args.eval_data or args.data,
            "split": args.eval_split,
            "images": len(hashes),
            "hashed": kind,
            "sha256": hashlib.sha256("\n".join(hashes).encode()).hexdigest(),
        },
        "top1": found.top1,
        "everything": found.everything.to_json(),
        "layers": layers,
        "times": measured,
        "search": chosen,
    }


def _text(args: argparse.Namespace, data: dict[str, Any]) -> str:
    from gft_edge.cli.console import table
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
        f"full precision {data['top1']:.2%} right; all in INT8 {everything['top1']:.2%} ({_points(everything)} points), "
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
    columns = ("try", "INT8", "dB predicted", "seen", "top-1 predicted", "seen (95 %)", "saved, ms", "within the limit")
    text += f"\n\nmixed precision, {search['limit']['text']}\n" + table(columns, tries)
    if search["best"] is None:
        return text
    command = (
        f"gft-edge quantize {args.checkpoint} --data {args.data} --images {args.images} --ranges {args.out}/ranges.json"
    )
    return (
        f"{text}\n{args.out}/{POLICY}: {len(best or [])} of {len(rows)} layers in INT8, predicted to save "
        f"{search['tries'][search['best']]['saved_ms']:.4f} of {sum(row['high_ms'] for row in data['layers']):.4f} ms; "
        f"chosen on these images, so check it on others\n{command} --policy {args.out}/{POLICY} --out runs/mixed"
    )


def _db(effect: dict[str, Any], digits: int = 1) -> str:
    return "exact" if effect["sqnr_db"] is None else f"{effect['sqnr_db']:.{digits}f}"


def _points(effect: dict[str, Any]) -> str:
    return f"{round(-effect['lost_points'], 2) + 0.0:+.2f}"  # no -0.00


def _unmet(found: Sensitivity, times: dict[str, LayerTime], limit: AccuracyLimit, out: Path) -> str:
    """Why there is no policy."""
    saving = [layer for layer in found.layers if times[layer.name].saved_ms > 0]
    measured = f"what was measured is in {out}/sensitivity.json"
    if not saving:
        return f"no layer is faster in INT8 here, so there is nothing to choose; {measured}"
    best = min(saving, key=lambda layer: layer.only.noise)
    alone = "no error" if best.only.sqnr_db is None else f"{best.only.sqnr_db:.1f} dB"
    return (
        f"no layer that saves time is within the limit ({limit}): the least harmful, {best.name}, alone has {alone} and loses "
        f"{best.only.lost_points:.2f} points; allow more, or calibrate otherwise; {measured}"
    )
