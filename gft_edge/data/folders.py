"""Reads image folders of many layouts: with or without splits, wrapped, with other files between the images."""

from __future__ import annotations

import functools
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from gft_edge.data.scan import Found, Scan, is_readable_format, scan
from gft_edge.data.splits import SPLITS, Split, content_key, file_size, split_by_hash
from gft_edge.errors import DataError
from gft_edge.files import sha256

LAYOUT = "ROOT/CLASS/image.jpg or ROOT/{train,val,test}/CLASS/image.jpg"

SPLIT_NAMES: dict[Split, frozenset[str]] = {
    "train": frozenset({"train", "training", "trn"}),
    "val": frozenset({"val", "valid", "validate", "validation", "dev", "development", "eval", "evaluation"}),
    "test": frozenset({"test", "testing", "tst", "holdout"}),
}
"""Folder names of the splits, compared in lower case, without separators and a last "set", "data", "images" or "split"."""

SHOWN = 5
Sample = tuple[Path, int]


@dataclass(frozen=True)
class Part:
    """One part of a data set.

    Attributes:
        labels: class names.
        samples: path and class number of each image, by class and name.
        notes: one sentence for each decision.
    """

    labels: tuple[str, ...]
    samples: tuple[Sample, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class ImageFolder:
    """A folder with a recognised layout.

    Attributes:
        root: as given.
        labels: class names, of train where there is such a split.
        own: samples of the folder of each split, or of ``"all"`` where there are no such folders.
        wrong: the reason, for splits that are unusable.
        beside: names of folders of class folders that belong to no known split.
        notes: one sentence for each finding.
    """

    root: Path
    labels: tuple[str, ...]
    own: Mapping[Split | Literal["all"], tuple[Sample, ...]]
    wrong: Mapping[Split, str] = field(default_factory=dict)
    beside: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[Split, ...]:
        """The parts of the folder, including unusable ones."""
        if "all" in self.own:
            return tuple(self._parts(SPLITS))
        there = {*self.own, *self.wrong}
        return tuple(part for part in SPLITS if part in there or (part == "val" and there == {"train", "test"}))

    def part(self, split: Split) -> Part:
        """Returns the images of one part.

        * Split folders stay unchanged, except that train loses images that are also in val or test (by the sha256 of their
          files).
        * train and test without val: a hash of each file selects 10 % of train for val.
        * Without split folders, a hash of each file splits the images: 80 % train, 10 % val, 10 % test.

        Raises:
            DataError: there is no such part, or its classes differ from those of train.
        """
        if split in self.wrong:
            raise DataError(f"data {self.root}: {self.wrong[split]}")
        parts = self._parts((split,))
        if split == "train" and split in self.own and split not in parts:
            raise DataError(
                f"data {self.root}: every training image is also a val or test image; nothing is left to train on"
            )
        if split not in parts:
            whole = _part_of_siblings(self.root) in self.own
            more = f"give {self.root.absolute().parent} for all parts" if whole else "choose with --split"
            if self.beside:
                more += f"; these folders belong to no split: {_names(self.beside)}"
            raise DataError(f"data {self.root}: has no {split} images, only {', '.join(self.names)}; {more}")
        return parts[split]

    def _parts(self, wanted: Sequence[Split]) -> dict[Split, Part]:
        """Returns the wanted parts that have images, and further parts that cost nothing."""
        notes = list(self.notes)
        if "all" in self.own:
            split = _by_hash(self.own["all"], ("test", "val"))
            counts = ", ".join(f"{len(split[part])} {part}" for part in SPLITS)
            notes.append(
                f"{self.root} has no train, val and test folders: split by a hash of each file, {counts} images"
            )
            without = [name for number, name in enumerate(self.labels) if number not in {n for _, n in split["test"]}]
            if without:
                notes.append(f"too few images for a test part: {_names(without)}")
        else:
            split = {part: self.own[part] for part in SPLITS if part in self.own}
            if "train" in split and set(wanted) != {"test"}:
                others = [sample for part in split if part != "train" for sample in split[part]]
                split["train"], shared = _unshared(split["train"], others)
                if shared:
                    notes.append(f"left out of training: {_count(shared)} that are also val or test images")
                if "test" in self.names and "val" not in {*self.own, *self.wrong}:
                    total = len(split["train"])
                    split.update(_by_hash(split["train"], ("val",)))
                    notes.append(
                        f"{self.root} has no validation folder: a hash of each file takes {len(split['val'])} of its "
                        f"{total} training images for validation"
                    )
        return {part: Part(self.labels, samples, tuple(notes)) for part, samples in split.items() if samples}


def _by_hash(samples: Sequence[Sample], held_out: Sequence[Split]) -> dict[Split, tuple[Sample, ...]]:
    """Returns the samples of train and of each held-out part, in their order."""
    keys = [content_key(path) for path, _ in samples]
    classes: dict[int, list[bytes]] = {}
    for key, (_, label) in zip(keys, samples):
        classes.setdefault(label, []).append(key)
    parts = split_by_hash(classes.values(), held_out)
    found: dict[Split, list[Sample]] = {part: [] for part in ("train", *held_out)}
    for key, sample in zip(keys, samples):
        found[parts[key]].append(sample)
    return {part: tuple(found[part]) for part in SPLITS if part in found}


def _unshared(samples: tuple[Sample, ...], others: Sequence[Sample]) -> tuple[tuple[Sample, ...], int]:
    """Returns the samples without files that are also among the others, and the number of those; reads only files of equal size."""
    by_size: dict[int, list[Path]] = {}
    for path, _ in others:
        by_size.setdefault(file_size(path), []).append(path)

    @functools.cache
    def keys(size: int) -> dict[bytes, list[Path]]:
        found: dict[bytes, list[Path]] = {}
        for path in by_size[size]:
            found.setdefault(content_key(path), []).append(path)
        return found

    def is_shared(path: Path) -> bool:
        size = file_size(path)
        return size >= 0 and size in by_size and _equal(path, keys(size).get(content_key(path), ()))

    kept = tuple(sample for sample in samples if not is_shared(sample[0]))
    return kept, len(samples) - len(kept)


def _equal(path: Path, others: Sequence[Path]) -> bool:
    """Returns whether a file has the content of one of the others."""
    try:
        return bool(others) and sha256(path) in map(sha256, others)
    except OSError:
        return False


def require_folder(root: Path) -> None:
    """Refuses what is no folder.

    Raises:
        DataError: with the forms that ``--data`` takes.
    """
    if not root.is_dir():
        what = "is a file" if root.is_file() else "no such folder"
        raise DataError(
            f"data {root}: {what}; give a folder laid out as {LAYOUT}, one of images alone where no classes are needed, "
            "'scenes' or 'typefaces'"
        )


def read_folder(root: Path) -> ImageFolder:
    """Recognises the layout of a folder.

    A folder whose only content is one folder of folders is skipped. Images in sub-folders of a class folder belong to the
    class if the class folder itself holds images.

    Raises:
        DataError: no such folder, an unknown layout, or fewer than two classes.
    """
    require_folder(root)
    found = scan(root)
    notes: list[str] = []
    top = _unwrap(found.top, notes)
    splits = _split_folders(top, notes)
    if set(splits) - {"train"}:
        beside = [
            each.name
            for each in top.folders
            if each.folders and not any(part.path.is_relative_to(each.path) for part in splits.values())
        ]
        folder = replace(_of_splits(root, splits, notes), beside=tuple(beside))
    else:
        classes = splits.get("train", top)
        labels, samples = _of_classes(root, classes, notes)
        part = _part_of_siblings(root)
        if len(labels) < 2 and part is None:
            empty = f" ({_names(classes.empty)}: no images)" if classes.empty else ""
            raise DataError(f"data {classes.path}: only one class, {labels[0]!r}{empty}; a data set needs two or more")
        folder = ImageFolder(root, labels, {part or "all": samples})
    return replace(folder, notes=(*notes, *_left_out(found, folder)))


def split_of_name(name: str) -> Split | None:
    """Returns the split that the name of a folder means, or None: ``Training``, ``test_set``, ``valid`` ..."""
    core = re.sub(r"[\s_.-]+", "", name.casefold())
    short = re.sub(r"(set|data|images|imgs|split)$", "", core)
    return next((split for split in SPLITS if SPLIT_NAMES[split] & {core, short}), None)


def _part_of_siblings(root: Path) -> Split | None:
    """Returns the split of a folder that is named after one and lies beside the folder of another: ROOT/test beside ROOT/train."""
    absolute = root.absolute()
    split = split_of_name(absolute.name)
    if split is None:
        return None
    try:
        named = {split_of_name(path.name) for path in absolute.parent.iterdir() if path.is_dir()}
    except OSError:
        return None
    return split if named - {None, split} else None


def _unwrap(folder: Found, notes: list[str]) -> Found:
    """Skips folders that only wrap another; a wrapper named val or test is kept, because it names the split."""
    while len(folder.folders) == 1 and folder.folders[0].folders and not folder.folders[0].images:
        if split_of_name(folder.folders[0].name) in ("val", "test"):
            break
        _note_beside(folder, notes)
        folder = folder.folders[0]
    return folder


def _split_folders(top: Found, notes: list[str]) -> dict[Split, Found]:
    """Returns the folder of each split; empty where the sub-folders are classes.

    A folder named after a split counts as one if it holds class folders: "train" may also be a class of vehicles.
    """
    named = [(folder, split) for folder in top.folders if (split := split_of_name(folder.name)) is not None]
    named += _loosely_named(top, {split for folder, split in named if folder.folders})
    splits: dict[Split, Found] = {}
    for folder, split in named:
        if folder.folders:
            if split in splits:
                raise DataError(f"data {top.path}: {splits[split].name} and {folder.name} both name {split}; keep one")
            splits[split] = folder
    if not splits and len(named) == len(top.folders) and len({split for _, split in named}) > 1:
        raise DataError(
            f"data {top.path}: {_names(f.name for f, _ in named)} hold images but no class folders; expected {LAYOUT}"
        )
    if splits:
        _note_beside(top, notes)
        for folder in top.folders:
            if not any(folder is taken for taken in splits.values()):
                why = "without class folders" if split_of_name(folder.name) else "beside the splits"
                notes.append(f"left out: {_count(sum(1 for _ in folder.below()))} in {folder.path} ({why})")
    return {split: _unwrap(folder, notes) for split, folder in splits.items()}


def _loosely_named(top: Found, known: set[Split]) -> list[tuple[Found, Split]]:
    """Returns folders that can only be splits and whose names hold a split among other words: ``seg_train`` and ``seg_test``.

    Args:
        top: parent of the folders.
        known: splits whose folders have exactly the split's name.

    Returns:
        one folder for each further split; nothing if fewer than two splits are found in all.
    """
    found: dict[Split, list[Found]] = {}
    for folder in top.folders:
        words = re.findall(r"[^\W\d_]+", folder.name.casefold())
        splits = {split for word in words if (split := split_of_name(word)) is not None}
        if len(splits) == 1 and folder.folders and not folder.images and split_of_name(folder.name) is None:
            found.setdefault(splits.pop(), []).append(folder)
    single = [(folders[0], split) for split, folders in found.items() if len(folders) == 1 and split not in known]
    return single if len({*known, *(split for _, split in single)}) > 1 else []


def _of_splits(root: Path, splits: dict[Split, Found], notes: list[str]) -> ImageFolder:
    """Builds a folder with splits; class numbers are those of train, or of the first split."""
    first = next(split for split in SPLITS if split in splits)
    labels, samples = _of_classes(root, splits[first], notes)
    if first == "train" and len(labels) < 2:
        raise DataError(f"data {splits[first].path}: only one class, {labels[0]!r}; a data set needs two or more")
    own: dict[Split | Literal["all"], tuple[Sample, ...]] = {first: samples}
    wrong: dict[Split, str] = {}
    for split, folder in splits.items():
        if split == first:
            continue
        names, own_samples = _of_classes(root, folder, notes)
        unknown = [name for name in names if name not in labels]
        if unknown:
            wrong[split] = f"{split} has classes that {first} lacks: {_names(unknown)}{spelling(unknown, labels)}"
            notes.append(f"{wrong[split]}; the {split} images cannot be used")
            continue
        missing = [name for name in labels if name not in names]
        if missing:
            notes.append(f"{split} has no images of {_names(missing)}")
        own[split] = tuple((path, labels.index(names[label])) for path, label in own_samples)
    return ImageFolder(root, labels, own, wrong)


def _of_classes(root: Path, folder: Found, notes: list[str]) -> tuple[tuple[str, ...], tuple[Sample, ...]]:
    """Returns class names and samples of a folder of class folders."""
    if not folder.folders:
        if folder.images:
            raise DataError(
                f"data {folder.path}: {_count(len(folder.images))} but no class folders; expected {LAYOUT}, one folder "
                "per class"
            )
        empty = f"; its folders {_names(folder.empty)} hold none" if folder.empty else ""
        raise DataError(f"data {folder.path}: no images{empty}; expected {LAYOUT}")
    for each in folder.folders:
        if not each.images:
            inner = [folder.name for folder in each.folders]
            inside = all(split_of_name(name) for name in inner)
            hint = "the splits belong above the classes; " if inside else ""
            raise DataError(
                f"data {each.path}: class folder {each.name!r} holds only folders ({_names(inner)}), no images; "
                f"{hint}expected {LAYOUT}"
            )
    _note_beside(folder, notes)
    names = [each.name for each in folder.folders]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise DataError(f"data {folder.path}: two class folders are named {twice[0]!r}")
    for each in folder.folders:
        nested = sum(1 for _ in each.below()) - len(each.images)
        if nested:
            below = _names(inner.name for inner in each.folders)
            notes.append(f"counted as class {each.name!r}: {_count(nested)} in its sub-folders ({below})")
    labels = tuple(sorted(names))
    samples = [(path, labels.index(each.name)) for each in folder.folders for path in each.below()]
    return labels, tuple(sorted(samples, key=lambda sample: sample[1]))


def _note_beside(folder: Found, notes: list[str]) -> None:
    """Notes images and empty folders beside the folders that are read."""
    if folder.images:
        notes.append(f"left out: {_count(len(folder.images))} beside the folders in {folder.path}")
    if folder.empty:
        notes.append(f"left out: {_names(folder.empty)} in {folder.path} (no images)")


def _left_out(found: Scan, folder: ImageFolder) -> list[str]:
    """Returns notes on everything that was not read."""
    notes = []
    if found.hidden_folders:
        notes.append(f"left out: hidden and system folders {_names(sorted(found.hidden_folders))}")
    if found.hidden_images:
        notes.append(f"left out: {_count(found.hidden_images)} with a hidden name")
    if found.repeated:
        notes.append(f"left out: links to folders that were read already, {_names(map(str, found.repeated))}")
    others = found.top.others_below() - found.top.others
    if others:
        kinds = ", ".join(sorted(suffix or "no suffix" for suffix in others))
        notes.append(f"left out: {_count(sum(others.values()), 'file')} that are not images ({kinds})")
    paths = [path for samples in folder.own.values() for path, _ in samples]
    foreign = [path for path in paths if not is_readable_format(path)]
    if foreign:
        kinds = ", ".join(sorted({path.suffix.lower() for path in foreign}))
        notes.append(
            f"not trained on, and counted as unreadable: {_count(len(foreign))} of a format that Pillow does not read here "
            f"({kinds}, the first is {foreign[0]}); convert them to JPEG or PNG"
        )
    return notes


def spelling(unknown: Iterable[str], known: Iterable[str]) -> str:
    """Lists unknown names that differ from known ones only in case, spaces, hyphens or underscores; empty without one."""
    plain = {_plain(name): name for name in known}
    pairs = [f"{name!r} is {plain[_plain(name)]!r}" for name in unknown if _plain(name) in plain]
    return f" (in another spelling: {', '.join(pairs[:SHOWN])}; rename the folders)" if pairs else ""


def _plain(name: str) -> str:
    return re.sub(r"[\W_]+", "", unicodedata.normalize("NFKC", name).casefold())


def _names(names: Iterable[str]) -> str:
    every = list(names)
    more = f" and {len(every) - SHOWN} more" if len(every) > SHOWN else ""
    return ", ".join(map(repr, every[:SHOWN])) + more


def _count(number: int, what: str = "image") -> str:
    return f"1 {what}" if number == 1 else f"{number} {what}s"
