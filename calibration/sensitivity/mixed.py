"""Mixed precision: chooses the INT8 layers that save most time while the model stays within an accuracy limit.

Noise and time are both assumed to add: errors of different layers are independent, so the noise powers they add to the logits
sum up (as in Lin et al., ICML 2016, arXiv 1511.06393), and so do the times they save. The best choice is then a knapsack, which
is solved exactly. Both assumptions are approximate, so the chosen model is run, and predicted and observed figures are reported.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gft_edge.calibration.sensitivity.effects import Effect, Sensitivity
from gft_edge.errors import ConfigError
from gft_edge.quant.policy import QuantPolicy, QuantRule

DRAWS = 20
ATTEMPTS = 8
"""Most sets that are run, unless none of them is within the limit yet."""
CLOSE = 1.05
"""The search ends when its noise limits are this close to each other (0.2 dB)."""
HIGHEST_SQNR_DB = 200.0

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class AccuracyLimit:
    """Largest loss of mixed precision against full precision, on the images it is chosen on.

    Args:
        max_loss: points of top-1, or None.
        min_sqnr_db: of the logits, or None.

    Raises:
        ConfigError: neither is given, or one is out of range.
    """

    max_loss: float | None = None
    min_sqnr_db: float | None = None

    def __post_init__(self) -> None:
        if self.max_loss is None and self.min_sqnr_db is None:
            raise ConfigError("mixed precision: needs a limit, points of top-1 or dB")
        if self.max_loss is not None and not 0 <= self.max_loss < 100:
            raise ConfigError(f"--max-loss must be points of top-1 from 0 to below 100, found {self.max_loss:g}")
        if self.min_sqnr_db is not None and not 0 < self.min_sqnr_db <= HIGHEST_SQNR_DB:
            raise ConfigError(
                f"--min-sqnr must be above 0 and at most {HIGHEST_SQNR_DB:g} dB, found {self.min_sqnr_db:g}"
            )

    def holds(self, effect: Effect) -> bool:
        """Returns whether an observed effect is within the limit."""
        sqnr = math.inf if effect.sqnr_db is None else effect.sqnr_db
        return (self.max_loss is None or effect.lost_points <= self.max_loss + 1e-9) and (
            self.min_sqnr_db is None or sqnr >= self.min_sqnr_db
        )

    def __str__(self) -> str:
        """Returns the limit in words."""
        loss = None if self.max_loss is None else f"at most {self.max_loss:g} points of top-1 lost"
        sqnr = None if self.min_sqnr_db is None else f"logit SQNR of at least {self.min_sqnr_db:g} dB"
        return " and ".join(text for text in (loss, sqnr) if text)


@dataclass(frozen=True)
class Attempt:
    """One set of layers in INT8, predicted and run.

    Attributes:
        int8: names, in the order of the model.
        noise: predicted mean square error of the logits.
        sqnr_db, lost_points, saved_ms: predicted; ``sqnr_db`` None when no noise is.
        observed: effect when it was run.
        holds: whether the observed effect is within the limit.
    """

    int8: tuple[str, ...]
    noise: float
    sqnr_db: float | None
    lost_points: float
    saved_ms: float
    observed: Effect
    holds: bool

    def to_json(self) -> dict[str, Any]:
        """Returns plain JSON values."""
        return {**asdict(self), "int8": list(self.int8), "observed": self.observed.to_json()}


@dataclass(frozen=True)
class MixedPrecision:
    """Result of a search.

    Attributes:
        limit: of the search.
        attempts: in the order they were run.
        best: the attempt within the limit that saves most time; None when there is none.
    """

    limit: AccuracyLimit
    attempts: tuple[Attempt, ...]
    best: Attempt | None

    def to_json(self) -> dict[str, Any]:
        """Returns plain JSON values."""
        return {
            "limit": asdict(self.limit),
            "tries": [one.to_json() for one in self.attempts],
            "best": None if self.best is None else self.attempts.index(self.best),
        }


def knapsack(noise: Sequence[float], saved: Sequence[float], limit: float) -> tuple[int, ...]:
    """Returns the items with the largest sum of ``saved`` whose ``noise`` sums to at most ``limit``; exact.

    Dynamic programming over the sets that no other set beats in both sums (Nemhauser and Ullmann, 1969), without those
    whose upper bound (Dantzig: with a share of one item) is below the greedy solution. Of equally good sets it returns one of
    least noise. Items that save nothing are left out.

    Args:
        noise: of each item, at least 0.
        saved: of each item.
        limit: of the noise; infinite takes all items that save something.

    Returns:
        indices, ascending.
    """
    items = [i for i in range(len(saved)) if saved[i] > 0 and noise[i] <= limit]
    items.sort(key=lambda i: (noise[i] / saved[i], i))
    if math.fsum(noise[i] for i in items) <= limit:
        return tuple(sorted(items))
    weights: Floats = np.array([noise[i] for i in items], dtype=np.float64)
    values: Floats = np.array([saved[i] for i in items], dtype=np.float64)
    used, gained = np.zeros(1), np.zeros(1)
    steps: list[tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]] = []
    for number, (weight, value) in enumerate(zip(weights, values)):
        count = len(used)
        fits = np.flatnonzero(used + weight <= limit)
        parents = np.concatenate((np.arange(count), fits))
        taken = np.arange(count + len(fits)) >= count
        used = np.concatenate((used, used[fits] + weight))
        gained = np.concatenate((gained, gained[fits] + value))
        order = np.lexsort((-gained, used))
        ahead = np.maximum.accumulate(np.concatenate(([-np.inf], gained[order][:-1])))
        order = order[gained[order] > ahead]
        whole, bound = _completions(limit - used[order], weights[number + 1 :], values[number + 1 :])
        reached = (gained[order] + whole).max()
        order = order[gained[order] + bound >= reached * (1 - 1e-12)]
        used, gained = used[order], gained[order]
        steps.append((parents[order], taken[order]))
    state = int(gained.argmax())
    chosen = []
    for number in range(len(steps) - 1, -1, -1):
        parents, taken = steps[number]
        if taken[state]:
            chosen.append(items[number])
        state = int(parents[state])
    return tuple(sorted(chosen))


def _completions(room: Floats, weights: Floats, values: Floats) -> tuple[Floats, Floats]:
    """Returns gains of adding the following items in order to the room left (S,): whole items, and with a share of the next."""
    filled, gained = np.concatenate(([0.0], np.cumsum(weights))), np.concatenate(([0.0], np.cumsum(values)))
    count = np.searchsorted(filled, room, side="right") - 1
    whole = gained[count]
    share = np.zeros_like(room)
    more = count < len(weights)
    following = count[more]
    share[more] = (room[more] - filled[following]) / weights[following] * values[following]
    return whole, whole + share


class LossModel:
    """Predicts the top-1 loss at a noise of the logits: the noise of the model with every layer in INT8, scaled and shuffled.

    Each image gets the noise of another one, so a prediction rests on ``DRAWS`` times as many cases as there are images.

    Args:
        found: measured.
        seed: of the draws.
    """

    def __init__(self, found: Sensitivity, seed: int = 0) -> None:
        self._logits = found.reference.astype(np.float64)
        self._noise = found.quantized.astype(np.float64) - self._logits
        self._labels = found.labels
        self._power = float(np.square(self._noise).mean())
        self._draws = np.random.default_rng(seed).integers(len(self._noise), size=(DRAWS, len(self._noise)))
        self._right = self._share(0.0)

    def _share(self, scale: float) -> float:
        if scale == 0:
            return float((self._logits.argmax(axis=1) == self._labels).mean())
        draws = (self._logits + scale * self._noise[rows] for rows in self._draws)
        return float(np.mean([(one.argmax(axis=1) == self._labels).mean() for one in draws]))

    def lost_points(self, noise: float) -> float:
        """Returns the points of top-1 lost at a mean square noise."""
        return 100 * (self._right - self._share(math.sqrt(noise / self._power) if self._power else 0.0))

    def noise_limit(self, max_loss: float, most: float) -> float:
        """Returns the largest noise up to ``most`` that loses at most so many points, to one part in a thousand."""
        if self.lost_points(most) <= max_loss:
            return most
        low, high = most * 1e-6, most
        while high > low * 1.001:
            middle = math.sqrt(low * high)
            low, high = (middle, high) if self.lost_points(middle) <= max_loss else (low, middle)
        return low


def search_mixed(
    found: Sensitivity, saved_ms: Mapping[str, float], limit: AccuracyLimit, run: Callable[[Sequence[str]], Effect]
) -> MixedPrecision:
    """Finds the layers to run in INT8.

    The first attempt is all layers that save time. If it misses the limit, the best set by the sums is run, and the allowed noise
    is bisected (in dB) between values that hold and miss, until the two are close or enough sets were run and one holds. Where
    no layer alone is within the limit, nothing is run.

    Args:
        found: measured, layer by layer.
        saved_ms: of each layer.
        limit: of the loss.
        run: runs the model with these layers in INT8.
    """
    names = [layer.name for layer in found.layers]
    noise = [layer.only.noise for layer in found.layers]
    saved = [saved_ms[name] for name in names]
    losses = LossModel(found)
    attempts: dict[tuple[str, ...], Attempt] = {}

    def attempt(allowed: float) -> Attempt | None:
        """Runs the best set within a noise; None when it is empty."""
        chosen = knapsack(noise, saved, allowed)
        int8 = tuple(names[i] for i in chosen)
        if chosen and int8 not in attempts:
            power = math.fsum(noise[i] for i in chosen)
            sqnr = 10 * math.log10(found.signal / power) if power else None
            gain = math.fsum(saved[i] for i in chosen)
            effect = found.everything if len(int8) == len(names) else run(int8)
            attempts[int8] = Attempt(int8, power, sqnr, losses.lost_points(power), gain, effect, limit.holds(effect))
        return attempts.get(int8)

    def finish() -> MixedPrecision:
        holding = [one for one in attempts.values() if one.holds]
        best = max(holding, key=lambda one: (one.saved_ms, -one.noise), default=None)
        return MixedPrecision(limit, tuple(attempts.values()), best)

    if not any(limit.holds(layer.only) and saved_ms[layer.name] > 0 for layer in found.layers):
        return finish()
    whole = attempt(math.inf)
    if whole is None or whole.holds:
        return finish()
    least = min(n for n, gain in zip(noise, saved) if gain > 0)
    low, high = least, whole.noise
    allowed = min(_noise_limit(found, limit, losses, whole.noise), math.nextafter(whole.noise, 0))
    allowed = max(allowed, least)
    while True:
        one = attempt(allowed)
        assert one is not None  # at least the layer of least noise fits
        if one.holds:
            low = allowed
        else:
            high = one.noise
        settled = any(one.holds for one in attempts.values())
        if high <= least or (settled and (high < low * CLOSE or len(attempts) >= ATTEMPTS)):
            return finish()
        allowed = max(math.sqrt(low * high), least)
        if allowed >= high:
            allowed = math.nextafter(high, 0)


def _noise_limit(found: Sensitivity, limit: AccuracyLimit, losses: LossModel, most: float) -> float:
    """Returns the noise that both limits allow by the models."""
    allowed = most
    if limit.min_sqnr_db is not None:
        allowed = min(allowed, found.signal / 10 ** (limit.min_sqnr_db / 10))
    if limit.max_loss is not None:
        allowed = min(allowed, losses.noise_limit(limit.max_loss, most))
    return allowed


def mixed_policy(found: Sensitivity, saved_ms: Mapping[str, float], int8: Sequence[str]) -> QuantPolicy:
    """Returns a policy with one rule for each layer; its reason holds the measured figures."""
    rules = []
    for layer in found.layers:
        alone = "no error" if layer.only.sqnr_db is None else f"{layer.only.sqnr_db:.1f} dB"
        saved = saved_ms[layer.name]
        gain = f"saves {saved:.4f} ms" if saved > 0 else f"saves no time ({saved:+.4f} ms)"
        if layer.name in int8:
            rules.append(QuantRule(layer.name, "int8", f"{alone} alone, {gain}"))
        else:
            rules.append(
                QuantRule(
                    layer.name,
                    "high",
                    f"{alone} alone in INT8, {gain}" + (" but is not within the limit" if saved > 0 else ""),
                )
            )
    rules.append(QuantRule("*", "high", "not among the layers that were measured"))
    return QuantPolicy(tuple(rules))
