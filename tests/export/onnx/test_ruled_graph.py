"""Graphs whose selections follow another rule: with their own rule the same bits, with any other the patches of that rule."""

from __future__ import annotations

import dataclasses
import shutil

import numpy as np
import onnx
import pytest
import torch
from onnx import helper

from gft_edge.budget import TokenBudget
from gft_edge.checkpoint import load_checkpoint, save_checkpoint
from gft_edge.errors import ArtifactError, ConfigError
from gft_edge.export.onnx.artifact import export_artifact
from gft_edge.export.onnx.options import GraphOptions
from gft_edge.manifest import WEIGHTS, load_artifact
from gft_edge.model import places
from gft_edge.model.choices import Following, ranked
from gft_edge.runtime.backends.sessions import open_session
from gft_edge.runtime.ruled_graph import open_ruled_graph

FAMILY = (TokenBudget((12, 6), 16), TokenBudget((8, 4), 16), TokenBudget((16, 16), 16))
FORMS = {
    "plain": ("fp32", GraphOptions(), ()),
    "compact": ("fp32", GraphOptions("compact"), ()),
    "trt8": ("fp32", GraphOptions("compact", dialect="trt8"), ()),
    "int8": ("int8", GraphOptions(), ()),
    "int8 dense uint8 trt8": ("int8", GraphOptions("dense", input="uint8", dialect="trt8"), ()),
    "int8 fp16 static batch probabilities": (
        "int8",
        GraphOptions("dense", "fp16", "float255", (1, 1, 1), probabilities=True),
        (),
    ),
    "family": ("int8", GraphOptions("compact"), FAMILY),
}
"""Artefacts that other tests export too."""


@pytest.fixture(scope="module")
def images(tiny_info) -> np.ndarray:
    pixels = np.random.default_rng(7).integers(0, 256, (9, 32, 32, 3), dtype=np.uint8)
    return tiny_info.preprocess.normalize(pixels)


@pytest.fixture(params=FORMS)
def artifact(request, exported_once):
    precision, options, budgets = FORMS[request.param]
    found = exported_once(precision, options, budgets)
    return load_artifact(f"{found.path}@8-4") if budgets else found


@pytest.fixture(scope="module")
def values() -> np.ndarray:
    """Other values of the places for each image and selection."""
    rng = np.random.default_rng(3)
    return np.stack([[rng.permutation(16) for _ in range(2)] for _ in range(9)])


def test_its_own_rule_gives_the_bits_of_the_artefact(artifact, images):
    found = open_ruled_graph(artifact, 1)(images, 1)
    assert np.array_equal(found.logits, open_session(artifact, threads=1)(images)["logits"])
    keep = artifact.manifest.budget.keep
    assert [positions.shape for positions in found.positions] == [(9, keep[0]), (9, keep[1])]


def test_a_rule_of_places_keeps_the_highest_of_those_that_are_there(artifact, images, values):
    found = open_ruled_graph(artifact, 1)(images, 0, values)
    for row in range(len(images)):
        there = list(range(16))
        for number, keep in enumerate(artifact.manifest.budget.keep):
            there = sorted(there, key=lambda place, at=values[row, number]: -at[place])[:keep]
            assert sorted(found.positions[number][row].tolist()) == sorted(there)


def test_every_rule_has_the_logits_of_pytorch(exported_once, checkpoints, images, values):
    model = checkpoints["fp32"].model
    marked = np.random.default_rng(2).random((9, 16)) < 0.3
    rules = {
        "least": (-1,),
        "places": (0, values),
        "centre": (0, places.centre_first((4, 4))[None, None]),
        "marks": (1, places.marked_first(marked)[:, None]),
    }
    for name in ("plain", "trt8"):
        precision, options, _ = FORMS[name]
        graph = open_ruled_graph(exported_once(precision, options), 1)
        own = graph(images, 1).logits
        for rule, ranking in rules.items():
            choice = Following(ranked(*ranking))
            with torch.no_grad():
                expected = model(torch.from_numpy(images), choose=choice).numpy()
            found = graph(images, *ranking)
            assert np.array_equal(np.sort(found.positions[-1]), choice.positions.numpy()), rule
            np.testing.assert_allclose(found.logits, expected, rtol=1e-4, atol=1e-5, err_msg=rule)
            assert np.abs(own - expected).max() > 0.01, rule


