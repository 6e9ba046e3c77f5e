"""Ranges of activations as a file, with their method, images and model."""

from __future__ import annotations

import math
from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from gft_edge.errors import ArtifactError
from gft_edge.storage.seals import read_sealed, write_sealed

if TYPE_CHECKING:  # it brings torch, which a board that builds an engine from ranges does not have
    from gft_edge.calibration.observing.collect import Collector

SCHEMA = 1
TOLERANCE = 0.01
Subject = Literal["module inputs", "graph tensors"]


@dataclass(frozen=True)
class Convergence:
    """Ranges of tensors against the number of images.

    Attributes:
        images: numbers of images at which ranges were recorded.
        ranges: per tensor, one for each of those numbers.
        settled_after: per tensor, the number of images from which on its range stayed within 1 % of the last.
    """

    images: tuple[int, ...]
    ranges: Mapping[str, tuple[float, ...]]
    settled_after: Mapping[str, int]

    @classmethod
    def of(cls, images: tuple[int, ...], ranges: Mapping[str, tuple[float, ...]]) -> Convergence:
        """Finds where each range settles."""
        return cls(images, ranges, {name: images[_settled(values)] for name, values in ranges.items()})

    def only(self, names: Container[str]) -> Convergence:
        """Returns the part of some tensors."""
        ranges = {name: values for name, values in self.ranges.items() if name in names}
        return Convergence(self.images, ranges, {name: self.settled_after[name] for name in ranges})

    @property
    def images_needed(self) -> int:
        """Images after which no range changes by more than 1 % any more."""
        return max(self.settled_after.values(), default=0)

    @property
    def settled(self) -> bool:
        """True if half of the images would have sufficed; if not, more images may still change ranges."""
        return bool(self.images) and 2 * self.images_needed <= self.images[-1]


def _settled(values: tuple[float, ...]) -> int:
    """Returns the index of the first value after which all are within the tolerance of the last."""
    last = values[-1]
    outside = [number for number, value in enumerate(values) if abs(value - last) > TOLERANCE * abs(last)]
    return outside[-1] + 1 if outside else 0


