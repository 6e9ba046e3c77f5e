"""Classify images with an artefact; with --maps, draw what it looked at and which patches it kept."""

from __future__ import annotations

import argparse
from pathlib import Path

EXAMPLE = "gft-edge predict runs/artifact photo.png --maps runs/maps"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the verb's arguments."""
    parser.add_argument("artifact", type=Path, metavar="ARTIFACT", help="artefact folder")
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="image files")
    parser.add_argument("--maps", type=Path, metavar="DIR", help="write one PNG per image (artefact with maps)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="also write the predictions as JSON")
    parser.add_argument(
        "--backend",
        default="onnxruntime",
        help="what runs the artefact: onnxruntime, tensorrt or tensorrt_rtx (onnxruntime)",
    )


def run(args: argparse.Namespace) -> int:
    """Runs the verb."""
    from gft_edge.cli.console import result, table
    from gft_edge.data.images import read_image
    from gft_edge.errors import ConfigError, OutputError
    from gft_edge.files import require_writable, require_writable_folder
    from gft_edge.report.overlays import write_overlay
    from gft_edge.runtime.classifier import Classifier

    if args.out:
        require_writable(args.out)
    if args.maps:
        require_writable_folder(args.maps)
    classifier = Classifier.load(args.artifact, args.backend, huge_pages=False)
    manifest = classifier.artifact.manifest
    if args.maps and manifest.maps == "none":
        raise ConfigError(f"artefact {args.artifact} has no maps; export it with --maps compact")
    images = [read_image(path) for path in args.images]
    predictions = [prediction for image in images for prediction in classifier.predict([image])]
    rows = []
    unwritten: OutputError | None = None
    for number, (path, image, prediction) in enumerate(zip(args.images, images, predictions)):
        drawn = ""
        if args.maps and unwritten is None:
            file = args.maps / f"{number:02d}-{path.stem}.png"
            try:
                write_overlay(file, manifest.preprocess.geometry(image), prediction, manifest)
                drawn = str(file)
            except OutputError as error:  # the classes are known all the same
                unwritten = error
        rows.append(
            {"image": str(path), "label": prediction.label, "probability": prediction.probability, "map": drawn}
        )
    data = {"artifact": str(args.artifact), "predictions": rows}
    text = table(("image", "label", "probability"), [(r["image"], r["label"], f"{r['probability']:.3f}") for r in rows])
    result(args, data, text, args.out)
    if unwritten is not None:
        raise unwritten
    return 0
