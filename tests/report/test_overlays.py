from __future__ import annotations

import sys
import warnings

import numpy as np
import pytest
from PIL import Image

from gft_edge.errors import MissingExtraError
from gft_edge.report.figures.overlays import (
    FADED,
    GAP,
    HEADING,
    LEGEND,
    PANEL,
    PAPER,
    TITLE,
    label_text,
    overlay,
    write_overlay,
)
from gft_edge.runtime.classifier import Prediction


def _image(size=96, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)


def _prediction(grid=12, stages=2, seed=0):
    rng = np.random.default_rng(seed)
    importance = [rng.dirichlet(np.full(grid * grid, 0.1)).reshape(grid, grid) for _ in range(stages)]
    kept = [rng.random((grid, grid)) < 0.5 for _ in range(stages)]
    importance = tuple(np.maximum(i, 1e-12).astype(np.float32) for i in importance)
    return Prediction("ant", 0.9, np.zeros(4, np.float32), importance, tuple(kept))


def _panels(picture):
    step = PANEL + GAP
    count = (picture.shape[1] + GAP) // step
    for number in range(count - 1):
        assert (picture[:, number * step + PANEL : (number + 1) * step] == 255).all(), "white between panels"
    return [picture[:, number * step : number * step + PANEL] for number in range(count)]


@pytest.mark.parametrize("stages", [1, 2, 3])
@pytest.mark.parametrize("size", [32, 96, 224])
def test_panels_are_image_importance_and_one_per_stage(stages, size):
    picture = overlay(_image(size), _prediction(stages=stages), None)
    panels = 2 + stages
    assert picture.shape == (PANEL, panels * PANEL + (panels - 1) * GAP, 3)
    assert picture.dtype == np.uint8
    assert len(_panels(picture)) == panels


def test_prediction_without_maps_shows_the_image_alone():
    picture = overlay(_image(96), Prediction("ant", 1.0, np.zeros(4), (), ()), None)
    np.testing.assert_array_equal(picture, np.kron(_image(96), np.ones((2, 2, 1), np.uint8)))


def test_first_panel_is_the_image_enlarged_without_smoothing():
    first, *_ = _panels(overlay(_image(64), _prediction(grid=8), None))
    np.testing.assert_array_equal(first, np.kron(_image(64), np.ones((3, 3, 1), np.uint8)))


@pytest.mark.parametrize(("size", "grid"), [(32, 4), (96, 12), (224, 14), (384, 24)])
def test_kept_patches_are_the_image_and_dropped_ones_are_faded(size, grid):
    image, prediction = _image(size), _prediction(grid)
    first, _, *stages = _panels(overlay(image, prediction, None))
    cells = np.arange(PANEL) * grid // PANEL
    for panel, mask in zip(stages, prediction.kept, strict=True):
        kept = mask[cells][:, cells]
        assert kept.any()
        assert not kept.all()
        np.testing.assert_array_equal(panel[kept], first[kept])
        faded = FADED * first[~kept].astype(np.float64) + (1 - FADED) * PAPER
        assert np.abs(panel[~kept] - faded).max() <= 1
        assert panel[~kept].min() > 200


def test_patch_borders_lie_on_those_of_the_image():
    image = np.zeros((224, 224, 3), np.uint8)
    image[16:32, 32:48] = (0, 200, 0)
    mask = np.zeros((14, 14), bool)
    mask[1, 2] = True
    prediction = Prediction("ant", 1.0, np.zeros(4), (np.full((14, 14), 1 / 196, np.float32),), (mask,))
    panel = _panels(overlay(image, prediction, None))[-1]
    green = (panel == (0, 200, 0)).all(axis=2)
    assert green.any()
    np.testing.assert_array_equal(green, (panel < 200).any(axis=2))


def test_importance_is_brightest_where_it_is_largest():
    importance = np.full((4, 4), 1e-5, np.float32)
    importance[1, 3], importance[2, 0] = 0.9, 0.01
    prediction = Prediction("ant", 1.0, np.zeros(4), (importance,), ())
    _, heat = _panels(overlay(np.full((32, 32, 3), 128, np.uint8), prediction, None))
    light = heat.reshape(4, PANEL // 4, 4, PANEL // 4, 3).mean(axis=(1, 3, 4))
    order = np.argsort(-light.ravel())
    assert order[0] == 7
    assert order[1] == 8
    assert light.ravel()[order[1]] > light.ravel()[order[2]]
    assert np.ptp(np.delete(light, [7, 8])) == 0


@pytest.mark.parametrize(
    "importance",
    [np.full((4, 4), 1 / 16), np.eye(4) / 4, np.array([[1.0] + [0.0] * 3] + [[0.0] * 4] * 3)],
    ids=["uniform", "diagonal", "one patch"],
)
def test_extreme_importance_is_drawn_without_warnings(importance):
    prediction = Prediction("ant", 1.0, np.zeros(4), (importance.astype(np.float32),), ())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        overlay(_image(32), prediction, None)


def test_importance_is_shown_on_the_scale_of_the_scores():
    scores = np.linspace(-1.0, 1.0, 16)
    importance = np.exp(scores / 0.1) / np.exp(scores / 0.1).sum()  # the largest is 5e8 times the smallest
    prediction = Prediction("ant", 1.0, np.zeros(4), (importance.reshape(4, 4).astype(np.float32),), ())
    _, heat = _panels(overlay(np.full((32, 32, 3), 128, np.uint8), prediction, None))
    light = heat.reshape(4, PANEL // 4, 4, PANEL // 4, 3).mean(axis=(1, 3, 4)).ravel()
    assert (np.diff(light) > 2).all()  # every patch differs from the next


def test_the_file_has_heading_titles_and_a_legend_around_the_panels(tmp_path):
    image, prediction = _image(), _prediction()
    write_overlay(tmp_path / "maps/a.png", image, prediction, None)
    with Image.open(tmp_path / "maps/a.png") as file:
        assert (file.format, file.mode) == ("PNG", "RGB")
        pixels = np.asarray(file)
    panels = overlay(image, prediction, None)
    top = HEADING + TITLE
    assert pixels.shape == (top + PANEL + LEGEND, panels.shape[1], 3)
    np.testing.assert_array_equal(pixels[top : top + PANEL], panels)
    assert (pixels[:HEADING, : 2 * PANEL] < 128).any()  # letters
    for number in range(4):
        assert (pixels[HEADING:top, number * (PANEL + GAP) : number * (PANEL + GAP) + PANEL] < 128).any()
    legend = pixels[top + PANEL :]
    assert np.ptp(legend[:, PANEL + GAP : 2 * PANEL + GAP].reshape(-1, 3), axis=0).min() > 100  # colours
    assert (legend[:, 2 * (PANEL + GAP) :] == 255).all()
    assert [p.name for p in (tmp_path / "maps").iterdir()] == ["a.png"]


@pytest.mark.parametrize("label", ["\u732b", "\U0001f408", "a\x00b", "x" * 300, "$\\frac{$"])
def test_labels_that_the_font_lacks_are_told_by_number(tmp_path, label):
    prediction = Prediction(label, 0.5, np.array([0, 0, 3, 1], np.float32), (), ())
    assert label_text(prediction) == (label if label.startswith("$") else "class 2")
    write_overlay(tmp_path / "a.png", _image(), prediction, None)


def test_missing_pillow_names_the_extra_and_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(MissingExtraError, match=r"gft-edge\[report\]"):
        write_overlay(tmp_path / "a.png", _image(), _prediction(), None)
    assert not list(tmp_path.iterdir())
