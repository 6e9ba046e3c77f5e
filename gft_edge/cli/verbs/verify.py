"""Compare an artefact with PyTorch on the same images: logits, classes, kept patches, maps. Exit code 1 when it fails."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gft_edge.cli.common import add_data_arguments
from gft_edge.constants import MAPS_REPORT, VERIFY_REPORT
from gft_edge.runtime.backends import names_text

if TYPE_CHECKING:
    from gft_edge.checkpoint import Checkpoint
    from gft_edge.errors import GFTEdgeError
    from gft_edge.export.verify.artifact_alone import VerifyReport
    from gft_edge.manifest import Artifact

EXAMPLE = "gft-edge verify runs/artifact --checkpoint builtin --images 512"
PICTURES = 6
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the verb's arguments."""
    parser.add_argument("artifact", type=Path, metavar="ARTIFACT", help="artefact folder")
    parser.add_argument(
        "--checkpoint",
        metavar="CKPT",
        help="what the artefact was made from: compares on images of --data, exports it again and names the first bad "
        "node; without it, on the golden images",
    )
    add_data_arguments(parser, images=512)
    parser.add_argument(
        "--backend",
        action="append",
        metavar="B",
        help=f"what runs the artefact, repeatable: {names_text()}; tensorrt:KEY names one of several engines",
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
        help="check another program's preprocessing instead: images, and beside each NAME.png its tensor NAME.npy",
    )


def run(args: argparse.Namespace) -> int:
    """Runs the verb; 1 when something is out of limits."""
    from gft_edge.cli.console import result
    from gft_edge.errors import EXIT_CHECK_FAILED, EXIT_OK, ConfigError
    from gft_edge.export.verify.artifact_alone import verify_golden
    from gft_edge.manifest import load_artifact

    if args.map_images < 0:
        raise ConfigError(f"--map-images must be 0 (none) or more, found {args.map_images}")
    artifact = load_artifact(args.artifact)
    if args.pixels:
        return _pixels(args, artifact)
    backends = tuple(dict.fromkeys(args.backend or ["onnxruntime"]))
    if args.checkpoint:
        from gft_edge.checkpoint import load_checkpoint

        checkpoint = load_checkpoint(args.checkpoint)
        report = _with_checkpoint(args, artifact, checkpoint, backends)
    else:
        report = verify_golden(artifact, backends)
    data = report.to_json()
    maps = artifact.manifest.maps
    wants_maps = bool(args.checkpoint and report.passed and args.map_images)
    if wants_maps and maps != "compact" and not artifact.manifest.model.is_baseline:
        data["notes"] = [
            *data["notes"],
            f"fidelity of maps is measured of graphs with --maps compact, this one has {maps}",
        ]
    problem = _store(artifact, data, report)
    text = _text(data)
    if wants_maps and maps == "compact" and problem is None:
        text += "\n" + _map_fidelity(args, load_artifact(args.artifact), checkpoint)
    result(args, data, text)
    if problem is not None:  # after the verdict, which took the work
        raise problem
    accepted = ("pass",) if args.strict else ("pass", "inconclusive")
    return EXIT_OK if report.verdict in accepted else EXIT_CHECK_FAILED


def _store(artifact: Artifact, data: dict[str, Any], report: VerifyReport) -> GFTEdgeError | None:
    """Writes the record into the artefact; returns the error where that cannot be done, as on a read-only medium."""
    from gft_edge.errors import ConfigError, GFTEdgeError
    from gft_edge.files import write_json
    from gft_edge.locks import locked
    from gft_edge.manifest import register_files

    name = artifact.own(VERIFY_REPORT)
    try:
        with locked(artifact.path):
            write_json(artifact.path / name, data)
            register_files(
                artifact, [name], {artifact.own("verify"): {"passed": report.passed, "source": report.source}}
            )
    except GFTEdgeError as error:
        return ConfigError(f"the record cannot be stored: {error}")
    except OSError as error:
        return ConfigError(f"the record {artifact.path / name} cannot be stored ({error.strerror or error})")
    return None


