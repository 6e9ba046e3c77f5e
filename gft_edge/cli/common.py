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

    from gft_edge.config import GFTConfig
    from gft_edge.preprocess import PreprocessSpec


def add_data_arguments(parser: argparse.ArgumentParser, images: int, split: str = "test") -> None:
    """``--data``, ``--images``, ``--split``."""
    parser.add_argument(
        "--data", default="typefaces", metavar="D", help="'typefaces' or a folder with one sub-folder per class"
    )
    parser.add_argument("--images", type=positive, default=images, metavar="N", help=f"how many images ({images})")
    parser.add_argument(
        "--split", choices=("train", "val", "test"), default=split, help=f"which part of the data ({split})"
    )


def positive(text: str) -> int:
    """An integer of at least 1, for argparse."""
    value = int(text)
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
) -> tuple[int, Iterator[tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]]]:
    """Number of images, and preprocessed batches with labels; the data's classes must be the model's.

    An image that cannot be read is an error, unless ``problem`` is there to be told; it is then left out.
    """
    from gft_edge.data.batches import evaluation_batches
    from gft_edge.data.datasets import open_images, require_labels

    images_set = open_images(data, split, images, config.image_size)
    require_labels(images_set, labels, data)
    return len(images_set), evaluation_batches(images_set, spec, problem=problem)


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
