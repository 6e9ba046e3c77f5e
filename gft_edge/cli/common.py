"""Arguments and steps that several verbs share."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gft_edge.errors import ArtifactError, ConfigError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from gft_edge.checkpoint import CheckpointInfo
    from gft_edge.config.model import GFTConfig
    from gft_edge.data.sets import ImageSet
    from gft_edge.data.splits import Split
    from gft_edge.manifest import DeploymentManifest
    from gft_edge.preprocess import PreprocessSpec


DATA_HELP = (
    "image folder, ROOT/CLASS/image or ROOT/{train,val,test}/CLASS/image (without folders of splits, a hash of each file "
    "splits it 80/10/10); 'typefaces'; typefaces:FOLDER of fonts; fgvc-aircraft:ROOT; food101:ROOT; coco:ROOT "
    "(the data the model was trained on)"
)


def add_data_arguments(parser: argparse.ArgumentParser, images: int, split: Split | None = None) -> None:
    """``--data``, ``--images``, ``--split``; :func:`settle_data` fills what is not given."""
    parser.add_argument("--data", metavar="D", help=DATA_HELP)
    parser.add_argument("--images", type=positive, default=images, metavar="N", help=f"how many images ({images})")
    default = split or "test, or val where there are no test images"
    parser.add_argument(
        "--split", choices=("train", "val", "test"), default=split, help=f"which part of the data ({default})"
    )


def data_of(data: str | None, source: CheckpointInfo | DeploymentManifest, where: object) -> str:
    """The data set asked for, or that which the model was trained on.

    Args:
        data: ``--data``.
        source: of the model.
        where: its name, for messages.

    Raises:
        ConfigError: none is given and none is known.
        DataError: the one that is known is a folder that is not there.
    """
    from pathlib import Path

    from gft_edge.data.datasets import is_folder
    from gft_edge.errors import DataError

    if data is not None:
        return data
    known = source.data
    if not known:
        raise ConfigError(f"{where}: does not say which data it was trained on; give --data")
    root = Path(known.partition(":")[2] if not is_folder(known) else known)
    if known != "typefaces" and not root.is_dir():
        raise DataError(
            f"data {known}: no such folder here; {where} remembers it as the data it was trained on, give --data"
        )
    return known


def settle_data(args: argparse.Namespace, source: CheckpointInfo | DeploymentManifest, where: object) -> None:
    """Fills ``args.data``, and ``args.split`` where it has no value, as :func:`data_of` and the data decide.

    Every verb that takes ``--data`` calls this before it reads images.

    Raises:
        ConfigError, DataError: as :func:`data_of`; or data without images to judge by.
    """
    from gft_edge.data.datasets import held_out_split

    _said.clear()
    args.data = data_of(args.data, source, where)
    if "split" in args and args.split is None:
        args.split = held_out_split(args.data)


def say_notes(images: ImageSet) -> None:
    """Tells people, once in each run of a verb, how images were found and what was left out."""
    from gft_edge.cli.console import say

    for note in images.notes:
        if note not in _said:
            _said.add(note)
            say(f"data: {note}")


_said: set[str] = set()
"""Notes that this run of a verb has told."""


def positive(text: str) -> int:
    """An integer of at least 1, for argparse."""
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a whole number, found {text!r}") from None
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, found {value}")
    return value


def labelled_batches(
    data: str,
    split: Any,
    images: int,
    config: GFTConfig,
    labels: tuple[str, ...],
    spec: PreprocessSpec,
    problem: Callable[[str], None] | None = None,
    model: Path | None = None,
) -> tuple[int, Iterator[tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]]]:
    """Number of images, and preprocessed batches with the model's class numbers, matched by name.

    An image that cannot be read is an error, unless ``problem`` is there to be told; it is then left out. So are images
    that ``model`` was trained on, see :func:`labelled_images`.
    """
    from gft_edge.data.batches import evaluation_batches

    images_set = labelled_images(data, split, images, config.image_size, labels, model=model)
    return len(images_set), evaluation_batches(images_set, spec, problem=problem)


def labelled_images(
    data: str,
    split: Any,
    images: int,
    size: int,
    labels: tuple[str, ...],
    seed: int = 0,
    model: Path | None = None,
) -> ImageSet:
    """A data set with the model's class numbers, matched by name; says how its images were found.

    Val and test images that the checkpoint or artefact in the folder ``model`` was trained on are left out.

    Raises:
        DataError: nothing usable there, or classes that the model does not know.
    """
    from gft_edge.data.datasets import match_labels, open_images
    from gft_edge.data.trained import not_trained_on

    found = match_labels(open_images(data, split, images, size, seed), labels, data)
    if model is not None:
        found = not_trained_on(found, model, split, data)
    say_notes(found)
    return found


def is_artifact(path: str) -> bool:
    """Whether a path is an artefact rather than a checkpoint.

    Raises:
        ArtifactError: it is a file.
    """
    from gft_edge.filekinds import describe_file
    from gft_edge.manifest import MANIFEST, split_member

    if Path(path).is_file():
        raise ArtifactError(
            f"{path}: is {describe_file(Path(path))}; give an artefact folder, a checkpoint folder or 'builtin'"
        )
    return (split_member(path)[0] / MANIFEST).is_file()


def parse_compute_capabilities(text: str) -> tuple[str, ...]:
    """``"8.6,8.9"`` to a tuple."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def parse_batch_range(text: str) -> tuple[int, int, int]:
    """``"4"`` or ``"1:4:8"`` (smallest, usual, largest).

    Raises:
        ConfigError: something else.
    """
    try:
        sizes = [int(part) for part in text.split(":")]
    except ValueError:
        sizes = []
    if len(sizes) == 1:
        sizes *= 3
    if len(sizes) != 3:
        raise ConfigError(f"batch {text!r}: expected one number or smallest:usual:largest, for example 1:4:8")
    return sizes[0], sizes[1], sizes[2]
