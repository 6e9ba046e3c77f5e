"""The hand-made mutations of the core: reads them from ``areas/*.toml`` and applies one to a tree of files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gft_edge.config.reader import load_dataclass, read_table
from gft_edge.errors import ConfigError

AREAS = Path(__file__).parent / "areas"


@dataclass(frozen=True)
class Mutation:
    """A fault that a programmer could make.

    Attributes:
        file: that is changed, relative to the tree.
        old: text that occurs exactly once in the file.
        new: text in its place.
        breaks: what goes wrong, as one sentence.
        tests: files of tests, or ids of tests in them, that should find it.
        survives: why no test can or need find it; empty for a mutation that tests must find.
        gap: it passed the tests named for it when it was first run, and one was written.
    """

    file: str
    old: str
    new: str
    breaks: str
    tests: tuple[str, ...]
    survives: str = ""
    gap: bool = False

    def __post_init__(self) -> None:
        if self.old == self.new or not self.old or not self.tests or not self.breaks:
            raise ConfigError(
                f"mutation of {self.file}: needs an old text, another new text, tests, and what it breaks"
            )


@dataclass(frozen=True)
class Area:
    """Mutations of one part of the toolkit.

    Attributes:
        title: for the page.
        wider: folders or files of tests that run when the tests of a mutation pass.
        mutations: in the order of their numbers.
    """

    title: str
    wider: tuple[str, ...]
    mutations: tuple[Mutation, ...]


@dataclass(frozen=True)
class Numbered:
    """A mutation with its area and its number, which counts from 1 over all areas."""

    number: int
    area: Area
    mutation: Mutation


def read_catalogue(folder: Path = AREAS) -> tuple[Numbered, ...]:
    """Returns the mutations of all areas, files of areas in the order of their names.

    Raises:
        ConfigError: a file that is no area; the message says where.
    """
    areas = [load_dataclass(Area, read_table(file, "mutations"), str(file)) for file in sorted(folder.glob("*.toml"))]
    every = [(area, mutation) for area in areas for mutation in area.mutations]
    return tuple(Numbered(number, area, mutation) for number, (area, mutation) in enumerate(every, start=1))


def chosen(catalogue: Sequence[Numbered], numbers: Sequence[int]) -> tuple[Numbered, ...]:
    """Returns the mutations of these numbers; all without numbers.

    Raises:
        ConfigError: a number that no mutation has.
    """
    unknown = sorted(set(numbers) - {one.number for one in catalogue})
    if unknown:
        raise ConfigError(f"mutations: there is no number {unknown[0]}; they go from 1 to {len(catalogue)}")
    return tuple(one for one in catalogue if not numbers or one.number in numbers)


def mutated(tree: Path, mutation: Mutation) -> str:
    """Returns the text of the mutated file; changes nothing.

    Raises:
        ConfigError: the old text does not occur exactly once in the file.
    """
    file = tree / mutation.file
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"mutation of {mutation.file}: cannot be read ({error.strerror})") from None
    times = text.count(mutation.old)
    if times != 1:
        raise ConfigError(
            f"mutation of {mutation.file}: {mutation.old!r} occurs {times} times, it must occur once; adapt the catalogue"
        )
    return text.replace(mutation.old, mutation.new)
