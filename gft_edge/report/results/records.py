"""Kinds of result files: the form of each kind, and the conditions between its entries."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gft_edge.benchmarks.measuring.bench_files import read_bench
from gft_edge.errors import ArtifactError
from gft_edge.report.results import forms
from gft_edge.report.results.checks import checked, printable, read_object

MOST_LOG_BYTES = 200_000_000
OTHER_KINDS: tuple[frozenset[str], ...] = (
    frozenset({"model", "data", "train"}),  # a recipe
    frozenset({"rules", "smoothquant"}),  # a quantization policy
    frozenset({"source", "layers", "card_id"}),  # the record of a quantized ONNX file of another program
    frozenset({"engine_sha256", "model_sha256"}),  # the record of an engine beside an ONNX file
    frozenset({"verdict", "sentence", "figures"}),  # the record of quantization-aware training
    frozenset({"bound", "bound_images", "check_images"}),  # certificates
    frozenset({"checkpoint_sha256", "points", "stage"}),  # tokens against milliseconds of sweep
    frozenset({"artifact_sha256", "facts", "files"}),  # the record of a bundle
    frozenset({"builder_flags", "network_flags", "trtexec"}),  # the plan of a build
)
"""Keys of files that gft-edge writes but no page shows."""
UNSTABLE = "unstable"
"""Verdict of a bench result whose rounds vary too much; also the word of pages for it."""


@dataclass(frozen=True)
class Kind:
    """A kind of result file.

    Args:
        form: of its entries.
        keys: that identify the kind.
        consistent: raises ArtifactError if entries contradict each other.
        place: name of its list in :class:`gft_edge.report.results.run_files.RunFiles`.
    """

    form: forms.Form
    keys: frozenset[str]
    consistent: Callable[[Mapping[str, Any]], None]
    place: str

    def read(self, data: Mapping[str, Any]) -> Mapping[str, Any]:
        """Returns the checked entries of a file of this kind.

        Raises:
            ArtifactError: an entry is missing, has another type, or contradicts another one.
        """
        record = checked(data, self.form, "file")
        self.consistent(record)
        return record


def usable_bench(path: Path, prefix: str = "") -> dict[str, Any]:
    """Returns a bench file with every part that a page shows checked.

    Args:
        path: of the file.
        prefix: of messages about single entries.

    Raises:
        ArtifactError: the file cannot be used.
    """
    machine = read_object(path).get("machine")
    if isinstance(machine, dict):  # read_bench refuses other types
        checked(machine, forms.BENCH_MACHINE, f"{prefix}machine")
    try:
        return clean_bench(read_bench(path), prefix)
    except OverflowError:
        raise ArtifactError(f"{prefix}holds a number that is too large") from None


def clean_bench(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns bench results with every part that a page shows checked against its form."""
    rows = [
        {**row, **checked(row, forms.BENCH_ROW, f"{prefix}results[{number}]"), "name": printable(row["name"])}
        for number, row in enumerate(data["results"])
    ]
    machine = data.get("machine")
    return {
        **data,
        "results": rows,
        "machine": checked(machine, forms.BENCH_MACHINE, f"{prefix}machine") if machine else {},
    }


def is_unstable(row: Mapping[str, Any]) -> bool:
    """Returns whether the rounds of a bench result vary by more than the protocol allows."""
    return row.get("verdict") == UNSTABLE


def has_energy(row: Mapping[str, Any]) -> bool:
    """Returns whether a bench result holds a measured energy."""
    return (row.get("energy") or {}).get("mj_per_image") is not None


def refused_energy(row: Mapping[str, Any]) -> str | None:
    """Returns the reason why a bench result has no energy; None without a reason."""
    return (row.get("energy") or {}).get("refused")


def log_rows(file: Path) -> Sequence[Mapping[str, Any]]:
    """Returns the rows of a training log, one per step, in order; an incomplete last line is skipped.

    Raises:
        ArtifactError: a line is not a JSON object of the right form.
    """
    if file.stat().st_size > MOST_LOG_BYTES:
        raise ArtifactError("too large for a training log")
    lines = file.read_text(encoding="utf-8").splitlines()
    rows: dict[int, Mapping[str, Any]] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            data = json.loads(line)
        except (ValueError, RecursionError):
            if number == len(lines) and number > 1:
                break
            raise ArtifactError(f"line {number} is not JSON") from None
        row = checked(data, forms.LOG_ROW, f"line {number}")
        rows[row["step"]] = row  # a resumed run repeats steps
    return [rows[step] for step in sorted(rows)]


def _any(record: Mapping[str, Any]) -> None:
    """Accepts every record of the right form."""


