from __future__ import annotations

import numpy as np

from gft_edge.data.images import read_image
from gft_edge.report.figures.map_pictures import write_map_picture


def test_picture_shows_the_image_and_both_maps(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    maps = [np.eye(16)[patch].reshape(4, 4) for patch in (0, 2)]
    write_map_picture(tmp_path / "maps.png", pixels, maps)
    shown = read_image(tmp_path / "maps.png")
    panel = 192
    assert shown.shape == (panel, 3 * panel + 16, 3)
    first, second = shown[:, panel + 8 : 2 * panel + 8], shown[:, 2 * panel + 16 :]
    assert first[10, 10].sum() > 3 * first[100, 100].sum()  # patch 0 is bright in one map
    assert second[10, 120].sum() > 3 * second[10, 10].sum()  # patch 2 in the other
