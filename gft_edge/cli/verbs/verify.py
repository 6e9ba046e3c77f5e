"""Compare an artefact with PyTorch on the same images: logits, classes, kept patches, maps. Exit code 1 when it fails.

A quantized ONNX file of another program is compared with its float original, a lone file with itself: as ONNX Runtime optimises it
against node by node, and image by image against batches.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gft_edge.cli.common import TRAINED_ON, add_data_arguments
from gft_edge.runtime.backends.table import names_text

if TYPE_CHECKING:
    from gft_edge.export.foreign.model import ForeignModel
    from gft_edge.export.verify.artifact_alone import VerifyReport
    from gft_edge.export.verify.options import VerifyOptions
    from gft_edge.manifest import Artifact
    from gft_edge.stats.agreement import Comparison
    from gft_edge.stats.verdict import Verdict

EXAMPLE = "gft-edge verify runs/artifact --checkpoint builtin --images 512"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the verb's arguments."""
    parser.add_argument(
        "artifact",
        type=Path,
        metavar="ARTIFACT|MODEL.onnx",
        help="artefact folder, bundle, ONNX file of another program, or the folder that quantize wrote for one",
    )
    parser.add_argument(
        "--against",
        type=Path,
        metavar="MODEL.onnx",
        help="float original of a quantized ONNX file of another program; the folder that quantize wrote names its own",
    )
    parser.add_argument(
        "--checkpoint",
        metavar="CKPT",
        help="checkpoint the artefact was made from: compares on images of --data, exports it again and names the first bad "
        "node (without it, the golden images are compared)",
    )
    add_data_arguments(parser, images=512, data=f"with --checkpoint {TRAINED_ON}, else golden or random images")
    parser.add_argument(
        "--backend",
        action="append",
        metavar="B",
        help=f"backend that runs the artefact, repeatable: {names_text()}; tensorrt:KEY names one of several engines",
    )
    parser.add_argument("--strict", action="store_true", help="exit code 1 for an inconclusive verdict too")
    parser.add_argument(
        "--map-images",
        type=int,
        default=32,
        metavar="N",
        help="with --checkpoint and an artefact with --maps compact: "
        "images for insertion and deletion curves, 0 for none (32)",
    )
    parser.add_argument(
        "--pixels",
        type=Path,
        metavar="DIR",
        help="check another program's preprocessing instead: folder with images and, for each NAME.png, its tensor NAME.npy",
    )


def run(args: argparse.Namespace) -> int:
    """Runs the verb; returns 1 when something is out of limits."""
    from gft_edge.cli.console import command, result, say, track
    from gft_edge.cli.early import checkpoint_info, require_data
    from gft_edge.errors import ConfigError
    from gft_edge.export.foreign.model import ForeignModel
    from gft_edge.export.foreign.opening import open_model
    from gft_edge.export.verify.options import VerifyOptions
    from gft_edge.export.verify.verification import NotStoredError, verify
    from gft_edge.report.figures.map_pictures import write_map_picture

    options = VerifyOptions(
        backends=tuple(args.backend or VerifyOptions.backends),
        data=args.data,
        split=args.split,
        images=args.images,
        map_images=args.map_images,
    )
    require_data(args.data)
    artifact = open_model(args.artifact)
    if isinstance(artifact, ForeignModel):
        return _foreign(args, artifact, options)
    if args.against:
        raise ConfigError(
            f"--against: for ONNX files of other programs; {args.artifact} is an artefact, give --checkpoint"
        )
    if args.pixels:
        return _pixels(args, artifact)
    if not (args.checkpoint or args.backend) and is_for_deepstream(args.artifact):
        return _nvinfer(args, artifact)
    if args.data and not args.checkpoint:
        accuracy = command("evaluate", args.artifact, "--data", args.data)
        raise ConfigError(
            "--data: PyTorch computes what these images are compared with, so give --checkpoint CKPT too; without --data "
            f"the golden images are compared; {accuracy} measures the accuracy alone"
        )
    checkpoint = None
    if args.checkpoint:
        from gft_edge.checkpoint import load_checkpoint

        checkpoint_info(args.checkpoint)
        checkpoint = load_checkpoint(args.checkpoint)
    try:
        found = verify(artifact, checkpoint, options, track, say, write_map_picture, _left_out)
    except NotStoredError as error:
        report = error.verification.report
        result(args, report.to_json(), _text(report))
        raise
    text = _text(found.report) + ("" if found.maps is None else f"\n{_map_text(found.maps)}")
    result(args, found.report.to_json(), text)
    return _code(args, found.verdict)


def _left_out(problem: str) -> None:
    """Names an image that cannot be read."""
    from gft_edge.cli.console import say

    say(f"left out: {problem}")


def _code(args: argparse.Namespace, verdict: Verdict) -> int:
    from gft_edge.errors import EXIT_CHECK_FAILED, EXIT_OK

    accepted = ("pass",) if args.strict else ("pass", "inconclusive")
    return EXIT_OK if verdict in accepted else EXIT_CHECK_FAILED


def _foreign(args: argparse.Namespace, model: ForeignModel, options: VerifyOptions) -> int:
    """Verifies an ONNX file of another program."""
    from gft_edge.cli.console import result, say, track
    from gft_edge.export.foreign.model import load_foreign
    from gft_edge.export.foreign.verification import require_foreign_options, verify_foreign

    require_foreign_options({"--checkpoint": args.checkpoint, "--pixels": args.pixels}, args.artifact)
    against = load_foreign(args.against) if args.against else None
    report = verify_foreign(model, against, options, track, say, _left_out)
    result(args, report.to_json(), _text(report))
    return _code(args, report.verdict)