def _with_checkpoint(
    args: argparse.Namespace, artifact: Artifact, checkpoint: Checkpoint, backends: tuple[str, ...]
) -> VerifyReport:
    from gft_edge.cli.common import labelled_batches, settle_data
    from gft_edge.cli.console import say, track
    from gft_edge.data.batches import batch_count
    from gft_edge.export.verify.claims import corrected, read_graph
    from gft_edge.export.verify.trace import fresh_graph
    from gft_edge.export.verify.with_checkpoint import require_parent, verify_checkpoint

    require_parent(artifact, checkpoint)
    info = checkpoint.info
    settle_data(args, info, f"checkpoint {checkpoint.path}")
    count, batches = labelled_batches(
        args.data, args.split, args.images, info.model, info.labels, info.preprocess, model=checkpoint.path
    )
    source = f"{count} {args.split} images of {args.data}"
    say("verify: exporting the checkpoint again")
    fresh = fresh_graph(checkpoint, corrected(artifact, read_graph(artifact)))
    tracked = track(batches, "verify", batch_count(count))
    return verify_checkpoint(artifact, checkpoint, tracked, source, backends, fresh=fresh)


def _map_fidelity(args: argparse.Namespace, artifact: Artifact, checkpoint: Checkpoint) -> str:
    """Writes reports/maps.json and its pictures; returns a line about them."""
    import numpy as np

    from gft_edge.cli.common import labelled_batches
    from gft_edge.cli.console import say
    from gft_edge.export.onnx.artifact import reference_outputs
    from gft_edge.export.verify.compared_model import Side
    from gft_edge.files import write_json
    from gft_edge.locks import locked
    from gft_edge.manifest import register_files
    from gft_edge.quant.modules import without_quantizers
    from gft_edge.report.fidelity import map_fidelity, pictures
    from gft_edge.report.figures.overlays import write_png

    info, manifest = checkpoint.info, artifact.manifest
    count, batches = labelled_batches(
        args.data, args.split, args.map_images, info.model, info.labels, info.preprocess, model=checkpoint.path
    )
    images = np.concatenate([batch for batch, _ in batches])
    say(f"verify: insertion and deletion curves of {count} images")
    model = without_quantizers(checkpoint.model)
    sides = (
        ("torch fp32", lambda batch: reference_outputs(model, batch, manifest.budget)),
        (f"onnxruntime {manifest.precision}", Side(artifact)),
    )
    data = map_fidelity(sides[0], sides[1], images, manifest.model.grid)
    shown = images[:PICTURES]
    spec = info.preprocess
    pixels = (np.moveaxis(shown, 1, -1) * np.asarray(spec.std) + np.asarray(spec.mean)) * 255
    pixels = np.clip(np.rint(pixels), 0, 255).astype(np.uint8)
    rgb = pixels[..., ::-1] if spec.color_order == "bgr" else pixels
    outputs = [run(shown) for _, run in sides]
    names = [artifact.own(f"reports/maps-{number}.png") for number in range(len(shown))]
    panels = pictures(rgb, [side["importance_0"] for side in outputs], manifest.model.grid)
    labels = [[manifest.labels[best] for best in side["logits"].argmax(axis=1)] for side in outputs]
    shown_rows = [{"file": name, "labels": list(said)} for name, said in zip(names, zip(*labels))]
    data = {
        **data,
        "artifact": artifact.name,
        "source": f"{count} {args.split} images of {args.data}",
        "pictures": shown_rows,
    }
    with locked(artifact.path):
        for name, panel in zip(names, panels):
            write_png(artifact.path / name, panel)
        write_json(artifact.path / artifact.own(MAPS_REPORT), data)
        register_files(artifact, [artifact.own(MAPS_REPORT), *names])
    return _map_text(data)


def _map_text(data: dict[str, Any]) -> str:
    from gft_edge.cli.console import table

    rows = [
        (
            side["name"],
            f"{side['insertion']['auc']:.3f}",
            f"{side['insertion_random']['auc']:.3f}",
            f"{side['deletion']['auc']:.3f}",
            f"{side['deletion_random']['auc']:.3f}",
        )
        for side in data["sides"]
    ]
    head = ("maps of", "insertion (high is good)", "random order", "deletion (low is good)", "random order")
    agree = "; ".join(
        f"stage {s['stage']}: rank correlation {s['rank_correlation']:.3f}, "
        f"{s['kept_overlap']:.1%} of the top {s['kept']} and {s['top_overlap']:.1%} of the top {s['top']} in common"
        for s in data["stages"]
    )
    return f"{table(head, rows)}\n{agree}"


