"""One Classifier in many threads and for a long time: the same answers, no memory and no file descriptor lost."""

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
"""Growth of memory above which something is lost."""
SHARES = (0.4, 0.45, 0.15)
"""Of the time, for the three uses."""
SETTLING = 0.1
"""Part of a use after which memory is first measured: until then caches and the allocator's arenas fill."""


@dataclass(frozen=True)
class SoakResult:
    """What long use led to.

    Attributes:
        what: which use.
        tried: requests, or loads.
        target: how many there would have been with enough time.
        wrong: answers that differ from those of one thread, to the bit.
        grown_mb: memory at the end less that after the first part (:data:`SETTLING`).
        descriptors: files open at the end less those after the first part.
        seconds: it took.
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
        """Wrong answers, and one for memory or descriptors that were lost."""
        return self.wrong + (self.grown_mb > LOST_MB) + (self.descriptors > 0)


def measure(
    artifact: Path, threads: int, requests: int, predictions: int, loads: int, seconds: float = float("inf")
) -> list[SoakResult]:
    """Runs all three uses in a forked process, whose threads are then gone.

    Args:
        artifact: with compact maps.
        threads, requests: of the first use; requests are of each thread.
        predictions: of the second, one after the other.
        loads: of the third: open, ask once, let go.
        seconds: for all three, which are shortened to fit.

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
        raise RuntimeError("soak: the process failed; see above")
    return [SoakResult(**one) for one in json.loads(text)]


def _in_time(uses: Sequence[Callable[[float], SoakResult]], seconds: float) -> list[SoakResult]:
    """Runs the uses one after the other; each gets its share of the time that is left."""
    found, end = [], time.monotonic() + seconds
    for number, use in enumerate(uses):
        now = time.monotonic()
        found.append(use(now + max(0.0, end - now) * SHARES[number] / sum(SHARES[number:])))
    return found


class _Watch:
    """Memory and descriptors since the mark."""

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.mark()

    def mark(self) -> None:
        """From here on."""
        gc.collect()
        self.megabytes, self.files = resident_megabytes(), _open_files()

    def steps(self, count: int, until: float, settling: float) -> Iterator[int]:
        """Numbers from 0 until the count or the time is reached; marks after the first part of either."""
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
        """What grew."""
        gc.collect()
        grown, files = resident_megabytes() - self.megabytes, _open_files() - self.files
        return SoakResult(what, tried, target, wrong, grown, files, time.monotonic() - self.began)


def _open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def _pictures() -> list[list[Pixels]]:
    """Requests of one or two pictures, of several sizes."""
    rng = np.random.default_rng(0)
    sizes = [(SIDE, SIDE), (48, 40), (20, 64)]
    singles = [[rng.integers(0, 256, (*sizes[n % 3], 3), dtype=np.uint8)] for n in range(12)]
    return [*singles, singles[0] + singles[1], singles[2] + singles[5]]


def _answers(classifier: object, images: list[Pixels]) -> bytes:
    """Everything a prediction holds, to the bit."""
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

    classifier = Classifier.load(artifact, threads=1, huge_pages=False)
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
    return watch.result(f"{threads} threads at once", sum(done), threads * requests, sum(wrong))


def _predictions(artifact: Path, count: int, until: float) -> SoakResult:
    from gft_edge.runtime.classifier import Classifier

    classifier = Classifier.load(artifact, threads=1, huge_pages=False)
    pictures = _pictures()
    expected = [_answers(classifier, images) for images in pictures]
    done, wrong, watch = 0, 0, _Watch()
    for number in watch.steps(count, until, SETTLING):
        which = number % len(pictures)
        wrong += _answers(classifier, pictures[which]) != expected[which]
        done += 1
    return watch.result("one after the other", done, count, wrong)


def _loads(artifact: Path, count: int, until: float) -> SoakResult:
    from gft_edge.runtime.classifier import Classifier

    images = _pictures()[0]
    expected = _answers(Classifier.load(artifact, threads=1, huge_pages=False), images)
    done, wrong, watch = 0, 0, _Watch()
    for _ in watch.steps(count, until, 0.25):  # the allocator's arenas fill more slowly than with requests
        wrong += _answers(Classifier.load(artifact, threads=1, huge_pages=False), images) != expected
        done += 1
    return watch.result("open, ask once, let go", done, count, wrong)
