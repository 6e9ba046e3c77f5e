"""Static token budgets: how many patches each stage keeps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gft_edge.constants import MAX_TOPK
from gft_edge.errors import ConfigError

MIN_TOKENS = 2
"""The spatial gradient of GALA needs two neighbouring patches."""
PREFIX_TOKENS = 1
"""Tokens before the patches of a model with a class token alone; others have more."""


def patches_per_block(stages: Sequence[int], keep: Sequence[int], num_patches: int, depth: int) -> tuple[int, ...]:
    """Returns the number of patches that enter each of ``depth`` blocks; a selecting block makes keys and values of these.

    Args:
        stages: the blocks that select, counted from 1. A stage of the published variant stands behind its block, which is the same
            here.
        keep: patches kept by each stage.
        num_patches: patches of the whole image.
        depth: number of blocks.
    """
    kept = dict(zip(stages, keep))
    counts = [num_patches]
    for block in range(1, depth):
        counts.append(kept.get(block, counts[-1]))
    return tuple(counts)


def rows_per_block(stages: Sequence[int], keep: Sequence[int], num_patches: int, depth: int) -> tuple[int, ...]:
    """Returns the number of patches for which each block of a focal model computes attention rows, projection and MLP.

    A selecting block computes them for the patches it keeps. Behind the last selection only the class token is read, so the
    last block computes them for none once a patch was dropped. The arguments are those of :func:`patches_per_block`.
    """
    kept = dict(zip(stages, keep))
    entering = patches_per_block(stages, keep, num_patches, depth)
    rows = [kept.get(block, patches) for block, patches in enumerate(entering, start=1)]
    if rows[-1] < num_patches:
        rows[-1] = 0
    return tuple(rows)


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


@dataclass(frozen=True)
class TokenBudget:
    """Patches kept by each stage, the tokens before the patches (class token) not counted.

    Args:
        keep: one count per stage, non-increasing, each between 2 and ``num_patches``.
        num_patches: patches of the whole image, at most 3840. A model without stages has the budget ``NO_BUDGET``.

    Raises:
        ConfigError: a count is not an integer, grows, or is out of range.
    """

    keep: tuple[int, ...]
    num_patches: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "keep", tuple(self.keep))
        if not _is_int(self.num_patches) or not all(_is_int(k) for k in self.keep):
            raise ConfigError(f"token budget: counts must be integers, found {self.keep!r} of {self.num_patches!r}")
        if not self.keep and self.num_patches == 0:
            return
        if not MIN_TOKENS <= self.num_patches <= MAX_TOPK:
            raise ConfigError(
                f"token budget: number of patches must be {MIN_TOKENS} to {MAX_TOPK}, found {self.num_patches}"
            )
        if not self.keep:
            raise ConfigError("token budget: needs at least one stage, for example '108,72,36'")
        available = self.num_patches
        for stage, k in enumerate(self.keep, start=1):
            if k < MIN_TOKENS:
                raise ConfigError(f"token budget {self.id}: stage {stage} keeps {k}, must keep at least {MIN_TOKENS}")
            if k > available:
                source = "the image has" if stage == 1 else f"stage {stage - 1} keeps"
                raise ConfigError(
                    f"token budget {self.id}: stage {stage} keeps {k} but {source} only {available}; "
                    "counts must not grow"
                )
            available = k

    @classmethod
    def parse(cls, text: str, num_patches: int) -> TokenBudget:
        """Reads ``"147,98,49"``, ``"147-98-49"``, or ratios with a point or per cent such as ``"75%,50%,25%"``."""
        parts = [part.strip() for part in text.replace("-", ",").split(",")]
        try:
            if any("." in part or part.endswith("%") for part in parts):
                ratios = [float(part[:-1]) / 100 if part.endswith("%") else float(part) for part in parts]
                return cls.from_ratios(tuple(ratios), num_patches)
            return cls(tuple(int(part) for part in parts), num_patches)
        except ValueError as error:
            if isinstance(error, ConfigError):
                raise
            raise ConfigError(
                f"token budget {text!r}: expected counts such as '147,98,49' or shares such as '75%,50%,25%'"
            ) from None

    @classmethod
    def from_ratios(cls, ratios: tuple[float, ...], num_patches: int) -> TokenBudget:
        """Floors each ratio of ``num_patches``, as the published code does: (.75, .5, .25) of 196 is 147, 98, 49."""
        if not all(0 < ratio <= 1 for ratio in ratios):
            raise ConfigError(f"token budget: ratios must be above 0 and at most 1, found {ratios}")
        return cls(tuple(int(num_patches * ratio) for ratio in ratios), num_patches)

    @classmethod
    def full(cls, num_stages: int, num_patches: int) -> TokenBudget:
        """Returns the budget that keeps every patch in each of ``num_stages`` stages."""
        return cls((num_patches,) * num_stages, num_patches)

    @property
    def id(self) -> str:
        """The name used in files and tables, for example ``147-98-49``; ``all`` for a model without stages."""
        return "-".join(str(k) for k in self.keep) or "all"

    @property
    def stage_inputs(self) -> tuple[int, ...]:
        """Number of patches that enter each stage."""
        return (self.num_patches, *self.keep[:-1])

    def align(self, multiple: int, num_prefix_tokens: int) -> TokenBudget:
        """Rounds each stage's tokens to the nearest multiple, up on a tie.

        Token counts that are multiples of 8 or 16 fill the tiles of INT8 and FP16 matrix kernels. A stage that keeps
        every patch does not change; the result is a valid budget.

        Args:
            multiple: that patches and the tokens before them are to be together.
            num_prefix_tokens: the model's tokens before the patches.

        Raises:
            ConfigError: ``multiple`` is not a positive integer.
        """
        if not _is_int(multiple) or multiple < 1:
            raise ConfigError(f"token budget: align needs a positive integer, found {multiple!r}")
        keep = []
        available = self.num_patches
        for k in self.keep:
            if k < self.num_patches:
                aligned = (k + num_prefix_tokens + multiple // 2) // multiple * multiple - num_prefix_tokens
                while aligned > available:
                    aligned -= multiple
                k = aligned if aligned >= MIN_TOKENS else min(k, available)
            keep.append(k)
            available = k
        return TokenBudget(tuple(keep), self.num_patches)

    def to_json(self) -> dict[str, Any]:
        """Returns the budget as plain JSON values."""
        return {"keep": list(self.keep), "num_patches": self.num_patches}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> TokenBudget:
        """Reads what :meth:`to_json` returns."""
        try:
            return cls(tuple(data["keep"]), data["num_patches"])
        except (KeyError, TypeError) as error:
            raise ConfigError(f"token budget: expected keep and num_patches, found {data!r}") from error


NO_BUDGET = TokenBudget((), 0)
"""Budget of a model without stages."""
