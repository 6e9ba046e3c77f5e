"""Watches the loss of a training without making the host wait for a GPU."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor


class LossWatch:
    """Raises for a loss that is NaN or infinite.

    On a CPU a loss is checked at once. On a GPU it is copied while further work is queued and checked at the next call, so
    the host stays at most one step ahead; call :meth:`finish` before anything is saved.

    Args:
        failure: returns the error for a loss and its step.
    """

    def __init__(self, failure: Callable[[float, int], Exception]) -> None:
        self.failure = failure
        self._waiting: tuple[Tensor, torch.cuda.Event, int] | None = None

    def see(self, loss: Tensor, step: int) -> None:
        """Takes the loss of a step, a scalar, and checks it or the one before it."""
        if loss.device.type == "cpu":
            self._check(loss, step)
            return
        copy = torch.empty(loss.shape, dtype=loss.dtype, pin_memory=True)
        copy.copy_(loss, non_blocking=True)
        copied = torch.cuda.Event()
        copied.record()
        self.finish()
        self._waiting = copy, copied, step

    def finish(self) -> None:
        """Checks the last loss that was seen."""
        if self._waiting is not None:
            copy, copied, step = self._waiting
            self._waiting = None
            copied.synchronize()
            self._check(copy, step)

    def _check(self, loss: Tensor, step: int) -> None:
        value = loss.item()
        if not math.isfinite(value):
            raise self.failure(value, step)
