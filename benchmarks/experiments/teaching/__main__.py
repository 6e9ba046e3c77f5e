"""Teaches the ranking of patches in several ways, and compares each with training without it, from one checkpoint.

python -m gft_edge.benchmarks.experiments.teaching runs/scenes --out runs/teaching
"""

from __future__ import annotations

from collections.abc import Sequence

from gft_edge.benchmarks.experiments.teaching.command import main as study
from gft_edge.errors import exit_code


def main(arguments: Sequence[str] | None = None) -> int:
    """Trains every arm, with the seeds that were asked for."""
    return study(__doc__ or "", arguments)


if __name__ == "__main__":
    raise SystemExit(exit_code(main))
