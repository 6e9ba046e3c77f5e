"""JetPack releases: the TensorRT, Python and CUDA that each installs. A new release is a new row here."""

from __future__ import annotations

from dataclasses import dataclass

from gft_edge.hardware.tensorrt_versions import GENERATIONS, parse_version, row_of


@dataclass(frozen=True)
class JetPack:
    """A release, or several with the same software.

    Attributes:
        releases: their numbers, for people.
        tensorrt: version of TensorRT.
        python: version of the system's Python, the only one that TensorRT's bindings work with.
        cuda: version of CUDA, which cuda-python must be of.
    """

    releases: str
    tensorrt: str
    python: str
    cuda: str


RELEASES = (
    JetPack("6.0", "8.6.2", "3.10", "12.2"),
    JetPack("6.1 to 6.2.2", "10.3.0", "3.10", "12.6"),
    JetPack("7.0 and 7.1", "10.13.3", "3.12", "13.0"),
    JetPack("7.2", "10.16.2", "3.12", "13.2"),
    JetPack("7.2.2", "11.4.1", "3.12", "13.2"),
)
"""Oldest first. JetPack 5 has TensorRT 8.5 and Python 3.8, both older than what is supported here.

Sources: NVIDIA's release notes and the map of jetson_stats; the CUDA of 7.2.2 is documented as 13.x only."""


def releases_with(version: str) -> tuple[JetPack, ...]:
    """Returns the releases whose TensorRT is of the same generation as a version, none for one that is installed apart."""
    row = row_of(parse_version(version))
    return tuple(release for release in RELEASES if row_of(parse_version(release.tensorrt)) == row)


def minor_span(version: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Returns the lowest and highest (major, minor) numbers of TensorRT that belong to the generation of a version."""
    numbers, oldest = parse_version(version), parse_version(GENERATIONS[0].name)
    candidates: list[tuple[int, ...]] = [(numbers[0], minor) for minor in range(100)]
    same = [found for found in candidates if found >= oldest and row_of(found) == row_of(numbers)]
    return same[0], same[-1]
