"""The page beside Model-Optimizer: its tables from recorded figures; what is missing is named."""

from __future__ import annotations

import pytest

from gft_edge.benchmarks.experiments.modelopt import candidates
from gft_edge.benchmarks.experiments.modelopt.__main__ import page
from gft_edge.errors import MissingExtraError


def row(title, **more):
    boundaries = {"same": 48, "lost": ["a"], "added": ["b", "c"], "changed": []}
    figures = {"top1": 0.9, "top1_difference": -0.01, "top1_interval": [-0.02, 0.001], "jaccard": [1.0, 0.985]}
    rest = {"logit_sqnr_db": 39.34, "speedup": [2.0, 1.6, 2.5], "ms": 3.0, "megabytes": 2.71, "not_finite": 0}
    lint = {
        "lint": {"GE002": 12},
        "lint_errors": 12,
        "verdict": "unstable",
        "boundaries": boundaries,
        "placeholder_scales": False,
    }
    return {"title": title, **figures, **rest, **lint, **more}


def data():
    return {
        "images": 1600,
        "calibration_images": 64,
        "rows": {
            "fp32": row("FP32"),
            "ours": row("ours"),
            "modelopt-default": row("theirs", not_finite=3, placeholder_scales=True),
        },
        "recipe": {
            "entries": 9,
            "layers": 24,
            "same_layers": False,
            "largest_difference_of_a_range": 1.2e-7,
            "sqnr_db": 80.2,
            "classes_differ": 0,
        },
        "autotune": {
            "points": {"ours": 0, "ours-baseline": 15},
            "tensors": 48,
            "left_out": [],
            "commands": ["python -m x", "python -m y"],
        },
        "packages": {"nvidia-modelopt": "0.47.0", "lief": None},
        "machine": {"cpu": {"model": "CPU"}},
    }


def test_page():
    text = page(data())
    assert "| ours | 90.00% | -1.00 (-2.00..+0.10) | 39.3 dB | 1.000 / 0.985 | 0.50x (0.40 to 0.62) | 2.7 MB |" in text
    assert "| theirs | 90.00% (scales are placeholders) |" in text
    assert "-1.00 (-2.00..+0.10); 3 not finite" in text
    assert "| theirs | 12 | GE002 12 | 48 | 1 | 2 | 0 |" in text
    assert "takes 0 places over" in text and "takes 15 places" in text
    assert "**not the same**" in text
    assert "\n    python -m x\n    python -m y\n\n" in text
    assert "nvidia-modelopt 0.47.0" in text and "lief" not in text
    assert "Times of 3 of the 3 graphs varied" in text


def test_missing_package_is_named():
    with pytest.raises(MissingExtraError, match=r"no_such_tool, which no_such_tool\.part needs, is not installed"):
        candidates.require_modelopt("no_such_tool.part")
