"""The search: candidates by cost, accuracy of some from one set of weights, the front measured again, one recommended point."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from gft_edge.budget import TokenBudget
from gft_edge.calibration.options import CalibrationOptions, Callbacks
from gft_edge.checkpoint import Checkpoint, require_full_precision
from gft_edge.control_rules import require_selection
from gft_edge.data.datasets import split_names
from gft_edge.data.for_model import Request, forward_notes, known_data, labelled_images
from gft_edge.data.sets import Kept, Subset, spread
from gft_edge.data.splits import Split
from gft_edge.data.trained import not_trained_on
from gft_edge.errors import CheckFailed, ConfigError
from gft_edge.evaluation import torch_threads
from gft_edge.labels import first_difference
from gft_edge.quant.policy import DEFAULT_POLICY, QuantPolicy, read_policy
from gft_edge.search.accuracy import Rights, measure_rights, models_of
from gft_edge.search.candidates import Candidates, find_candidates
from gft_edge.search.front import coarse, over_strata, pareto, predicted
from gft_edge.search.options import UNITS, SearchOptions
from gft_edge.search.point import Cost, OperatingPoint
from gft_edge.search.points import AXES, Found, Point, Subject, is_full, within
from gft_edge.search.pricing import Pricing, pricing
from gft_edge.search.record import result

FIRST_ROUND = 0.5
"""Share of the points that are measured before a fit says where the rest are worth most."""
COARSE = 10
"""Counts that are preferred, since budgets with a count in common share blocks."""
KEPT_BYTES = 1_000_000_000
"""Of decoded images that stay in memory."""


def require_same_labels(names: Sequence[str], checkpoints: Sequence[Checkpoint]) -> None:
    """Refuses checkpoints of other classes.

    Raises:
        ConfigError: names the first label that differs.
    """
    first = checkpoints[0].info.labels
    for name, checkpoint in zip(names[1:], checkpoints[1:]):
        if difference := first_difference(checkpoint.info.labels, first):
            number, own, theirs = difference
            raise ConfigError(
                f"checkpoint {name}: other classes than {names[0]}: label {number} is {own}, there {theirs}; compare checkpoints "
                "of the same labels in the same order"
            )


def search(
    names: Sequence[str],
    checkpoints: Sequence[Checkpoint],
    options: SearchOptions,
    folder: Path,
    callbacks: Callbacks | None = None,
) -> Found:
    """Searches budgets and precisions of checkpoints for the front of accuracy and cost, and recommends a point.

    Args:
        names: of the checkpoints, as commands take them.
        checkpoints: opened; focal, in full precision, of the same labels.
        options: what is asked for.
        folder: of the result, for the commands.
        callbacks: progress, notes and images that cannot be read.

    Raises:
        ConfigError: a checkpoint that cannot be searched, other labels, a point without a cost.
        DataError: nothing usable in the data.
        CheckFailed: no budget is within the limits (the message has the nearest), or logits that are not finite.
    """
    callbacks = callbacks or Callbacks()
    started = time.monotonic()
    for name, checkpoint in zip(names, checkpoints):
        require_selection(checkpoint.info.model, f"checkpoint {name}")
        require_full_precision(checkpoint.info, checkpoint.path)
    require_same_labels(names, checkpoints)
    policies = {"int8": DEFAULT_POLICY, **{f"int8:{path.stem}": read_policy(path) for path in options.policies}}
    data = known_data(options.data, checkpoints[0].info.data, f"checkpoint {names[0]}")
    split = options.split or _choice_split(data)
    cost = pricing(names, checkpoints, options, policies, callbacks.track)
    candidates = [_candidates(name, each, options, cost) for name, each in zip(names, checkpoints)]
    _require_within(names, candidates, options)
    unreadable: list[str] = []
    callbacks = dataclasses.replace(callbacks, problem=lambda text: _once(unreadable, text))
    with torch_threads(options.threads):
        subjects = _open(names, checkpoints, candidates, (data, split), options, policies, callbacks)
        points = [point for n in range(len(subjects)) for point in _explore(n, subjects[n], options, callbacks)]
        _measure_front(subjects, points, options, callbacks)
    record, unmet = result(subjects, points, options, cost, (data, split), folder)
    return Found({**record, "seconds": time.monotonic() - started}, tuple(unreadable), unmet)


def _once(texts: list[str], text: str) -> None:
    if text not in texts:
        texts.append(text)


def _choice_split(data: str) -> Split:
    return "val" if "val" in split_names(data) else "test"


def _candidates(name: str, checkpoint: Checkpoint, options: SearchOptions, cost: Pricing) -> dict[str, Candidates]:
    config = checkpoint.info.model

    def of(precision: str) -> Candidates:
        def price(budget: TokenBudget) -> Cost:
            return cost.model(OperatingPoint(name, config, budget, precision))

        also = (config.budget, config.full_budget, *cost.measured)
        return find_candidates(config, price, options.align, options.seed, also)

    return {precision: of(precision) for precision in options.all_precisions}


def _require_within(names: Sequence[str], candidates: Sequence[dict[str, Candidates]], options: SearchOptions) -> None:
    """Refuses limits that no candidate is within.

    Raises:
        CheckFailed: names the nearest candidate.
    """
    every = [(n, p, c) for n, of_one in zip(names, candidates) for p, c in of_one.items()]
    if any(within(c.costs, options).any() for _, _, c in every):
        return
    excess = [
        np.nan_to_num(
            np.max([c.costs[:, AXES[name]] / value for name, value in options.limits.items()], axis=0), nan=np.inf
        )
        for _, _, c in every
    ]
    place = int(np.argmin([part.min() for part in excess]))
    name, precision, found = every[place]
    row = int(excess[place].argmin())
    costs = ", ".join(f"{found.costs[row, AXES[n]]:.4g} {UNITS[n]}" for n, _ in options.limits.items())
    raise CheckFailed(
        f"no budget is within {options.limits.describe()}: the nearest of {sum(len(c.chains) for _, _, c in every)} is {name} at "
        f"{found.budget(row).id} in {precision}, {costs}"
    )


def _open(
    names: Sequence[str],
    checkpoints: Sequence[Checkpoint],
    candidates: Sequence[dict[str, Candidates]],
    where: tuple[str, Split],
    options: SearchOptions,
    policies: dict[str, QuantPolicy],
    callbacks: Callbacks,
) -> list[Subject]:
    """Opens the same images for every checkpoint, those left out that any of them was trained on, and makes the models."""
    data, split = where
    subjects = []
    calibration = CalibrationOptions(data=data, images=options.calibration_images)
    for name, checkpoint, found in zip(names, checkpoints, candidates):
        info = checkpoint.info
        images = labelled_images(Request(data, split, options.images), info.model.image_size, info.labels)
        for other in checkpoints:
            images = not_trained_on(images, other.path, split, data)
        if callbacks.note is not None and checkpoint is checkpoints[0]:
            forward_notes(images, callbacks.note)
        models = models_of(checkpoint, options.all_precisions, policies, calibration, callbacks)
        subjects.append(Subject(name, checkpoint, Kept(images, KEPT_BYTES), models, found))
    return subjects


def _explore(number: int, subject: Subject, options: SearchOptions, callbacks: Callbacks) -> list[Point]:
    """Measures points of a checkpoint on the subset: first over all costs, then where a fit promises most."""
    images = subject.images
    if len(images) > options.subset:
        images = Subset(images, spread(len(images), options.subset))
    share = -(-options.points // len(subject.candidates))
    first = max(1, round(FIRST_ROUND * share))
    axis = AXES[options.axis]
    rows: dict[str, list[int]] = {}
    answers: dict[str, list[Rights]] = {precision: [] for precision in subject.candidates}
    config = subject.checkpoint.info.model
    shared = {p: np.isin(found.chains, coarse(found.chains, COARSE)) for p, found in subject.candidates.items()}
    for count, title in ((first, "first budgets"), (share - first, "further budgets")):
        new: dict[str, list[int]] = {}
        for place, (precision, found) in enumerate(subject.candidates.items()):
            known = rows.setdefault(precision, [])
            axis_costs, taken = found.costs[:, axis], ~within(found.costs, options)
            taken[known] = True
            if known:
                values = np.array([right.mean() for right in answers[precision]])
                worth = predicted(found.chains, np.array(known), values) + shared[precision][:, 0]
            else:
                draws = np.random.default_rng(options.seed + place).random(len(found.chains))
                worth = draws + shared[precision].all(axis=1)
            chosen = over_strata(axis_costs, worth, count, taken)
            if not known:
                # The full budget is what the others are compared with, whatever it costs.
                own = [found.row_of(config.budget), found.row_of(config.full_budget)]
                chosen = list(dict.fromkeys([row for row in own if row is not None] + chosen))
            new[precision] = chosen
        work = [
            (subject.models[precision], [subject.candidates[precision].budget(row) for row in chosen])
            for precision, chosen in new.items()
        ]
        if not any(budgets for _, budgets in work):
            continue
        measured, _ = measure_rights(
            work,
            images,
            subject.checkpoint.info.preprocess,
            f"checkpoint {subject.name}",
            callbacks.problem,
            callbacks.track,
            f"{subject.name}: {sum(len(chosen) for chosen in new.values())} {title}",
        )
        for (precision, chosen), part in zip(new.items(), measured):
            rows[precision] += chosen
            answers[precision] += list(part)
    return [
        Point(
            number, precision, found.budget(row), found.costs[row], right, bool(within(found.costs[[row]], options)[0])
        )
        for precision, found in subject.candidates.items()
        for row, right in zip(rows[precision], answers[precision])
    ]


def _front(points: Sequence[Point], axis: int) -> list[int]:
    return pareto(np.array([p.costs[axis] for p in points]), np.array([p.top1 for p in points]))


def _measure_front(
    subjects: Sequence[Subject], points: Sequence[Point], options: SearchOptions, callbacks: Callbacks
) -> None:
    """Measures the points of the front, and every patch, on all images; then marks the front among these."""
    axis = AXES[options.axis]
    inside = [point for point in points if point.within]
    again = [inside[n] for n in _front(inside, axis)]
    again += [p for p in points if is_full(p, subjects) and not any(p is q for q in again)]
    for number, subject in enumerate(subjects):
        work = [
            (precision, [p for p in again if p.subject == number and p.precision == precision])
            for precision in subject.models
        ]
        measured, _ = measure_rights(
            [(subject.models[precision], [p.budget for p in part]) for precision, part in work],
            subject.images,
            subject.checkpoint.info.preprocess,
            f"checkpoint {subject.name}",
            callbacks.problem,
            callbacks.track,
            f"{subject.name}: front on all images",
        )
        for (_, part), rights in zip(work, measured):
            for point, right in zip(part, rights):
                point.rights, point.is_full_set = right, True
    final = [point for point in again if point.within]
    for n in _front(final, axis):
        final[n].is_front = True
