"""Classify image files and folders with an artefact; with --maps, draw what it looked at and which patches it kept.

A file that cannot be read is named and left out; the others are classified.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gft_edge.cli.common import positive
from gft_edge.runtime.backends import DEFAULT, names_text

if TYPE_CHECKING:
    from gft_edge.manifest import DeploymentManifest
    from gft_edge.runtime.image_files import ClassifiedFile

EXAMPLE = "gft-edge predict runs/artifact photos/ --top 3 --out runs/predictions.csv --maps runs/maps"

NAMED = 20  # unreadable files named on stderr; the files written name all
STEM = 100  # characters of an image's name that its map is named after


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the verb's arguments."""
    parser.add_argument("artifact", type=Path, metavar="ARTIFACT", help="artefact folder")
    parser.add_argument(
        "images", nargs="+", type=Path, metavar="IMAGE", help="image files, and folders with image files at any depth"
    )
    parser.add_argument("--top", type=positive, default=1, metavar="K", help="the K most probable classes (1)")
    parser.add_argument("--maps", type=Path, metavar="DIR", help="write one PNG per image (artefact with maps)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="also write the predictions as FILE.json or FILE.csv")
    parser.add_argument(
        "--backend",
        default=DEFAULT,
        help=f"what runs the artefact: {names_text()}",
    )


def run(args: argparse.Namespace) -> int:
    """Runs the verb."""
    from gft_edge.cli.console import result, say, track
    from gft_edge.data.images import image_files
    from gft_edge.errors import ConfigError, DataError, OutputError
    from gft_edge.files import require_writable, require_writable_folder
    from gft_edge.runtime.classifier import Classifier
    from gft_edge.runtime.image_files import classify_files, row_of, write_csv

    if args.out:
        if args.out.suffix.lower() not in (".json", ".csv"):
            raise ConfigError(f"output {args.out}: expected a name that ends in .json or .csv")
        require_writable(args.out)
    if args.maps:
        require_writable_folder(args.maps)
    classifier = Classifier.load(args.artifact, args.backend, huge_pages=False)
    manifest = classifier.artifact.manifest
    if args.maps and manifest.maps == "none":
        raise ConfigError(f"artefact {args.artifact} has no maps; export it with --maps compact")
    files = list(image_files(args.images))
    rows, unreadable = [], []
    unwritten: OutputError | None = None
    found = classify_files(classifier, files, keep_seen=bool(args.maps))
    for number, done in enumerate(track(found, "predict", len(files))):
        if done.prediction is None:
            unreadable.append({"image": str(done.path), "problem": done.problem})
        else:
            drawn = ""
            if args.maps and unwritten is None:
                try:
                    drawn = _draw(args.maps, number, done, manifest)
                except OutputError as error:  # the classes are known all the same
                    unwritten = error
            rows.append(row_of(classifier, done, args.top, drawn))
    if not rows and len(files) == 1:
        raise DataError(unreadable[0]["problem"])
    for entry in unreadable[:NAMED]:
        say(f"left out: {entry['problem']}")
    if len(unreadable) > NAMED:
        say(f"left out: {len(unreadable) - NAMED} more")
    if not rows:
        raise DataError(f"none of the {len(files)} images can be read")
    data = {"artifact": str(args.artifact), "predictions": rows, "unreadable": unreadable}
    is_csv = args.out is not None and args.out.suffix.lower() == ".csv"
    result(args, data, _text(rows), None if is_csv else args.out)
    if is_csv:
        write_csv(args.out, rows, unreadable)
    if unwritten is not None:
        raise unwritten
    return 0


def _draw(folder: Path, number: int, done: ClassifiedFile, manifest: DeploymentManifest) -> str:
    from gft_edge.report.figures.overlays import write_overlay

    assert done.prediction is not None
    assert done.seen is not None
    path = folder / f"{number:02d}-{done.path.stem[:STEM]}.png"
    write_overlay(path, done.seen, done.prediction, manifest)
    return str(path)


def _text(rows: list[dict[str, Any]]) -> str:
    from gft_edge.cli.console import table

    return table(
        ("image", "label", "probability"),
        [
            (row["image"] if rank == 0 else "", entry["label"], f"{entry['probability']:.3f}")
            for row in rows
            for rank, entry in enumerate(row["top"])
        ],
    )
