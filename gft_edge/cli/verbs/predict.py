"""Classify image files and folders with an artefact; with --maps, draw the importance of the patches and those kept.

A file that cannot be read is named and left out; the others are classified.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gft_edge.cli.common import add_artifact_argument, add_backend_argument, add_result_argument, positive

if TYPE_CHECKING:
    from gft_edge.runtime.classifier import Classifier
    from gft_edge.runtime.image_files import ClassifiedFile, Draw

EXAMPLE = "gft-edge predict runs/artifact photos/ --top 3 --out runs/predictions.csv --maps runs/maps"

STEM = 100
"""Characters of an image's name that the name of its map takes over."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the verb's arguments."""
    add_artifact_argument(parser)
    parser.add_argument(
        "images", nargs="+", type=Path, metavar="IMAGE", help="image files, and folders with image files at any depth"
    )
    parser.add_argument("--top", type=positive, default=1, metavar="K", help="the K most probable classes (1)")
    parser.add_argument("--maps", type=Path, metavar="DIR", help="write one PNG per image (artefact with maps)")
    add_result_argument(parser, "the predictions as FILE.json or FILE.csv")
    add_backend_argument(parser, "artefact")


def run(args: argparse.Namespace) -> int:
    """Runs the verb."""
    from gft_edge.cli.console import result, say_left_out, track
    from gft_edge.cli.early import require_result_file
    from gft_edge.errors import ConfigError
    from gft_edge.files import require_writable_folder
    from gft_edge.runtime.classifier import Classifier
    from gft_edge.runtime.image_files import predict_files, write_csv

    if args.out:
        if args.out.suffix.lower() not in (".json", ".csv"):
            raise ConfigError(f"output {args.out}: expected a name that ends in .json or .csv")
        require_result_file(args.out, "predictions")
    if args.maps:
        _require_apart(args.maps, args.images)
        require_writable_folder(args.maps)
    classifier = Classifier.open(args.artifact, args.backend, huge_pages=False)
    if args.maps and classifier.artifact.manifest.maps == "none":
        raise ConfigError(f"artefact {args.artifact} has no maps; export it with --maps compact")
    files = _files(args.images, args.maps)
    found = predict_files(classifier, files, args.top, _drawing(args.maps, classifier) if args.maps else None, track)
    if len(files) > 1:
        say_left_out([entry["problem"] for entry in found.unreadable])
    found.require_any()
    data = {"artifact": str(args.artifact), "predictions": found.rows, "unreadable": found.unreadable}
    is_csv = args.out is not None and args.out.suffix.lower() == ".csv"
    result(args, data, _text(found.rows), None if is_csv else args.out)
    if is_csv:
        write_csv(args.out, found.rows, found.unreadable)
    if found.not_drawn is not None:
        raise found.not_drawn
    return 0


def _require_apart(maps: Path, images: Sequence[Path]) -> None:
    """Raises a ConfigError if maps would lie among the images of a folder: the next run would classify them."""
    from gft_edge.errors import ConfigError

    if any(path.is_dir() and path.resolve() == maps.resolve() for path in images):
        raise ConfigError(f"--maps {maps}: is a folder of images to classify; give another one")


def _files(images: Sequence[Path], maps: Path | None) -> list[Path]:
    """Returns the files to classify; of a folder without the maps that an earlier run wrote into a folder inside it."""
    from gft_edge.data.images import image_files

    found = list(image_files(images))
    if maps is None or not maps.is_dir():
        return found
    folder, named = maps.resolve(), set(images)
    return [path for path in found if path in named or folder not in path.resolve().parents]


def _drawing(folder: Path, classifier: Classifier) -> Draw:
    """Returns a function that draws the map of an image into the folder."""
    from gft_edge.report.figures.overlays import write_overlay

    def draw(number: int, done: ClassifiedFile) -> str:
        assert done.prediction is not None
        assert done.seen is not None
        path = folder / f"{number:02d}-{done.path.stem[:STEM]}.png"
        write_overlay(path, done.seen, done.prediction, classifier.artifact.manifest)
        return str(path)

    return draw


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
