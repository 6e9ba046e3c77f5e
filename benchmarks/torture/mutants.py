"""Tens of thousands of changed inputs through every reader: none may end in a traceback, a hang, a crash or too much memory."""

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
"""Inputs of each reader, however slow it is."""


@dataclass(frozen=True)
class Find:
    """An input that must not do what it did.

    Attributes:
        reader: that read it.
        kind: of the outcome.
        detail: where it arose.
        file: name of the file that holds it, below the folder of finds; as it must stand in ``tests/attacks``.
        times: how many inputs did the same.
    """

    reader: str
    kind: str
    detail: str
    file: str
    times: int


@dataclass(frozen=True)
class MutantResult:
    """What the inputs of one reader led to."""

    reader: str
    tried: int
    counts: dict[str, int]
    seconds: float
    most_megabytes: float
    finds: tuple[Find, ...] = ()

    @property
    def failed(self) -> int:
        """Inputs that must not do what they did."""
        return sum(count for kind, count in self.counts.items() if kind not in GOOD)


def mutant(reader: Reader, seed: int, number: int) -> bytes:
    """The input of that number."""
    rng = random.Random(f"{seed}/{reader.name}/{number}")
    return MUTATORS[reader.form](rng.choice(reader.seeds), rng)


def measure(
    every: Sequence[Reader], count: int, seed: int, scratch: Path, finds: Path, seconds: float = float("inf")
) -> list[MutantResult]:
    """Runs about ``count`` inputs over all readers, by their shares, but :data:`LEAST` of each where so many are wanted.

    Args:
        every: readers.
        count: inputs altogether.
        seed: of the inputs.
        scratch: folder for the input being read.
        finds: folder that inputs which must not do what they did are written to.
        seconds: for all; each reader gets an equal part of what is left, the readers of small shares, which are slow, last.
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
    """Runs the inputs of one reader."""
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
    """Writes the smallest input of each kind and place."""
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
    """What finds of one cause have in common: the error's type and place, without its words."""
    return outcome.detail.partition(":")[0] + ":" + outcome.detail.partition(":")[2].partition(":")[0]
