"""What a training tells while it runs: log.jsonl, TensorBoard, and how long it will take."""

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
"""Seconds from which a training is worth a warning before it has taken them."""


def cut_log(out: Path, step: int) -> None:
    """Drops the rows of log.jsonl behind a step, which are written again when it is resumed from, and a torn last row.

    Raises:
        OutputError: it cannot be written.
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
    """Says once, as soon as it can be known, how long a training will take.

    The first step is left out: it waits for the first images and compiles or allocates what the others find ready.

    Args:
        steps: how many there are.
        clock: seconds.
    """

    def __init__(self, steps: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.steps = steps
        self.clock = clock
        self.done = 0
        self.began = 0.0
        self.told = False

    def step(self) -> str | None:
        """Called after each step; a line when there is enough behind it (half a minute, or two steps that took longer)."""
        self.done += 1
        now = self.clock()
        if self.done == 1:
            self.began = now
        measured, left = self.done - 1, self.steps - self.done
        if self.told or not left or measured < 2 or now - self.began < 30:
            return None
        self.told = True
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
        is_first: this process writes; the function that the others get does nothing.
        tensorboard: whether TensorBoard gets the rows too.

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