def is_for_deepstream(path: Path) -> bool:
    """Returns whether a folder is a bundle for DeepStream."""
    from gft_edge.bundle import is_bundle, load_bundle

    return is_bundle(path) and load_bundle(path).target == "deepstream"


def _nvinfer(args: argparse.Namespace, artifact: Artifact) -> int:
    """Compares what DeepStream's nvinfer makes of the golden images, or of images of ``--data``, with the artefact's answers."""
    from gft_edge.bundle import load_bundle
    from gft_edge.cli.console import result
    from gft_edge.errors import EXIT_CHECK_FAILED, EXIT_OK
    from gft_edge.export.deploy.deepstream.nvinfer_compare import compare_with_twin, frames_of

    side = artifact.manifest.preprocess.height
    frames = frames_of(args.data, args.split, args.images, side, _left_out) if args.data else ()
    reports = compare_with_twin(load_bundle(args.artifact), frames)
    passed = all(report.passed for report in reports)
    text = "\n".join([*(report.text() for report in reports), "passed" if passed else "FAILED"])
    result(args, {"nvinfer": [report.to_json() for report in reports], "passed": passed}, text)
    return EXIT_OK if passed else EXIT_CHECK_FAILED


def _pixels(args: argparse.Namespace, artifact: Artifact) -> int:
    """Compares another program's tensors with what the artefact's preprocessing gives for the same images."""
    from gft_edge.cli.console import result
    from gft_edge.errors import EXIT_CHECK_FAILED, EXIT_OK
    from gft_edge.export.verify.pixels import compare_pixel_files

    report = compare_pixel_files(args.pixels, artifact.manifest.preprocess)
    levels = "not finite" if report.largest_levels is None else f"{report.largest_levels:.2f} levels of 255 at most"
    verdict = "passed" if report.place is None else f"FAILED: {report.place.text}"
    result(args, report.to_json(), f"{report.images} images, difference {levels}\n{verdict}")
    return EXIT_OK if report.passed else EXIT_CHECK_FAILED


def _text(report: VerifyReport) -> str:
    from gft_edge.cli.console import table

    header = (
        "what",
        "against",
        "logit SQNR",
        "largest error",
        "same class",
        "kept-set Jaccard by stage",
        "rank correlation",
    )
    has_stages = any(c.stages for c in report.comparisons)
    shown = len(header) if has_stages else len(header) - 2
    rows = [_row(c)[:shown] for c in report.comparisons]
    lines = [f"{report.artifact} on {report.source}", table(header[:shown], rows)]
    lines += [line for c in report.comparisons for line in _selection_lines(c)]
    lines += [_accuracy_line(c) for c in report.comparisons if c.top1 and c.reference != "fresh export"]
    if report.fresh_export:
        lines.append(f"a fresh export of the checkpoint is {report.fresh_export}")
    lines += report.notes
    lines += [f"first bad place: {place.text}" for place in report.places[:1]]
    lines += [f"also: {place.text}" for place in report.places[1:]]
    verdict = {
        "pass": "passed",
        "fail": "FAILED: " + "; ".join(report.failures),
        "inconclusive": "INCONCLUSIVE: " + "; ".join(report.assessment.undecided),
    }
    return "\n".join([*lines, verdict[report.verdict]])


def _row(c: Comparison) -> tuple[str, ...]:
    """Returns the cells of a comparison."""
    sqnr = "exact" if c.logit_sqnr_db is None else f"{c.logit_sqnr_db:.1f} dB"
    kept = " ".join(f"{s.jaccard:.4f}" for s in c.stages) or "-"
    maps = " ".join("-" if s.rank_correlation is None else f"{s.rank_correlation:.4f}" for s in c.stages) or "-"
    return c.candidate, c.reference, sqnr, f"{c.max_relative_error:.1e}", f"{c.top1_agreement:.2%}", kept, maps


def _selection_lines(c: Comparison) -> list[str]:
    return [
        f"{c.candidate} against {c.reference}: stage {s.stage + 1} has {s.ties} ties, "
        + ", ".join(f"image {tie.image} patches {list(tie.patches)}" for tie in s.tied[:3])
        for s in c.stages
        if s.ties
    ]


def _accuracy_line(c: Comparison) -> str:
    top1 = c.top1
    assert top1 is not None
    low, high = top1.interval
    text = (
        f"top-1 {c.top1_candidate:.2%} against {c.top1_reference:.2%} of {c.reference}: {top1.difference:+.2%} "
        f"({low:+.2%} to {high:+.2%}), McNemar p {top1.mcnemar_p:.3g}"
    )
    worst = top1.worst_class
    if worst:
        text += (
            f"; worst class {worst.label}: {worst.right_candidate} right instead of {worst.right_reference} "
            f"of {worst.images}"
        )
    return text


def _map_text(record: Mapping[str, Any]) -> str:
    from gft_edge.cli.console import table

    curves = ("insertion", "insertion_random", "deletion", "deletion_random")
    rows = [(side["name"], *(f"{side[curve]['auc']:.3f}" for curve in curves)) for side in record["sides"]]
    head = ("maps of", "insertion (high is good)", "random order", "deletion (low is good)", "random order")
    agree = "; ".join(
        f"stage {s['stage'] + 1}: rank correlation {s['rank_correlation']:.3f}, "
        f"{s['kept_overlap']:.1%} of the top {s['kept']} and {s['top_overlap']:.1%} of the top {s['top']} in common"
        for s in record["stages"]
    )
    said = {
        "pass": "maps passed",
        "fail": "maps FAILED: " + "; ".join(record["failures"]),
        "inconclusive": "maps INCONCLUSIVE: " + "; ".join(record["undecided"]),
    }
    return f"{table(head, rows)}\n{agree}\n{said[record['verdict']]}"