@dataclass(frozen=True)
class Ranges:
    """Ranges of a model's tensors and where they come from.

    Args:
        values: range per tensor, as found; 0 for one that was always zero.
        subject: names are those of modules (their input) or of tensors of an ONNX graph.
        method: ``"max"``, ``"percentile"``, ``"entropy"`` or ``"mse"``.
        images: how many the ranges rest on.
        model_sha256: of the full-precision checkpoint, or of the ONNX file.
        card_id: identity of the calibration set, or None when there is none.
        preprocess: id of the preprocessing.
        percentile: in per cent, for that method.
        statistics: figures per tensor.
        convergence: ranges against the number of images, or None.
    """

    values: Mapping[str, float]
    subject: Subject
    method: str
    images: int
    model_sha256: str
    card_id: str | None
    preprocess: str | None
    percentile: float | None = None
    statistics: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    convergence: Convergence | None = None

    def __post_init__(self) -> None:
        for name, value in self.values.items():
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value < 0:
                raise ArtifactError(f"ranges: range of {name} must be a finite number of at least 0, found {value!r}")

    @classmethod
    def of(
        cls, collector: Collector, subject: Subject, model_sha256: str, card_id: str | None, preprocess: str | None
    ) -> Ranges:
        """Returns the ranges that a collector found."""
        curve = Convergence.of(*collector.convergence())
        return cls(
            {name: ranges[-1] for name, ranges in curve.ranges.items()},
            subject,
            collector.method,
            collector.images,
            model_sha256,
            card_id,
            preprocess,
            collector.share if collector.method == "percentile" else None,
            {name: stats.to_json() for name, stats in collector.stats.items()},
            curve,
        )

    @property
    def dead(self) -> tuple[str, ...]:
        """Tensors that were always zero."""
        return tuple(name for name, value in self.values.items() if value == 0)

    @property
    def constant(self) -> tuple[str, ...]:
        """Tensors that had a single magnitude."""
        return tuple(name for name, data in self.statistics.items() if data.get("constant"))

    def describe(self, used: Mapping[str, str] | None = None) -> str:
        """Returns lines for people: how many images suffice, and tensors that are always zero or constant.

        Args:
            used: the tensors that a quantized model uses, with their names for people; None names all as they are.
        """
        names = {name: name for name in self.values} if used is None else used
        lines = []
        curve = None if self.convergence is None else self.convergence.only(names)
        if curve is not None and curve.settled:
            lines.append(f"ranges change by less than 1 % after {curve.images_needed} of {self.images} images")
        elif curve is not None:
            late = max(curve.settled_after, key=lambda name: curve.settled_after[name])
            lines.append(
                f"ranges still changed by more than 1 % after half of the {self.images} images, last that of {names[late]}; "
                f"more images may change them"
            )
        dead, constant = ([names[name] for name in found if name in names] for found in (self.dead, self.constant))
        if dead:
            lines.append(f"always zero: {', '.join(dead)}")
        elif constant:
            lines.append(f"always of one magnitude: {', '.join(constant)}")
        return "\n".join(lines)

    def require_model(self, model_sha256: str, what: str) -> None:
        """Refuses ranges of another model.

        Raises:
            ArtifactError: naming both hashes.
        """
        if self.model_sha256 != model_sha256:
            raise ArtifactError(
                f"ranges: were found on the model {self.model_sha256[:12]}, {what} is {model_sha256[:12]}; calibrate it"
            )

    def to_json(self) -> dict[str, Any]:
        """Returns the ranges as plain JSON values."""
        curve = self.convergence
        return {
            "schema": SCHEMA,
            "subject": self.subject,
            "method": self.method,
            "percentile": self.percentile,
            "images": self.images,
            "model_sha256": self.model_sha256,
            "card_id": self.card_id,
            "preprocess": self.preprocess,
            "tensors": {name: {"range": value, **self.statistics.get(name, {})} for name, value in self.values.items()},
            "convergence": curve
            and {
                "tolerance": TOLERANCE,
                "images": list(curve.images),
                "ranges": {name: list(values) for name, values in curve.ranges.items()},
                "settled_after": dict(curve.settled_after),
                "images_needed": curve.images_needed,
                "settled": curve.settled,
            },
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any], where: str = "ranges") -> Ranges:
        """Reads what :meth:`to_json` returns.

        Raises:
            ArtifactError: another schema, a missing or malformed entry.
        """
        if data.get("schema") != SCHEMA:
            raise ArtifactError(f"{where}: schema {data.get('schema')!r}, this version reads {SCHEMA}")
        try:
            curve = data["convergence"]
            tensors = data["tensors"].items()
            return cls(
                {name: tensor["range"] for name, tensor in tensors},
                data["subject"],
                str(data["method"]),
                int(data["images"]),
                str(data["model_sha256"]),
                data["card_id"],
                data["preprocess"],
                data["percentile"],
                {name: {k: v for k, v in t.items() if k != "range"} for name, t in tensors if len(t) > 1},
                None
                if curve is None
                else Convergence.of(
                    tuple(curve["images"]), {name: tuple(values) for name, values in curve["ranges"].items()}
                ),
            )
        except (KeyError, TypeError, AttributeError, IndexError, ValueError, OverflowError) as error:
            raise ArtifactError(f"{where}: incomplete or malformed ({error!r})") from None

    def write(self, path: Path) -> None:
        """Writes ranges.json."""
        write_sealed(path, self.to_json())


def read_ranges(path: Path) -> Ranges:
    """Reads ranges.json.

    Raises:
        ArtifactError: missing, damaged or of another schema.
    """
    return Ranges.from_json(read_sealed(path, "ranges", "calibrate again"), f"ranges {path}")
