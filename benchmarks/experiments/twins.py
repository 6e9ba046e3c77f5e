"""Chosen patches against a twin that was trained on random ones, cut in the first block, from one checkpoint.

python -m gft_edge.benchmarks.experiments.twins runs/scenes --out runs/twins
"""

from __future__ import annotations

from collections.abc import Sequence

from gft_edge.benchmarks.experiments.teaching.command import main as study
from gft_edge.benchmarks.experiments.teaching.plan import PLAIN, TWIN, Plan
from gft_edge.errors import exit_code

PLAN = Plan(data="scenes", size=192, budgets=("72", "36", "18"), batch_size=24)
"""The task itself: 12.5, 6 and 3 % of 576 patches."""
TAUGHT = "gradient-attention"


def main(arguments: Sequence[str] | None = None) -> int:
    """Trains the pair and the taught one, with the seeds that were asked for."""
    return study(__doc__ or "", arguments, PLAN, f"{PLAIN},{TWIN},{TAUGHT}")


if __name__ == "__main__":
    raise SystemExit(exit_code(main))
