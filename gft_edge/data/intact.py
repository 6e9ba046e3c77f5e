"""Sets of a certain number of images: a damaged one is left out, and the next one of its class that can be read takes its place.

The choice depends on the content of the files alone. Where no image is damaged, it is the one that was asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from gft_edge.data.batches import Problem
from gft_edge.data.datasets import is_folder
from gft_edge.data.sets import ImageSet, Subset, decoded_smaller
from gft_edge.data.trained import samples_of
from gft_edge.errors import DataError

SHARE = 10
"""One image in so many may be damaged."""
SHOWN = 5


@dataclass(frozen=True)
class Intact:
    """Images of a set.

    Attributes:
        indices: of images that can be read.
        damaged: of those that were tried and cannot be read.
    """

    indices: tuple[int, ...]
    damaged: tuple[int, ...] = ()


def intact(
    images: ImageSet,
    wanted: Sequence[int],
    where: str,
    problem: Problem,
    usable: Callable[[int], bool] = lambda index: True,
) -> Intact:
    """Returns wanted images, each damaged one replaced by the next of its class that is usable, readable and not wanted itself.

    Where the class has no such image, the next of the set is taken; where the set has none, there are fewer. JPEG files
    are decoded at an eighth of their size: all of the file is read.

    Args:
        images: the whole set.
        wanted: indices, in order.
        where: name of the data, for messages.
        problem: receives the reason for each image that is left out.
        usable: whether an image may replace another one.

    Raises:
        DataError: more than a tenth of the images that were tried cannot be read.
    """
    small, classes = decoded_smaller(images, 1), images.class_numbers()
    taken, found, problems = set(wanted), [], {}

    def after(index: int) -> Iterator[int]:
        order = [(index + step) % len(images) for step in range(1, len(images))]
        yield from (other for other in order if classes[other] == classes[index])
        yield from (other for other in order if classes[other] != classes[index])

    for index in wanted:
        candidate = index
        while (reason := _reason(small, candidate)) is not None:
            problems[candidate] = reason
            require_few(list(problems.values()), min(len(wanted) + len(problems), len(images)), where)
            free = next((other for other in after(index) if other not in taken and usable(other)), None)
            if free is None:
                break
            taken.add(free)
            candidate = free
        else:
            found.append(candidate)
    require_few(list(problems.values()), len(found) + len(problems), where)
    for reason in problems.values():  # only now: an error is one line
        problem(reason)
    return Intact(tuple(found), tuple(sorted(problems)))


def intact_part(
    part: ImageSet,
    whole: Callable[[], ImageSet],
    where: str,
    problem: Problem | None,
    usable: Callable[[Path], bool] = lambda path: True,
) -> tuple[ImageSet, tuple[str, ...]]:
    """Returns a part of a set with its damaged images replaced, see :func:`intact`, and the names of these.

    Rendered images are returned as they are.

    Args:
        part: the images that are wanted.
        whole: opens the set that they are of; called where one of them is damaged.
        where: name of the data.
        problem: receives the reason for each image that is left out; without it nothing is tried.
        usable: whether a file may replace another one.

    Raises:
        DataError: more than a tenth of the images that were tried cannot be read.
    """
    samples = samples_of(part)
    small = decoded_smaller(part, 1)
    if problem is None or samples is None or all(_reason(small, index) is None for index in range(len(part))):
        return part, ()
    everything = whole()
    all_samples = samples_of(everything)
    assert all_samples is not None, "a part of it has files"
    place = {sample: index for index, sample in enumerate(all_samples)}
    wanted = [place[sample] for sample in samples]
    found = intact(everything, wanted, where, problem, lambda index: usable(all_samples[index][0]))
    return Subset(everything, found.indices), names_of(everything, found.damaged, where)


def require_few(problems: Sequence[str], tried: int, where: str) -> None:
    """Raises DataError where more than a tenth of the images that were tried cannot be read.

    Args:
        problems: the reason for each of these.
        tried: images, those that cannot be read included.
        where: name of the data.
    """
    if len(problems) * SHARE > tried:
        raise DataError(
            f"data {where}: {len(problems)} of {tried} images cannot be read, more than a tenth; repair or remove them. "
            f"The first: {problems[0]}"
        )


def names_of(images: ImageSet, indices: Sequence[int], where: str) -> tuple[str, ...]:
    """Returns the names of images, of files their paths below the folder of the data."""
    folder = Path(where if is_folder(where) else where.partition(":")[2])
    names = []
    for index in indices:
        name = images.name(index)
        names.append(Path(name).relative_to(folder).as_posix() if Path(name).is_relative_to(folder) else name)
    return tuple(names)


def in_words(names: Sequence[str]) -> str:
    """Returns words on images that were left out."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"left out, cannot be read: {', '.join(names[:SHOWN])}{more}"


def source_in_words(source: str, unreadable: Sequence[str]) -> str:
    """Returns the source of images with the number of those that were left out, where there are any."""
    return f"{source}, {len(unreadable)} unreadable left out" if unreadable else source


def _reason(images: ImageSet, index: int) -> str | None:
    """Returns why an image cannot be read, or None."""
    try:
        images[index]
    except DataError as error:
        return str(error)
    return None
