"""Measures whether importance maps show what a model looks at, and how compression changes them.

Insertion and deletion curves follow RISE (Petsiuk et al., BMVC 2018): patches replace those of a blurred image, or the mean
colour replaces patches of the image, in the order of their importance; the curve is the probability of the class predicted
for the whole image. With a good map it rises early and falls early. Every curve has one of a random order beside it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gft_edge.stats.grid import scatter
from gft_edge.stats.metrics import softmax, spearman
from gft_edge.stats.verdict import Assessment

Outputs = dict[str, npt.NDArray[Any]]
Run = Callable[[npt.NDArray[np.float32]], Outputs]
"""Preprocessed images (B, 3, H, W) to ``logits``, ``importance_i`` and ``kept_i``."""
POINTS = 13
RESAMPLES = 2000


@dataclass(frozen=True)
class MapLimits:
    """What compression may change of the maps.

    Args:
        area: under the insertion and deletion curves, which are probabilities over shares: between 0 and 1.
        rank_correlation: of each stage's map, mean over images, at least.
    """

    area: float = 0.01
    rank_correlation: float = 0.95


DEFAULT_MAP_LIMITS = MapLimits()


def map_fidelity(
    reference: tuple[str, Run], candidate: tuple[str, Run], images: npt.NDArray[np.float32], grid: tuple[int, int]
) -> dict[str, Any]:
    """Returns the curves of two models by their own maps, and the agreement of the maps.

    Args:
        reference: name and function.
        candidate: likewise.
        images: preprocessed, (B, 3, H, W).
        grid: rows and columns of patches; the first stage's importance has one value for each.

    Returns:
        Plain JSON values: ``fractions`` (points,), ``sides`` with mean curves and AUCs for the order of importance and for a random
        order, ``auc_change`` (candidate less reference, with a 95 % bootstrap interval over images), ``stages`` with rank
        correlation and top-k overlap.
    """
    sides, aucs, outputs = [], {}, {}
    for name, run in (reference, candidate):
        outputs[name] = run(images)
        curves = side_curves(run, images, outputs[name], grid)
        sides.append({"name": name, **{key: _summary(values) for key, values in curves.items()}})
        aucs[name] = {key: area(values) for key, values in curves.items()}
    change = {
        key: _mean_with_interval(aucs[candidate[0]][key] - aucs[reference[0]][key]) for key in ("insertion", "deletion")
    }
    gain = {
        name: {
            "insertion": _mean_with_interval(values["insertion"] - values["insertion_random"]),
            "deletion": _mean_with_interval(values["deletion_random"] - values["deletion"]),
        }
        for name, values in aucs.items()
    }
    return {
        "images": len(images),
        "grid": list(grid),
        "fractions": np.linspace(0, 1, POINTS).tolist(),
        "sides": sides,
        "auc_change": change,
        "gain_over_random": gain,
        "stages": map_agreement(outputs[reference[0]], outputs[candidate[0]], grid[0] * grid[1]),
    }


def assess_maps(record: Mapping[str, Any], limits: MapLimits = DEFAULT_MAP_LIMITS) -> Assessment:
    """Returns what a record of :func:`map_fidelity` says: an area within its limit is one whose whole interval is.

    The number of images that would decide follows from the interval, which shrinks with the root of their number.
    """
    failures, undecided, needed = [], [], []
    for curve in ("insertion", "deletion"):
        mean, (low, high) = record["auc_change"][curve]["mean"], record["auc_change"][curve]["interval"]
        text = f"{curve} area changes by {mean:+.4f} ({low:+.4f} to {high:+.4f}), allowed {limits.area}"
        if min(abs(low), abs(high)) > limits.area and low * high > 0:
            failures.append(text)
        elif max(abs(low), abs(high)) > limits.area:
            margin = abs(limits.area - abs(mean))
            count = math.ceil(record["images"] * ((high - low) / 2 / margin) ** 2) if margin else 0
            undecided.append(f"{text}: " + (f"about {count} images would decide" if count else "on the limit exactly"))
            needed += [count] if count else []
    for stage in record["stages"]:
        if stage["rank_correlation"] < limits.rank_correlation:
            failures.append(
                f"maps of stage {stage['stage'] + 1} have rank correlation {stage['rank_correlation']:.3f}, "
                f"limit {limits.rank_correlation}"
            )
    return Assessment(tuple(failures), tuple(undecided), max(needed, default=None))


def side_curves(
    run: Run, images: npt.NDArray[np.float32], outputs: Outputs, grid: tuple[int, int]
) -> dict[str, npt.NDArray[np.float64]]:
    """Returns curves (B, points) of one model: insertion and deletion by its first importance map, and by a random order."""
    classes = outputs["logits"].argmax(axis=1)
    by_importance = np.argsort(-outputs["importance_0"], axis=1, kind="stable")
    rng = np.random.default_rng(0)
    by_chance = np.stack([rng.permutation(grid[0] * grid[1]) for _ in images])
    starts = {
        "insertion": (blurred(images, images.shape[2] // grid[0]), images),
        "deletion": (images, mean_color(images)),
    }
    return {
        f"{kind}{suffix}": curve(run, start, end, order, classes, grid)
        for kind, (start, end) in starts.items()
        for suffix, order in (("", by_importance), ("_random", by_chance))
    }


def curve(
    run: Run,
    start: npt.NDArray[np.float32],
    end: npt.NDArray[np.float32],
    order: npt.NDArray[np.integer[Any]],
    classes: npt.NDArray[np.integer[Any]],
    grid: tuple[int, int],
) -> npt.NDArray[np.float64]:
    """Returns the probability of a class while the patches of one image are replaced by those of another.

    Args:
        run: the model.
        start: images at the first point, (B, 3, H, W).
        end: images at the last.
        order: patches in the order in which they are replaced, (B, P).
        classes: whose probability is returned, (B,).
        grid: rows and columns of patches.

    Returns:
        (B, POINTS), at equal steps of the share of patches replaced.
    """
    patches = order.shape[1]
    place = np.empty_like(order)
    np.put_along_axis(place, order, np.broadcast_to(np.arange(patches), order.shape), axis=1)
    rows, cols = start.shape[2] // grid[0], start.shape[3] // grid[1]
    probabilities = []
    for share in np.linspace(0, 1, POINTS):
        replaced = (place < round(share * patches)).reshape(-1, 1, *grid)
        mask = replaced.repeat(rows, axis=2).repeat(cols, axis=3)
        shares = softmax(run(np.where(mask, end, start))["logits"])
        probabilities.append(shares[np.arange(len(shares)), classes])
    return np.stack(probabilities, axis=1)


def area(curves: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Returns the area under curves (B, points) over equal steps of [0, 1], by trapezoids: (B,)."""
    return (curves[:, :-1] + curves[:, 1:]).mean(axis=1) / 2