def _evaluation(record: Mapping[str, Any]) -> None:
    images, labels = record["images"], record["labels"]
    if not images or not record["results"]:
        raise ArtifactError("file: holds no image or no result")
    for number, row in enumerate(record["results"]):
        where = f"file.results[{number}]"
        low, high = row["interval"]
        if row["right"] > images or abs(row["top1"] - row["right"] / images) > 1e-6:
            raise ArtifactError(f"{where}: {row['right']} correct of {images} images is not a top-1 of {row['top1']}")
        if not low <= row["top1"] + 1e-9 or not row["top1"] <= high + 1e-9:
            raise ArtifactError(f"{where}.interval: does not contain the top-1 of {row['top1']}")
        if any(c["right"] > c["count"] for c in row["per_class"] or ()):
            raise ArtifactError(f"{where}.per_class: a class has more correct answers than images")
        confusion = row["confusion"]
        if confusion is not None:
            wanted = len(labels) if labels else len(confusion)
            if len(confusion) != wanted or any(len(line) != wanted for line in confusion):
                raise ArtifactError(f"{where}.confusion: expected {wanted} x {wanted} numbers")


def _controls(record: Mapping[str, Any]) -> None:
    images = record["images"]
    if not images or not record["budgets"]:
        raise ArtifactError("file: holds no image or no budget")
    for number, at in enumerate(record["budgets"]):
        where = f"file.budgets[{number}]"
        if not at["rules"] or not at["macs"]:
            raise ArtifactError(f"{where}: holds no rule or no cost")
        for row in at["rules"]:
            right, (low, high) = row["right"], row["interval"]
            if not right or max(right) > images or abs(row["top1"] - sum(right) / len(right) / images) > 1e-6:
                raise ArtifactError(f"{where}: {right} correct of {images} images is not a top-1 of {row['top1']}")
            if not low <= row["top1"] + 1e-9 or not row["top1"] <= high + 1e-9:
                raise ArtifactError(f"{where}: the interval of {row['rule']} does not contain its top-1")
        if not all(test["p"] for test in at["tests"]):
            raise ArtifactError(f"{where}.tests: a test has no p value")


def _verification(record: Mapping[str, Any]) -> None:
    if not record["comparisons"] and not record["failures"]:
        raise ArtifactError("file.comparisons: is empty")


def _maps(record: Mapping[str, Any]) -> None:
    points = len(record["fractions"])
    if len(record["sides"]) != 2 or points < 2:
        raise ArtifactError("file.sides: expected two sides with curves of at least two points")
    for side in record["sides"]:
        if side["name"] not in record["gain_over_random"]:
            raise ArtifactError(f"file.gain_over_random: has no entry {side['name']!r}")
        if any(
            len(side[key]["curve"]) != points
            for key in ("insertion", "deletion", "insertion_random", "deletion_random")
        ):
            raise ArtifactError(f"file.sides: a curve does not have {points} points")


def _sensitivity(record: Mapping[str, Any]) -> None:
    search = record["search"]
    if not record["layers"]:
        raise ArtifactError("file.layers: is empty")
    if search is not None and search["best"] is not None and search["best"] >= len(search["tries"]):
        raise ArtifactError("file.search.best: is not the number of a set")


def _front(record: Mapping[str, Any]) -> None:
    points, chosen = record["points"], record["recommended"]
    if not any(point["is_front"] for point in points):
        raise ArtifactError("file.points: none is on the front")
    for number, point in enumerate(points):
        if point["checkpoint"] >= len(record["checkpoints"]):
            raise ArtifactError(f"file.points[{number}].checkpoint: is not the number of a checkpoint")
        if point["is_front"] and point[record["cost"]["axis"]] is None:
            raise ArtifactError(
                f"file.points[{number}]: has no {record['cost']['axis']}, over which the front is drawn"
            )
    if chosen is not None and chosen["point"] >= len(points):
        raise ArtifactError("file.recommended.point: is not the number of a point")


EVALUATION = Kind(forms.EVALUATION, frozenset({"results"}), _evaluation, "evaluations")
VERIFICATION = Kind(forms.VERIFICATION, frozenset({"comparisons"}), _verification, "verifications")
MAPS = Kind(forms.MAPS, frozenset({"fractions"}), _maps, "")
CONTROLS = Kind(forms.CONTROLS, frozenset({"budgets", "has_marks"}), _controls, "controls")
SENSITIVITY = Kind(forms.SENSITIVITY, frozenset({"layers", "everything"}), _sensitivity, "sensitivities")
FRONT = Kind(forms.FRONT, frozenset({"points", "recommended"}), _front, "fronts")
KINDS = (
    FRONT,
    EVALUATION,
    Kind(forms.PREDICTIONS, frozenset({"predictions"}), _any, "predictions"),
    VERIFICATION,
    SENSITIVITY,
    CONTROLS,
    Kind(forms.CARD, frozenset({"class_counts"}), _any, "cards"),
    Kind(forms.RANGES, frozenset({"tensors"}), _any, "ranges"),
    Kind(forms.SELECTION, frozenset({"limit", "stages"}), _any, "selections"),
)
"""Kinds of files in a run's folder, outside of artefacts."""
