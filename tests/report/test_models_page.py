"""What a page says about selecting blocks: where they are, what ranks, and what a map shows."""

from __future__ import annotations

import dataclasses
import re
from types import SimpleNamespace

import pytest
from matplotlib.axes import Axes

from gft_edge.budget import TokenBudget
from gft_edge.config.model import GFTConfig, preset
from gft_edge.report.figures import plots
from gft_edge.report.pages import picture_sections
from gft_edge.report.pages.run import write_page

LABELS = ["bolt", "gear", "nut", "screw", "washer"]


def text_of(page):
    return " ".join(re.sub(r"<[^>]*>", "", page.read_text(encoding="utf-8")).split())


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({}, "Blocks 1, 2 each rank their input patches by the score column-mean; the highest-scoring stay"),
        (
            {"stages": (2,), "budget": TokenBudget((6,), 16), "score": "class-row"},
            "Block 2 ranks its input patches by the score class-row;",
        ),
        ({"variant": "published", "stem": "linear", "stages": (2, 2)}, "its stages score patches for maps only"),
    ],
    ids=["focal", "one-stage", "published"],
)
def test_the_model_is_told_with_its_selecting_blocks_and_score(samples, laid, changes, sentence):
    config = samples["checkpoint"](LABELS)
    model = dataclasses.replace(GFTConfig.from_json(config["model"]), **changes)
    page = write_page(laid({"model/config.json": config | {"model": model.to_json()}})).page
    text = text_of(page)
    assert sentence in text
    assert ("a step inside a block is its selection" in text) == (model.variant == "focal")


def test_models_that_differ_in_their_score_are_told_apart(samples, laid):
    config = samples["checkpoint"](LABELS)
    other = config | {"model": config["model"] | {"score": "row-gala"}}
    text = text_of(write_page(laid({"a/config.json": config, "b/config.json": other})).page)
    assert "column-mean" in text and "row-gala" in text


def test_the_staircase_steps_inside_a_selecting_block(monkeypatch):
    drawn = []
    real = Axes.stairs

    def stairs(axes, values, edges, **options):
        drawn.append((list(values), list(edges)))
        return real(axes, values, edges, **options)

    monkeypatch.setattr(Axes, "stairs", stairs)
    sizes = (3, (1, 3), {"9-4": (9, 4)}, 16)
    plots.staircase(*sizes, is_inside=True)
    plots.staircase(*sizes, is_inside=False)
    edges = [0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5]
    assert drawn[0] == ([16, 9, 9, 9, 9, 4], edges)
    assert drawn[-1] == ([16, 16, 9, 9, 9, 9], edges)


@pytest.mark.parametrize(
    ("model", "score"),
    [
        (preset("gft_tiny"), "column-mean"),
        (preset("gft_tiny", score="class-row"), "class-row"),
        (preset("gft_tiny", score="row-gala"), None),
        (preset("gft_base_published"), None),
    ],
    ids=lambda value: str(value)[:10],
)
def test_pictures_say_where_the_map_is_not_what_ranks(samples, tmp_path, model, score):
    record = samples["predict"](LABELS[:1], "runs/art-b")
    samples["picture"](tmp_path / "0.png", (64, 64))
    record["predictions"][0]["map"] = "0.png"
    artifact = SimpleNamespace(name="art-b", manifest=SimpleNamespace(labels=LABELS, model=model, budget=model.budget))
    found = SimpleNamespace(folder=tmp_path, predictions=[("guesses.json", record)])
    (section,) = picture_sections.predictions(
        SimpleNamespace(found=found, artifacts=[("art-b", SimpleNamespace(artifact=artifact))])
    )
    assert [group["score"] for group in section.data["groups"]] == [score]


@pytest.mark.parametrize(
    ("name", "titles"),
    [("art", ["stage 1: 9 of 196", "stage 2: 4 of 196"]), ("art@8-3", ["stage 1: 8 of 196", "stage 2: 3 of 196"])],
)
def test_each_panel_of_a_picture_says_how_many_patches_it_keeps(samples, tmp_path, name, titles):
    record = samples["predict"](LABELS[:1], f"runs/{name}")
    samples["picture"](tmp_path / "0.png", (792, 274))
    record["predictions"][0]["map"] = "0.png"
    budget = SimpleNamespace(id="9-4", keep=(9, 4))
    manifest = SimpleNamespace(labels=LABELS, model=preset("gft_tiny"), budget=budget, family={"8-3": None})
    artifacts = [("art", SimpleNamespace(artifact=SimpleNamespace(name="art", manifest=manifest)))]
    view = SimpleNamespace(found=SimpleNamespace(folder=tmp_path), artifacts=artifacts)
    (row,) = picture_sections.shown_predictions(view, "guesses.json", record)
    assert [panel["title"] for panel in row["panels"]] == ["image", "importance (GALA map)", *titles]
    samples["picture"](tmp_path / "0.png", (791, 274))  # of another program
    (row,) = picture_sections.shown_predictions(view, "guesses.json", record)
    assert row["panels"] is None and row["url"].startswith("data:image/png;")
