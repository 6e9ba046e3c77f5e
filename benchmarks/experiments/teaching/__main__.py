"""Teaches the ranking of patches in several ways, and compares each with training without it, from one checkpoint.

python -m gft_edge.benchmarks.experiments.teaching runs/scenes --out runs/teaching
"""

from __future__ import annotations

from gft_edge.benchmarks.experiments.teaching.command import main
from gft_edge.errors import exit_code

if __name__ == "__main__":
    raise SystemExit(exit_code(lambda: main(__doc__ or "")))
