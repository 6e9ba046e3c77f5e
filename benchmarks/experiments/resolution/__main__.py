"""Large images at the cost of small ones, in accuracy and in speed; writes JSON into a folder, and a page of what is there.

python -m gft_edge.benchmarks.experiments.resolution accuracy builtin --out runs/resolution --page benchmarks/RESOLUTION.md
python -m gft_edge.benchmarks.experiments.resolution speed --out runs/resolution --page benchmarks/RESOLUTION.md

accuracy: a focal checkpoint at its token budget against the plain network of the same width on smaller images of the same cost. The
plain network starts from the same weights and is trained on the smaller images; if that is interrupted, the same command goes on.
speed: gft_base_448 against plain ViT-B at 448 and 224 px on ONNX Runtime, FP32.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gft_edge.benchmarks.experiments.resolution import accuracy, speed
from gft_edge.benchmarks.experiments.resolution.page import markdown
from gft_edge.benchmarks.experiments.resolution.plain_training import PlainOptions
from gft_edge.cli.console import say, table, track
from gft_edge.errors import exit_code
from gft_edge.files import read_json, replacing, require_writable, require_writable_folder, write_json

ACCURACY, SPEED = "accuracy.json", "speed.json"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures one of the two, writes its JSON file and the page, and prints a table."""
    args = _parser().parse_args(arguments)
    require_writable_folder(args.out)
    if args.page:
        require_writable(args.page)
    if args.what == "accuracy":
        data = _accuracy(args)
        write_json(args.out / ACCURACY, data)
        rows = [(r["name"], r["image_size"], f"{r['macs'] / 1e6:.0f}", f"{r['top1']:.2%}") for r in data["rows"]]
        print(table(("network", "pixels", "million MACs", "top-1"), rows))
        found = data["paired"][accuracy.PLAIN]
        low, high = (f"{100 * end:+.1f}" for end in found["interval"])
        print(
            f"pruned less plain: {100 * found['difference']:+.2f} points ({low} to {high}), p = {found['mcnemar_p']:.2g}"
        )
    else:
        data = _speed(args)
        write_json(args.out / SPEED, data)
        times = [
            (r["batch"], r["name"], r["image_size"], f"{r['p50_ms']:.1f}", f"{r['faster'][0]:.2f}x")
            for r in data["rows"]
        ]
        print(table(("batch", "network", "pixels", "ms", "over the plain ViT"), times))
    if args.page:
        parts = [
            read_json(file, "result") if (file := args.out / name).is_file() else None for name in (ACCURACY, SPEED)
        ]
        with replacing(args.page) as temporary:
            temporary.write_text(markdown(*parts), encoding="utf-8")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="what", required=True, metavar="accuracy|speed")
    default, training = accuracy.AccuracyOptions(), PlainOptions()
    one = verbs.add_parser("accuracy", help="pruned large images against plain small ones, both trained")
    one.add_argument("name", metavar="CKPT", help="folder of a focal checkpoint, or 'builtin'")
    one.add_argument("--budget", metavar="B", help="of the pruned model (its own)")
    one.add_argument("--start", metavar="CKPT", help="checkpoint that the plain network starts from (CKPT)")
    one.add_argument(
        "--size", type=int, metavar="PX", help="images of the plain network (the size of the nearest cost)"
    )
    one.add_argument("--data", metavar="D", help="images (those that the checkpoint was trained on)")
    one.add_argument("--images", type=int, default=default.images, metavar="N", help="test images (%(default)s)")
    one.add_argument(
        "--steps", type=int, default=training.steps, metavar="N", help="of the plain training (%(default)s)"
    )
    one.add_argument("--batch-size", type=int, default=training.batch_size, metavar="N", help="(%(default)s)")
    one.add_argument("--lr", type=float, default=training.lr, metavar="X", help="highest learning rate (%(default)s)")
    one.add_argument("--eval-every", type=int, default=training.eval_every, metavar="N", help="steps (%(default)s)")
    one.add_argument("--eval-images", type=int, default=training.eval_images, metavar="N", help="(%(default)s)")
    times = speed.SpeedOptions()
    two = verbs.add_parser("speed", help="ONNX Runtime on the CPU, FP32, random weights")
    two.add_argument("--preset", default=times.name, help="(%(default)s)")
    two.add_argument("--batches", type=int, nargs="+", default=list(times.batches), metavar="N", help="(1 4)")
    two.add_argument("--rounds", type=int, default=times.rounds, metavar="N", help="(%(default)s)")
    two.add_argument("--quick", action="store_true", help="a tiny model: shows that it runs; its times mean nothing")
    for verb in (one, two):
        verb.add_argument("--threads", type=int, default=1, metavar="N", help="(%(default)s)")
        verb.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the JSON files")
        verb.add_argument("--page", type=Path, metavar="FILE", help="Markdown page of all results in the folder")
    return parser


def _accuracy(args: argparse.Namespace) -> dict[str, Any]:
    options = accuracy.AccuracyOptions(args.budget, args.start, args.size, args.data, args.images, args.threads)
    training = PlainOptions(
        args.steps, args.batch_size, args.lr, args.eval_every, args.eval_images, threads=args.threads
    )
    return accuracy.compare(args.name, args.out, options, training, track, say)


def _speed(args: argparse.Namespace) -> dict[str, Any]:
    warmup = 0.0 if args.quick else speed.SpeedOptions.warmup_seconds
    options = speed.SpeedOptions(args.preset, tuple(args.batches), args.threads, args.rounds, warmup_seconds=warmup)
    return speed.compare(options, speed.quick_config() if args.quick else None, track, say)


if __name__ == "__main__":
    raise SystemExit(exit_code(main))
