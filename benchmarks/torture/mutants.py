"""Runs many mutated inputs through every reader; none may cause a traceback, a hang, a crash or too much memory."""

from __future__ import annotations

import hashlib
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gft_edge.benchmarks.torture.contained import DEFAULT, GOOD, Kind, Limits, Outcome, run_contained
from gft_edge.benchmarks.torture.mutate import MUTATORS
from gft_edge.benchmarks.torture.readers import Reader

LEAST = 100
"""Minimum number of inputs for each reader."""


@dataclass(frozen=True)
class Find:
    """An input that caused a failure.

    Attributes:
        reader: name of the reader.
        kind: kind of the outcome.
        detail: text and location of the error.
        file: name of the file with the input, relative to the folder of finds; also its name in ``tests/attacks``.
        times: number of inputs with the same failure.
    """

    reader: str
    kind: str
    detail: str
    file: str
    times: int


@dataclass(frozen=True)
class MutantResult:
    """Outcomes of the inputs of one reader."""

    reader: str
    tried: int
    counts: dict[str, int]
    seconds: float
    most_megabytes: float
    finds: tuple[Find, ...] = ()

    @property
    def failed(self) -> int:
        """Returns the number of inputs that caused a failure."""
        return sum(count for kind, count in self.counts.items() if kind not in GOOD)


def mutant(reader: Reader, seed: int, number: int) -> bytes:
    """Returns the input with a given number."""
    rng = random.Random(f"{seed}/{reader.name}/{number}")
    return MUTATORS[reader.form](rng.choice(reader.seeds), rng)


def measure(
    every: Sequence[Reader], count: int, seed: int, scratch: Path, finds: Path, seconds: float = float("inf")
) -> list[MutantResult]:
    """Runs about ``count`` inputs, divided between readers by their shares, with at least :data:`LEAST` for each.

    Args:
        every: readers.
        count: total number of inputs; the minimum for each reader never exceeds an equal part of it.
        seed: seed of the inputs.
        scratch: folder for the current input.
        finds: folder for inputs that cause a failure.
        seconds: time for all readers; each gets an equal part of the remaining time. Readers with small shares are slow and
            come last.
    """
    end, whole = time.monotonic() + seconds, sum(reader.share for reader in every)
    least = min(LEAST, count // len(every))
    results = {}
    for number, reader in enumerate(sorted(every, key=lambda reader: -reader.share)):
        wanted = max(least, round(count * reader.share / whole))
        until = time.monotonic() + (end - time.monotonic()) / (len(every) - number)
        results[reader.name] = read_mutants(reader, wanted, seed, scratch, finds, until)
    return [results[reader.name] for reader in every]


def read_mutants(
    reader: Reader,
    count: int,
    seed: int,
    scratch: Path,
    finds: Path,
    until: float = float("inf"),
    limits: Limits = DEFAULT,
) -> MutantResult:
    """Runs ``count`` inputs through one reader."""
    file = scratch / f"input{reader.suffix}"

    def attack(number: int) -> Kind:
        file.write_bytes(mutant(reader, seed, number))
        code = reader.read(file)
        return "refused" if isinstance(code, int) and code in (2, 3) else "ok"

    began = time.monotonic()
    outcomes = list(run_contained([lambda n=n: attack(n) for n in range(count)], limits, until))  # type: ignore[misc]
    seconds = time.monotonic() - began
    bad = [outcome for outcome in outcomes if outcome.kind not in GOOD]
    return MutantResult(
        reader.name,
        len(outcomes),
        dict(Counter(outcome.kind for outcome in outcomes)),
        seconds,
        max((outcome.megabytes for outcome in outcomes), default=0.0),
        tuple(_keep(reader, seed, bad, finds)),
    )


def _keep(reader: Reader, seed: int, bad: Sequence[Outcome], finds: Path) -> list[Find]:
    """Writes the smallest input of each failure, by kind and location."""
    kept = []
    for kind, where in dict.fromkeys((outcome.kind, signature(outcome)) for outcome in bad):
        alike = [outcome for outcome in bad if (outcome.kind, signature(outcome)) == (kind, where)]
        content = min((mutant(reader, seed, outcome.number) for outcome in alike), key=len)
        name = f"{reader.name}/{kind.replace(' ', '-')}-{hashlib.sha256(content).hexdigest()[:8]}{reader.suffix}"
        (finds / name).parent.mkdir(parents=True, exist_ok=True)
        (finds / name).write_bytes(content)
        kept.append(Find(reader.name, kind, alike[0].detail, name, len(alike)))
    return kept


def signature(outcome: Outcome) -> str:
    """Returns the error's type and location without its message, which are equal for finds with the same cause."""
    return outcome.detail.partition(":")[0] + ":" + outcome.detail.partition(":")[2].partition(":")[0]
