"""Logs of a running training: log.jsonl, TensorBoard, and an estimate of its duration."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

from gft_edge.files import replacing, writing
from gft_edge.progress import duration

LOG = "log.jsonl"
TENSORBOARD = "tensorboard"
LONG_TRAINING = 12 * 3600.0
"""Seconds above which the estimate comes with advice."""


def cut_log(out: Path, step: int) -> None:
    """Drops the rows of log.jsonl after a step, since the resumed training writes them again, and an incomplete last row.

    Raises:
        OutputError: the log cannot be written.
    """
    file = out / LOG
    if not file.exists():
        return
    kept = []
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
            number = row["step"]
        except (ValueError, KeyError, TypeError, RecursionError):
            continue
        if isinstance(number, int) and number <= step:
            kept.append(line + "\n")
    with replacing(file) as temporary:
        temporary.write_text("".join(kept), encoding="utf-8")


class Pace:
    """Estimates once, as early as possible, how long a training will take.

    The first step does not count: it waits for the first images and compiles or allocates for all others.

    Args:
        steps: number of steps.
        clock: returns seconds.
    """

    def __init__(self, steps: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.steps = steps
        self.clock = clock
        self.done = 0
        self.began = 0.0
        self.reported = False

    def step(self) -> str | None:
        """Counts a step; returns the estimate once half a minute, or two longer steps, were measured."""
        self.done += 1
        now = self.clock()
        if self.done == 1:
            self.began = now
        measured, left = self.done - 1, self.steps - self.done
        if self.reported or not left or measured < 2 or now - self.began < 30:
            return None
        self.reported = True
        each = (now - self.began) / measured
        line = f"{each:.2g} s a step: about {duration(each * left)} left for {left} steps"
        if each * left > LONG_TRAINING:
            line += (
                "; fewer train.steps, a smaller train.batch_size or model, train.init or a GPU would make it shorter"
            )
        return line


@contextlib.contextmanager
def training_log(out: Path, is_first: bool, tensorboard: bool) -> Iterator[Callable[[dict[str, float]], None]]:
    """Writes rows to log.jsonl and, when asked, to TensorBoard.

    Args:
        out: folder of the training.
        is_first: True in the process that writes; other processes get a function that does nothing.
        tensorboard: also write the rows for TensorBoard.

    Raises:
        OutputError: the log cannot be written.
    """
    if not is_first:
        yield lambda row: None
        return
    board: Any = None
    if tensorboard:
        from torch.utils.tensorboard import SummaryWriter

        board = SummaryWriter(str(out / TENSORBOARD))

    def write(file: TextIO, row: dict[str, float]) -> None:
        with writing(out / LOG):
            file.write(json.dumps(row) + "\n")
            file.flush()
        if board is not None:
            for name, value in row.items():
                board.add_scalar(name, value, row["step"])

    with (out / LOG).open("a", encoding="utf-8") as file:
        yield lambda row: write(file, row)
    if board is not None:
        board.close()
