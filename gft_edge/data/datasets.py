"""Data sets by name: the built-in scenes and typefaces, published benchmarks in their own layouts on disk, and image folders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gft_edge.data.folders import read_folder, spelling
from gft_edge.data.published import PUBLISHED, open_published, published_splits
from gft_edge.data.scan import is_hidden_folder, looks_like_image
from gft_edge.data.scenes import open_scenes
from gft_edge.data.sets import NO_CLASSES, Files, ImageSet, Relabelled, Subset, readable, spread
from gft_edge.data.splits import SPLITS, Split
from gft_edge.data.typefaces import Typefaces, font_folder_faces
from gft_edge.errors import DataError

__all__ = [
    "Files",
    "ImageSet",
    "Relabelled",
    "Subset",
    "held_out_split",
    "image_folder",
    "is_folder",
    "is_rendered",
    "match_labels",
    "open_images",
    "readable",
    "split_names",
    "spread",
    "unlabelled_folder",
]

SHOWN = 5


def open_images(name: str, split: Split, num_images: int, size: int, seed: int = 0) -> ImageSet:
    """Opens a data set by name.

    Args:
        name: ``"scenes"``, with options and a folder of photographs as :func:`gft_edge.data.scenes.open_scenes` reads them;
            ``"typefaces"``; ``"typefaces:FOLDER"`` of .ttf and .otf files, one class each; ``"fgvc-aircraft:ROOT"``,
            ``"food101:ROOT"``, ``"coco:ROOT"`` in their published layouts; else the path of an image folder,
            see :mod:`gft_edge.data.folders`.
        split: part of the data.
        num_images: number of images; of files on disk at most all, evenly spread over their list.
        size: pixels of rendered images.
        seed: of rendered images.

    Raises:
        DataError: nothing usable is there, or no such part.
    """
    kind, colon, root = name.partition(":")
    if _is_scenes(name):
        return open_scenes(name, split, num_images, size, seed)
    if kind == "typefaces":
        return Typefaces(split, num_images, size, seed, font_folder_faces(Path(root)) if colon else None)
    published = colon and kind in PUBLISHED
    files = open_published(kind, Path(root), split) if published else image_folder(Path(name), split)
    return files if len(files) <= num_images else Subset(files, spread(len(files), num_images))


def is_folder(name: str) -> bool:
    """Returns whether a data set of this name is an image folder."""
    kind, colon, _ = name.partition(":")
    return not is_rendered(name) and not (colon and kind in PUBLISHED)


def is_rendered(name: str) -> bool:
    """Returns whether the images of a data set of this name are drawn, in any number and size."""
    return _is_scenes(name) or name.partition(":")[0] == "typefaces"


def _is_scenes(name: str) -> bool:
    return name.partition(":")[0].partition(",")[0] == "scenes"


def split_names(name: str) -> tuple[Split, ...]:
    """Returns the parts of a data set.

    Raises:
        DataError: no such folder, or an unusable one.
    """
    if is_folder(name):
        return read_folder(Path(name)).names
    kind, _, _ = name.partition(":")
    return SPLITS if is_rendered(name) else published_splits(kind)


def held_out_split(name: str) -> Split:
    """Returns the part for the evaluation of a model: test, or val where there are no test images.

    Raises:
        DataError: there is neither, or the folder is unusable.
    """
    names = split_names(name)
    held_out: tuple[Split, ...] = ("test", "val")
    for split in held_out:
        if split in names:
            return split
    raise DataError(f"data {name}: has no test or val images, only {', '.join(names)}; choose with --split")


def image_folder(root: Path, split: Split) -> Files:
    """Opens one part of an image folder, see :meth:`gft_edge.data.folders.ImageFolder.part`.

    Raises:
        DataError: the folder is unusable, or has no such part.
    """
    part = read_folder(root).part(split)
    return Files(part.labels, part.samples, part.notes)


def unlabelled_folder(root: Path) -> Files | None:
    """Opens the images directly in a folder without image folders, as one class without a name; None for other folders."""
    if not root.is_dir():
        return None
    try:
        entries = sorted(root.iterdir())
    except OSError as error:
        raise DataError(f"data {root}: folder cannot be read ({error.strerror})") from None
    files = [
        path for path in entries if looks_like_image(path.name) and not path.name.startswith(".") and path.is_file()
    ]
    if not files or any(path.is_dir() and not is_hidden_folder(path.name) for path in entries):
        return None
    return Files(NO_CLASSES, tuple((path, 0) for path in files))


def match_labels(images: ImageSet, labels: Sequence[str], where: str) -> ImageSet:
    """Returns the images with the class numbers of a model, matched by name.

    Args:
        images: their classes may be in another order, or fewer.
        labels: of the model, by class number.
        where: name of the data, for messages.

    Raises:
        DataError: the data has classes that the model does not know.
    """
    own, known = images.labels, tuple(labels)
    if own == known:
        return images
    unknown = [label for label in own if label not in known]
    if unknown:
        raise DataError(
            f"data {where}: its {len(own)} classes are not the model's {len(known)}; unknown to the model: "
            f"{_names(unknown)}, which knows {_names(known)}{_cause(unknown, known)}"
        )
    notes = images.notes
    missing = [label for label in known if label not in own]
    if missing:
        notes = (*notes, f"{where} has no images of {len(missing)} of the model's classes: {_names(missing)}")
    numbers = tuple(known.index(label) for label in own)
    if isinstance(images, Files):
        return Files(known, tuple((path, numbers[label]) for path, label in images.samples), notes)
    if isinstance(images, Subset):
        return Subset(match_labels(images.base, labels, where), images.indices)
    return Relabelled(images, known, numbers, notes)


def _cause(unknown: Sequence[str], known: Sequence[str]) -> str:
    """Returns the likely reason why names differ, or an empty text."""
    found = spelling(unknown, known)
    if found:
        return found
    if all(_is_number(label) for label in unknown):
        return " (the folders are numbered, the model's classes have names; rename the folders)"
    if all(_is_number(label.removeprefix("class_")) for label in known):
        return " (the model's classes are only numbered; import it again with --labels FILE)"
    return ""


def _is_number(text: str) -> bool:
    return text.isdecimal()


def _names(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(map(repr, names[:SHOWN])) + more
