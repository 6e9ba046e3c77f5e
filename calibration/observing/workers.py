"""Threads for an operator of torch that uses one thread only, such as counting."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


class Workers:
    """As many threads as torch computes with, from the first use on; they end with the object.

    A task should be one call of torch, which lets other threads run: many short ones wait for the interpreter's lock instead.
    """

    def __init__(self) -> None:
        self._pool: ThreadPoolExecutor | None = None
        self._threads = 1

    def run(self, task: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
        """Returns the results of a task for each item, in order; in the calling thread where torch has one thread."""
        threads = torch.get_num_threads()
        if threads == 1 or len(items) < 2:
            return [task(item) for item in items]
        if self._pool is None or self._threads != threads:
            self._pool, self._threads = _start(threads), threads
        return list(self._pool.map(task, items))


def _start(threads: int) -> ThreadPoolExecutor:
    """Returns a pool whose threads are running and let torch use no further threads, which would wait for each other."""
    pool = ThreadPoolExecutor(threads, "calibration", initializer=torch.set_num_threads, initargs=(1,))
    started = threading.Barrier(threads + 1)
    for _ in range(threads):
        pool.submit(started.wait)
    started.wait()
    torch.set_num_threads(threads)  # that of the workers became the default of threads to come
    return pool
