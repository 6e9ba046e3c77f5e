"""The picture of accuracy against latency beside images with the patches kept."""

from __future__ import annotations

import io

import numpy as np
from matplotlib.axes import Axes
from PIL import Image

from gft_edge.report.figures.overview import Scene, overview

ROW = {"precision": "fp32", "budget": "4-4", "share": 1.0, "top1": 0.9, "interval": [0.8, 0.95], "p50_ms": 8.0}


def test_it_says_under_which_conditions_and_what_each_budget_answers(monkeypatch):
    titles = []
    real = Axes.set_title
    monkeypatch.setattr(Axes, "set_title", lambda axes, text, **more: (titles.append(text), real(axes, text, **more)))
    rows = [{**ROW, "verdict": "stable"}, {**ROW, "precision": "int8", "p50_ms": 3.0, "verdict": "unstable"}]
    data = {"data": "parts", "images": 40, "machine": {"cpu": {"model": "Test CPU"}}, "rows": rows}
    picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    scenes = [Scene((picture, picture), ("A", "A")), Scene((picture, picture), ("B", "C"))]
    first = overview(data, scenes, (0.3,))
    assert titles[0].endswith("40 test images of parts, ONNX Runtime, Test CPU; 1 of 2 latencies unstable")
    assert titles[1:] == ["image\nclass A", "30 % of the patches\nsays A", "class B", "says C"]
    drawn = Image.open(io.BytesIO(first))
    assert drawn.format == "PNG" and drawn.width > 1200
    assert overview(data, scenes, (0.3,)) == first
