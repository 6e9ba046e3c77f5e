"""Options, callbacks and the folder of results of calibration, quantization and sensitivity; imports neither NumPy nor torch."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from gft_edge.data.splits import Split
from gft_edge.errors import OutputError
from gft_edge.files import new_folder
from gft_edge.progress import Track, silent

Choice = Literal["random", "balanced", "coverage"]
CHOICES: tuple[Choice, ...] = get_args(Choice)
Method = Literal["max", "percentile", "entropy", "mse"]
METHODS: tuple[Method, ...] = get_args(Method)
DEFAULT_PERCENTILE = 99.99
Selection = Literal["repair", "exact", "as-is"]
SELECTIONS: tuple[Selection, ...] = get_args(Selection)
Calibrator = Literal["entropy2", "minmax"]
CACHE_ALGORITHMS: dict[Calibrator, str] = {"entropy2": "EntropyCalibration2", "minmax": "MinMaxCalibration"}
"""Algorithm in the first line of a TensorRT calibration cache, by the calibrator that reads it."""


@dataclass(frozen=True)
class CalibrationOptions:
    """Choice of calibration images and method of finding ranges.

    Args:
        data: as for :func:`~gft_edge.data.datasets.open_images`, or a folder of image files without classes; None is the data
            that the model was trained on.
        split: which part of it.
        images: how many images.
        fewer: where there are fewer images than that, take all of them; otherwise that is an error.
        method: how ranges are found.
        percentile: share of the values in per cent, for ``"percentile"``.
        choice: of images: ``"balanced"`` over the classes, ``"random"``, or ``"coverage"`` (see
            :func:`~gft_edge.calibration.images.cover`).
        seed: of random and balanced choices.
        against: evaluation data whose test images (val where there are none) are compared with; ``data`` itself by default.
        force: continue although calibration images are also evaluation images.
        state: file that keeps the statistics so far; an interrupted run resumes from it.
    """

    data: str | None = None
    split: Split = "train"
    images: int = 256
    fewer: bool = False
    method: Method = "max"
    percentile: float = DEFAULT_PERCENTILE
    choice: Choice = "balanced"
    seed: int = 0
    against: str | None = None
    force: bool = False
    state: Path | None = None


@dataclass(frozen=True)
class Callbacks:
    """Callbacks of a pipeline; by default nothing is shown, and an image that cannot be read is an error.

    Args:
        track: shows progress.
        note: receives lines of information: how images were found, which step runs.
        problem: receives images that cannot be read and are left out.
        draw: returns a figure as SVG text, from numbers of images, each tensor's range at these, and the number of images that
            suffices; without it no figure is written.
    """

    track: Track = silent
    note: Callable[[str], None] | None = None
    problem: Callable[[str], None] | None = None
    draw: Callable[[Sequence[int], Mapping[str, Sequence[float]], int], str] | None = None


SILENT = Callbacks()


class ResultNotWrittenError(OutputError):
    """A result that is complete but cannot be written.

    Args:
        error: of writing.
        result: of the pipeline.
    """

    def __init__(self, error: OutputError, result: object) -> None:
        super().__init__(error.path, error.reason)
        self.result = result


@dataclass
class Making:
    """A folder of results that is being written.

    Attributes:
        folder: to write to.
        result: what was computed; None until it is known.
    """

    folder: Path
    result: Any = None


@contextlib.contextmanager
def result_folder(out: Path) -> Iterator[Making]:
    """Yields a new folder for a result that takes long to compute; it becomes ``out`` when the block ends.

    Raises:
        ConfigError: ``out`` is not free.
        ResultNotWrittenError: writing failed after the result was known; the error holds it.
        OutputError: writing failed before.
    """
    making = None
    try:
        with new_folder(out) as folder:
            making = Making(folder)
            yield making
    except OutputError as error:
        if making is not None and making.result is not None:
            raise ResultNotWrittenError(error, making.result) from error
        raise
