"""Accuracy of a checkpoint (at one or more token budgets, in PyTorch) or of an artefact (in its backend)."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from gft_edge.cli.common import add_data_arguments, is_artifact

EXAMPLE = "gft-edge evaluate builtin --budget full --budget 108,72,36"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the verb's arguments."""
    parser.add_argument("model", metavar="CKPT|ARTIFACT", help="folder, or 'builtin' for the shipped checkpoint")
    add_data_arguments(parser, images=1600)
    parser.add_argument(
        "--budget",
        action="append",
        metavar="K,K,K",
        help="checkpoint only, repeatable: patches kept, shares such as 75%%,50%%,25%%, or 'full'; "
        "default: full and the checkpoint's own",
    )
    parser.add_argument(
        "--backend", default="onnxruntime", help="artefact only: onnxruntime, tensorrt or tensorrt_rtx (onnxruntime)"
    )
    parser.add_argument("--threads", type=int, default=0, help="threads of the backend; 0: one per core")
    parser.add_argument("--out", type=Path, metavar="FILE", help="also write the result as JSON")


def run(args: argparse.Namespace) -> int:
    """Runs the verb."""
    from gft_edge.cli.console import result, table
    from gft_edge.files import require_writable

    if args.out:
        require_writable(args.out)
    data = _artifact(args) if is_artifact(args.model) else _checkpoint(args)
    rows = [
        (r["budget"], r["precision"], f"{r['top1']:.2%}", f"{r['interval'][0]:.2%} to {r['interval'][1]:.2%}")
        for r in data["results"]
    ]
    head = f"{data['model']} on {data['images']} {data['split']} images of {data['data']}, {data['backend']}"
    result(args, data, head + "\n" + table(("budget", "precision", "top-1", "95 % interval"), rows), args.out)
    return 0


def _checkpoint(args: argparse.Namespace) -> dict[str, Any]:
    import torch

    from gft_edge.checkpoint import load_checkpoint
    from gft_edge.cli.common import labelled_batches
    from gft_edge.cli.console import track
    from gft_edge.errors import ConfigError

    if args.threads < 0:
        raise ConfigError(f"threads must be 0 (one per core) or more, found {args.threads}")
    if args.threads:
        torch.set_num_threads(args.threads)
    checkpoint = load_checkpoint(args.model)
    info = checkpoint.info
    config = info.model
    texts = args.budget or ["full", config.budget.id]
    budgets = [config.parse_budget(text) for text in texts]
    unreadable: list[str] = []
    count, batches = labelled_batches(
        args.data, args.split, args.images, config, info.labels, info.preprocess, unreadable.append
    )
    right = [0] * len(budgets)
    with torch.no_grad():
        for images, labels in track(batches, "evaluate", -(-count // 64)):
            for index, budget in enumerate(budgets):
                logits = checkpoint.model(torch.from_numpy(images), budget)
                right[index] += int((logits.argmax(1).numpy() == labels).sum())
    count -= len(unreadable)
    precision = "fp32" if info.quantization is None else str(info.quantization["precision"])
    results = [_row(b.id, precision, r, count) for b, r in zip(budgets, right)]
    return _summary(args, "torch", count, results, unreadable)


def _artifact(args: argparse.Namespace) -> dict[str, Any]:
    from gft_edge.cli.common import labelled_batches
    from gft_edge.cli.console import track
    from gft_edge.errors import ConfigError
    from gft_edge.manifest import load_artifact
    from gft_edge.runtime.sessions import open_session

    if args.budget:
        raise ConfigError("--budget is for checkpoints; an artefact's budget is compiled into its graph")
    artifact = load_artifact(Path(args.model))
    manifest = artifact.manifest
    session = open_session(artifact, args.backend, args.threads)
    unreadable: list[str] = []
    count, batches = labelled_batches(
        args.data,
        args.split,
        args.images,
        manifest.model,
        manifest.labels,
        manifest.preprocess,
        unreadable.append,
    )
    right = 0
    for images, labels in track(batches, "evaluate", -(-count // 64)):
        right += int((session(images)["logits"].argmax(axis=1) == labels).sum())
    count -= len(unreadable)
    results = [_row(manifest.budget.id, manifest.precision, right, count)]
    return _summary(args, args.backend, count, results, unreadable)


def _row(budget: str, precision: str, right: int, count: int) -> dict[str, Any]:
    from gft_edge.errors import DataError
    from gft_edge.train.metrics import wilson_interval

    if count == 0:
        raise DataError("none of the images can be read")
    interval = list(wilson_interval(right, count))
    return {"budget": budget, "precision": precision, "right": right, "top1": right / count, "interval": interval}


def _summary(
    args: argparse.Namespace, backend: str, count: int, results: list[dict[str, Any]], unreadable: list[str]
) -> dict[str, Any]:
    from gft_edge.cli.console import say

    for text in unreadable:
        say(f"left out: {text}")
    return {
        "model": str(args.model),
        "backend": backend,
        "data": args.data,
        "split": args.split,
        "images": count,
        "unreadable_images": len(unreadable),
        "results": results,
    }
