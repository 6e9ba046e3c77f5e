"""Uses one Classifier in many threads and for a long time; checks for wrong answers and leaks."""

from __future__ import annotations

import gc
import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from gft_edge.benchmarks.torture.contained import resident_megabytes
from gft_edge.benchmarks.torture.materials import SIDE

Pixels = npt.NDArray[np.uint8]
LOST_MB = 8.0
"""Growth of memory that counts as a leak."""
SHARES = (0.4, 0.45, 0.15)
"""Shares of the time for the three uses."""
SETTLING = 0.1
"""Part of a use after which memory is first measured; before that, caches and the allocator's arenas fill."""


@dataclass(frozen=True)
class SoakResult:
    """Outcome of one long use.

    Attributes:
        what: name of the use.
        tried: number of requests or loads.
        target: planned number of requests or loads.
        wrong: answers that are not bit-identical to those of one thread.
        grown_mb: memory at the end minus memory after the first part (:data:`SETTLING`).
        descriptors: open files at the end minus open files after the first part.
        seconds: duration.
    """

    what: str
    tried: int
    target: int
    wrong: int
    grown_mb: float
    descriptors: int
    seconds: float

    @property
    def failed(self) -> int:
        """Returns the number of wrong answers, plus one each for leaked memory and leaked descriptors."""
        return self.wrong + (self.grown_mb > LOST_MB) + (self.descriptors > 0)


def measure(
    artifact: Path, threads: int, requests: int, predictions: int, loads: int, seconds: float = float("inf")
) -> list[SoakResult]:
    """Runs all three uses in a forked process, so that this process gets no threads.

    Args:
        artifact: artefact with compact maps.
        threads, requests: number of threads in the first use, and of requests by each thread.
        predictions: number of sequential requests in the second use.
        loads: number of loads in the third use; each load makes one prediction.
        seconds: time for all three uses; they stop early to meet it.

    Raises:
        RuntimeError: the process failed.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.close(reader)
            uses = (
                lambda until: _threads(artifact, threads, requests, until),
                lambda until: _predictions(artifact, predictions, until),
                lambda until: _loads(artifact, loads, until),
            )
            found = _in_time(uses, seconds)
            os.write(writer, json.dumps([asdict(one) for one in found]).encode())
            code = 0
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        text = pipe.read()
    if os.waitpid(child, 0)[1]:
        raise RuntimeError("soak: the process failed; see the error above")
    return [SoakResult(**one) for one in json.loads(text)]


def _in_time(uses: Sequence[Callable[[float], SoakResult]], seconds: float) -> list[SoakResult]:
    """Runs the uses in sequence; each gets its share of the remaining time."""
    found, end = [], time.monotonic() + seconds
    for number, use in enumerate(uses):
        now = time.monotonic()
        found.append(use(now + max(0.0, end - now) * SHARES[number] / sum(SHARES[number:])))
    return found


class _Watch:
    """Growth of memory and descriptors since the last mark."""

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.mark()

    def mark(self) -> None:
        """Sets the mark at the current memory and descriptors."""
        gc.collect()
        self.megabytes, self.files = resident_megabytes(), _open_files()

    def steps(self, count: int, until: float, settling: float) -> Iterator[int]:
        """Yields numbers from 0 until the count or the time is reached; sets the mark after the first part of either."""
        marked, settled = False, self.began + (until - self.began) * settling
        for number in range(count):
            now = time.monotonic()
            if number and now >= until:
                return
            if not marked and (number >= count * settling or now >= settled):
                marked = True
                self.mark()
            yield number

    def result(self, what: str, tried: int, target: int, wrong: int) -> SoakResult:
        """Returns the outcome with the growth since the mark."""
        gc.collect()
        grown, files = resident_megabytes() - self.megabytes, _open_files() - self.files
        return SoakResult(what, tried, target, wrong, grown, files, time.monotonic() - self.began)


def _open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def _pictures() -> list[list[Pixels]]:
    """Returns requests with one or two images of several sizes."""
    rng = np.random.default_rng(0)
    sizes = [(SIDE, SIDE), (48, 40), (20, 64)]
    singles = [[rng.integers(0, 256, (*sizes[n % 3], 3), dtype=np.uint8)] for n in range(12)]
    return [*singles, singles[0] + singles[1], singles[2] + singles[5]]


def _answers(classifier: object, images: list[Pixels]) -> bytes:
    """Returns the exact bytes of all values of the predictions."""
    from gft_edge.runtime.classifier import Classifier

    assert isinstance(classifier, Classifier)
    parts = []
    for one in classifier.predict(images):
        arrays = [one.logits, *one.importance, *one.kept]
        parts += [
            one.label.encode(),
            np.float64(one.probability).tobytes(),
            *(np.ascontiguousarray(a).tobytes() for a in arrays),
        ]
    return b"|".join(parts)


def _threads(artifact: Path, threads: int, requests: int, until: float) -> SoakResult:
    from gft_edge.runtime.classifier import Classifier

    classifier = Classifier.open(artifact, "onnxruntime", threads=1, huge_pages=False)
    pictures = _pictures()
    expected = [_answers(classifier, images) for images in pictures]
    done, wrong, watch = [0] * threads, [0] * threads, _Watch()
    orders = [np.random.default_rng(thread).integers(0, len(pictures), requests) for thread in range(threads)]

    def ask(thread: int, count: int, end: float) -> None:
        while done[thread] < count and (not done[thread] or time.monotonic() < end):
            which = orders[thread][done[thread]]
            wrong[thread] += _answers(classifier, pictures[which]) != expected[which]
            done[thread] += 1

    def all_at_once(count: int, end: float) -> None:
        started = [threading.Thread(target=ask, args=(thread, count, end)) for thread in range(threads)]
        for one in started:
            one.start()
        for one in started:
            one.join()

    all_at_once(max(1, int(requests * SETTLING)), watch.began + (until - watch.began) * SETTLING)
    watch.mark()
    all_at_once(requests, until)
    return watch.result(f"{threads} concurrent threads", sum(done), threads * requests, sum(wrong))


def _predictions(artifact: Path, count: int, until: float) -> SoakResult:
    from gft_edge.runtime.classifier import Classifier

    classifier = Classifier.open(artifact, "onnxruntime", threads=1, huge_pages=False)
    pictures = _pictures()
    expected = [_answers(classifier, images) for images in pictures]
    done, wrong, watch = 0, 0, _Watch()
    for number in watch.steps(count, until, SETTLING):
        which = number % len(pictures)
        wrong += _answers(classifier, pictures[which]) != expected[which]
        done += 1
    return watch.result("sequential requests", done, count, wrong)


def _loads(artifact: Path, count: int, until: float) -> SoakResult:
    from gft_edge.runtime.classifier import Classifier

    images = _pictures()[0]
    expected = _answers(Classifier.open(artifact, "onnxruntime", threads=1, huge_pages=False), images)
    done, wrong, watch = 0, 0, _Watch()
    for _ in watch.steps(count, until, 0.25):  # the allocator's arenas fill more slowly than with requests
        wrong += _answers(Classifier.open(artifact, "onnxruntime", threads=1, huge_pages=False), images) != expected
        done += 1
    return watch.result("load, predict once, release", done, count, wrong)