def _pixels(args: argparse.Namespace, artifact: Artifact) -> int:
    """Compares NAME.npy with what the artefact's specification makes of NAME.png."""
    from dataclasses import asdict

    import numpy as np

    from gft_edge.cli.console import result
    from gft_edge.data.images import read_image
    from gft_edge.errors import EXIT_CHECK_FAILED, EXIT_OK, DataError
    from gft_edge.export.verify.pixels import compare_pixels
    from gft_edge.filekinds import describe_file

    if not args.pixels.is_dir():
        problem = f"is {describe_file(args.pixels)}" if args.pixels.is_file() else "no such folder"
        raise DataError(f"pixels {args.pixels}: {problem}; give a folder of images and tensors")
    images, tensors, names = [], [], []
    beside = {(path.stem, path.suffix.lower()): path for path in args.pixels.iterdir() if path.is_file()}
    for file in sorted(path for (_, suffix), path in beside.items() if suffix == ".npy"):
        found = next((beside[file.stem, s] for s in IMAGE_SUFFIXES if (file.stem, s) in beside), None)
        if found is None:
            raise DataError(f"pixels {file}: no image of that name beside it ({', '.join(IMAGE_SUFFIXES)})")
        try:
            # np.load would take other formats too; a header may claim any size, so the file is mapped.
            tensors.append(np.lib.format.open_memmap(file, mode="r"))
        except Exception as error:  # NumPy parses headers as Python and raises whatever they lead it to
            raise DataError(f"pixels {file}: cannot be read as an array of numpy ({error})") from None
        images.append(read_image(found))
        names.append(file.name)
    if not images:
        raise DataError(f"pixels {args.pixels}: holds no .npy file")
    report = compare_pixels(images, tensors, artifact.manifest.preprocess, names)
    levels = "not finite" if report.largest_levels is None else f"{report.largest_levels:.2f} levels of 255 at most"
    text = f"{report.images} images, difference {levels}\n" + (
        "passed" if report.place is None else f"FAILED: {report.place.text}"
    )
    result(args, {**asdict(report), "passed": report.place is None}, text)
    return EXIT_OK if report.place is None else EXIT_CHECK_FAILED


def _text(data: dict[str, Any]) -> str:
    from gft_edge.cli.console import table

    rows = []
    for c in data["comparisons"]:
        sqnr = "exact" if c["logit_sqnr_db"] is None else f"{c['logit_sqnr_db']:.1f} dB"
        kept = " ".join(f"{s['jaccard']:.4f}" for s in c["stages"]) or "-"
        maps = " ".join("-" if (r := s["rank_correlation"]) is None else f"{r:.4f}" for s in c["stages"]) or "-"
        error, same = f"{c['max_relative_error']:.1e}", f"{c['top1_agreement']:.2%}"
        rows.append((c["candidate"], c["reference"], sqnr, error, same, kept, maps))
    header = (
        "what",
        "against",
        "logit SQNR",
        "largest error",
        "same class",
        "kept-set Jaccard by stage",
        "map rank correlation",
    )
    lines = [f"{data['artifact']} on {data['source']}", table(header, rows)]
    lines += [line for c in data["comparisons"] for line in _selection_lines(c)]
    lines += [_accuracy_line(c) for c in data["comparisons"] if c["top1"] and c["reference_backend"] == "torch"]
    if data["fresh_export"]:
        lines.append(f"a fresh export of the checkpoint is {data['fresh_export']}")
    lines += data["notes"]
    lines += [f"first bad place: {place['text']}" for place in data["places"][:1]]
    lines += [f"also: {place['text']}" for place in data["places"][1:]]
    verdict = {
        "pass": "passed",
        "fail": "FAILED: " + "; ".join(data["failures"]),
        "inconclusive": "INCONCLUSIVE: " + "; ".join(data["undecided"]),
    }
    return "\n".join([*lines, verdict[data["verdict"]]])


def _selection_lines(c: dict[str, Any]) -> list[str]:
    return [
        f"{c['candidate']} against {c['reference']}: stage {s['stage']} has {s['ties']} ties, "
        + ", ".join(f"image {tie['image']} patches {list(tie['patches'])}" for tie in s["tied"][:3])
        for s in c["stages"]
        if s["ties"]
    ]


def _accuracy_line(c: dict[str, Any]) -> str:
    top1 = c["top1"]
    low, high = top1["interval"]
    text = (
        f"top-1 {c['top1_candidate']:.2%} against {c['top1_reference']:.2%} of {c['reference']}: {top1['difference']:+.2%} "
        f"({low:+.2%} to {high:+.2%}), McNemar p {top1['mcnemar_p']:.3g}"
    )
    worst = top1["worst_class"]
    if worst:
        text += (
            f"; worst class {worst['label']}: {worst['right_candidate']} right instead of {worst['right_reference']} "
            f"of {worst['images']}"
        )
    return text