def test_a_score_that_reads_neighbours_and_a_selection_for_the_maps_alone(
    tiny_config, tiny_info, make_model, images, tmp_path
):
    """The patches stay in raster order, and the last block's selection, which no logit depends on, is left as it is."""
    config = dataclasses.replace(tiny_config, score="row-gala", stages=(1, 2, 3), budget=TokenBudget((12, 9, 4), 16))
    model = make_model(config)
    save_checkpoint(tmp_path / "c", dataclasses.replace(tiny_info, model=config), model)
    artifact = export_artifact(load_checkpoint(tmp_path / "c"), tmp_path / "a", images, options=GraphOptions("compact"))
    graph = open_ruled_graph(artifact, 1)
    assert graph.stages == [0, 1]
    for weight in (1, -1):
        choice = Following(ranked(weight))
        with torch.no_grad():
            expected = model(torch.from_numpy(images), choose=choice).numpy()
        found = graph(images, weight)
        assert np.array_equal(found.positions[-1], choice.positions.numpy())
        np.testing.assert_allclose(found.logits, expected, rtol=1e-4, atol=1e-5)


def test_equal_scores_are_taken_as_the_graph_takes_them(edited, images):
    def equal(model: onnx.ModelProto) -> None:
        for number, node in enumerate(n for n in list(model.graph.node) if n.op_type == "TopK"):
            index = list(model.graph.node).index(node)
            model.graph.node.insert(index, helper.make_node("Sign", [node.input[0]], [f"sign_{number}"]))
            model.graph.node[index + 1].input[0] = f"sign_{number}"

    artifact = edited("fp32-none", equal)
    found = open_ruled_graph(artifact, 1)(images, 1)
    assert len(np.unique(found.scores[0])) <= 3
    assert np.array_equal(found.logits, open_session(artifact, threads=1)(images)["logits"])


def test_weights_of_a_family_are_read_where_they_lie_and_checked(exported_once, images, tmp_path, monkeypatch):
    precision, options, budgets = FORMS["family"]
    artifact = load_artifact(shutil.copytree(exported_once(precision, options, budgets).path, tmp_path / "a"))
    read = []
    monkeypatch.setattr(onnx.external_data_helper, "load_external_data_for_model", lambda *_: read.append(1))
    expected = open_session(artifact, threads=1)(images)["logits"]
    assert np.array_equal(open_ruled_graph(artifact, 1)(images, 1).logits, expected)
    assert not read
    weights = bytearray((tmp_path / "a" / WEIGHTS).read_bytes())
    weights[100] ^= 1
    (tmp_path / "a" / WEIGHTS).write_bytes(weights)
    with pytest.raises(ArtifactError, match=f"{WEIGHTS} was changed"):
        open_ruled_graph(artifact)


def test_a_graph_without_the_selections_of_its_budget_is_refused(edited):
    def fewer(model: onnx.ModelProto) -> None:
        next(node for node in model.graph.node if node.op_type == "TopK").op_type = "Other"

    with pytest.raises(ArtifactError, match="graph has 1 selections, its budget needs 2; export it again"):
        open_ruled_graph(edited("fp32-none", fewer))


def test_bf16_is_refused_with_what_to_do(exported_once, monkeypatch):
    """ONNX Runtime refuses the graph; here any graph, and the manifest says BF16."""

    def refuse(*_, **__):
        raise ArtifactError("model: ONNX Runtime cannot load it")

    monkeypatch.setattr("gft_edge.runtime.ruled_graph.onnxruntime_session", refuse)
    plain = exported_once(*FORMS["plain"][:2])
    with pytest.raises(ArtifactError, match="cannot load it"):
        open_ruled_graph(plain)
    manifest = dataclasses.replace(plain.manifest, precision="bf16", rest="bf16")
    with pytest.raises(ConfigError, match="ONNX Runtime computes no BF16 on a CPU; export with --precision fp16"):
        open_ruled_graph(dataclasses.replace(plain, manifest=manifest))