def blurred(images: npt.NDArray[np.float32], radius: int) -> npt.NDArray[np.float32]:
    """Applies three box filters of 2 radius + 1 pixels to images (B, 3, H, W), close to a Gaussian; edges are repeated."""
    out = images.astype(np.float64)
    for axis in (2, 3) * 3:
        pad = [(0, 0)] * 4
        pad[axis] = (radius + 1, radius)
        sums = np.cumsum(np.pad(out, pad, mode="edge"), axis=axis)
        width, size = 2 * radius + 1, out.shape[axis]
        out = (np.take(sums, range(width, width + size), axis) - np.take(sums, range(size), axis)) / width
    return out.astype(np.float32)


def mean_color(images: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Returns images (B, 3, H, W) of one colour each, the mean of the image."""
    return np.broadcast_to(images.mean(axis=(2, 3), keepdims=True), images.shape)


def map_agreement(reference: Outputs, candidate: Outputs, num_patches: int) -> list[dict[str, Any]]:
    """Returns rank correlation and top-k overlap of the importance maps of each stage, means over images.

    k is the number of patches the stage keeps, and a tenth of the patches that enter it. Only patches that enter the stage on both
    sides are ranked.
    """
    everything = np.broadcast_to(np.arange(num_patches), (len(reference["logits"]), num_patches))
    inputs = (everything, everything)
    stages = []
    stage = 0
    while f"importance_{stage}" in reference and f"importance_{stage}" in candidate:
        sides = tuple(side[f"importance_{stage}"] for side in (reference, candidate))
        maps = [scatter(values, positions, (num_patches,)) for values, positions in zip(sides, inputs)]
        correlations = []
        for row in range(len(maps[0])):
            common = np.intersect1d(inputs[0][row], inputs[1][row])
            correlations.append(spearman(maps[0][row, common], maps[1][row, common]))
        kept = reference[f"kept_{stage}"].shape[1]
        tenth = max(1, sides[0].shape[1] // 10)
        stages.append(
            {
                "stage": stage,
                "rank_correlation": float(np.mean(correlations)),
                "kept": kept,
                "kept_overlap": top_k_overlap(maps[0], maps[1], kept),
                "top": tenth,
                "top_overlap": top_k_overlap(maps[0], maps[1], tenth),
            }
        )
        if f"kept_{stage}" not in candidate:
            break
        inputs = (reference[f"kept_{stage}"], candidate[f"kept_{stage}"])
        stage += 1
    return stages


def top_k_overlap(a: npt.NDArray[Any], b: npt.NDArray[Any], k: int) -> float:
    """Returns the share of the k largest of each row of ``a`` (B, P) among the k largest of ``b``, mean over rows."""
    best = [np.argsort(-values, axis=1, kind="stable")[:, :k] for values in (a, b)]
    return float(np.mean([len(np.intersect1d(x, y)) / k for x, y in zip(*best)]))


def _summary(curves: npt.NDArray[np.float64]) -> dict[str, Any]:
    return {"curve": curves.mean(axis=0).tolist(), "auc": float(area(curves).mean())}


def _mean_with_interval(values: npt.NDArray[np.float64]) -> dict[str, Any]:
    """Returns the mean over images with its 95 % bootstrap interval."""
    draws = np.random.default_rng(0).integers(len(values), size=(RESAMPLES, len(values)))
    low, high = np.percentile(values[draws].mean(axis=1), (2.5, 97.5))
    return {"mean": float(values.mean()), "interval": [float(low), float(high)]}
