"""Published data sets in their published layouts."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from gft_edge.data.sets import Files
from gft_edge.data.splits import SPLITS, Split
from gft_edge.errors import DataError, MissingExtraError

FOOD_VAL_SHARE, FOOD_SEED = 0.2, 42  # as published: 80/20 of the training images


def fgvc_aircraft(root: Path, split: Split) -> Files:
    """FGVC-Aircraft, 100 variants: ROOT/fgvc-aircraft-2013b/data, with its own train, val and test."""
    data = root / "fgvc-aircraft-2013b" / "data"
    labels = tuple((data / "variants.txt").read_text(encoding="utf-8").split("\n"))
    labels = tuple(label.strip() for label in labels if label.strip())
    listed = (data / f"images_variant_{split}.txt").read_text(encoding="utf-8").splitlines()
    pairs = [line.strip().split(" ", 1) for line in listed if line.strip()]
    return Files(labels, tuple((data / "images" / f"{number}.jpg", labels.index(label)) for number, label in pairs))


def food101(root: Path, split: Split) -> Files:
    """Food-101: ROOT/food-101; val is 20 % of the training images drawn with seed 42, as published."""
    folder = root / "food-101"
    file = folder / "meta" / ("test.json" if split == "test" else "train.json")
    listed: Mapping[str, Sequence[str]] = json.loads(file.read_text(encoding="utf-8"))
    labels = tuple(sorted(listed))
    samples = tuple(
        (folder / "images" / f"{name}.jpg", labels.index(label)) for label, names in listed.items() for name in names
    )
    if split == "test":
        return Files(labels, samples)
    try:
        import torch  # the published split is drawn by torch's generator
    except ImportError:
        raise MissingExtraError("torch", "train") from None
    order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(FOOD_SEED)).tolist()
    num_train = len(samples) - int(FOOD_VAL_SHARE * len(samples))
    chosen = sorted(order[:num_train] if split == "train" else order[num_train:])
    return Files(labels, tuple(samples[index] for index in chosen))


def coco_single_label(root: Path, split: Split) -> Files:
    """COCO 2017 as classification: an image's class is the category of its first annotation; images without are dropped.

    ROOT/annotations/instances_{train,val}2017.json and ROOT/{train,val}2017; labels of test images are not published.
    """
    if split == "test":
        raise DataError(f"data coco:{root}: labels of its test images are not published; take --split val")
    part = f"{split}2017"
    data = json.loads((root / "annotations" / f"instances_{part}.json").read_text(encoding="utf-8"))
    categories = sorted(data["categories"], key=lambda category: category["id"])
    number = {category["id"]: index for index, category in enumerate(categories)}
    first: dict[int, int] = {}
    for annotation in data["annotations"]:
        first.setdefault(annotation["image_id"], number[annotation["category_id"]])
    samples = [
        (root / part / image["file_name"], first[image["id"]]) for image in data["images"] if image["id"] in first
    ]
    return Files(tuple(category["name"] for category in categories), tuple(samples))


PUBLISHED: dict[str, Callable[[Path, Split], Files]] = {
    "fgvc-aircraft": fgvc_aircraft,
    "food101": food101,
    "coco": coco_single_label,
}


def open_published(kind: str, root: Path, split: Split) -> Files:
    """Opens one part of a published data set.

    Raises:
        DataError: not found, damaged, or without such a part.
    """
    try:
        files = PUBLISHED[kind](root, split)
    except (DataError, MissingExtraError):
        raise
    except (RuntimeError, OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        layout = " ".join((PUBLISHED[kind].__doc__ or "").split())
        raise DataError(f"data {kind}:{root}: not found or damaged ({error!r}); expected {layout}") from None
    if not files.samples:
        raise DataError(f"data {kind}:{root}: no images for {split!r}")
    return files


def published_splits(kind: str) -> tuple[Split, ...]:
    """Returns the parts of a published data set whose labels are public."""
    return ("train", "val") if kind == "coco" else SPLITS
