"""Controls of artefacts beside those of their checkpoint, on images whose marks are known, and their static places."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from gft_edge.budget import TokenBudget
from gft_edge.checkpoint import Checkpoint
from gft_edge.config.model import preset
from gft_edge.control_artifact import every_patch, learn_places, members
from gft_edge.control_results import LOWER, ORACLE, STATIC
from gft_edge.control_rules import standardised
from gft_edge.controls import ControlOptions, controls
from gft_edge.data.sets import Subset
from gft_edge.errors import ArtifactError, ConfigError, DataError
from gft_edge.export.onnx.artifact import export_artifact
from gft_edge.manifest import load_artifact
from gft_edge.model import places
from gft_edge.model.choices import Following
from gft_edge.runtime.ruled_graph import open_ruled_graph


class Marked:
    """Images of noise, each with one marked patch."""

    labels = ("ant", "bee", "cat", "dog")
    notes = ()
    rendered_split = None

    def name(self, index):
        return f"image {index}"

    def class_numbers(self):
        return [index % 4 for index in range(40)]

    def __len__(self):
        return 40

    def __getitem__(self, index):
        pixels = np.random.default_rng(index).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        return pixels.repeat(4, axis=0).repeat(4, axis=1), index % 4

    def marks(self, index):
        mask = np.zeros((4, 4), bool)
        mask.reshape(-1)[7 * index % 16] = True
        return mask.repeat(8, axis=0).repeat(8, axis=1)


@pytest.fixture(scope="module")
def images():
    return Subset(Marked(), tuple(range(40)))


@pytest.fixture(scope="module")
def family(tiny_info, tiny_model, tmp_path_factory):
    """A checkpoint and its artefact of two budgets, one of them with every patch."""
    checkpoint = Checkpoint(tiny_info, tiny_model, "", tmp_path_factory.mktemp("family"))
    golden = np.random.default_rng(0).standard_normal((4, 3, 32, 32), dtype=np.float32)
    budgets = [tiny_info.model.budget, tiny_info.model.full_budget]
    return checkpoint, export_artifact(checkpoint, checkpoint.path / "artifact", golden, budgets)


def test_every_rule_has_the_answers_of_the_checkpoint(family, images, monkeypatch):
    for place in ("gft_edge.data.for_model", "gft_edge.control_rules"):
        monkeypatch.setattr(f"{place}.open_images", lambda *_: images)
    of_checkpoint, of_artifact = (controls(model, ControlOptions("typefaces", threads=1)) for model in family)
    assert of_artifact.has_marks and of_artifact.images == 40
    assert of_artifact.full == of_checkpoint.full
    (found,), (expected,) = of_artifact.budgets, of_checkpoint.budgets
    expected_rules = {rule.rule: rule for rule in expected.rules if rule.rule != LOWER}
    assert [rule.rule for rule in found.rules] == list(expected_rules)
    for rule in found.rules:
        assert rule.rule == STATIC or rule == expected_rules[rule.rule]
    assert next(rule for rule in found.rules if rule.rule == ORACLE).recall == 1
    assert found.gain == expected.gain and found.verdict == expected.verdict
    assert found.smaller is None


def test_static_places_are_mean_standardised_scores_of_the_patches_that_entered(family, images):
    checkpoint, artifact = family
    spec = checkpoint.info.preprocess
    (found,), count = learn_places([open_ruled_graph(artifact, 1)], images, spec)
    assert count == 40
    positions, scores = [], []

    def keep(at, places_there, number):
        scores.append(at)
        positions.append(places_there)
        return at

    x = torch.from_numpy(spec.batch([images[index][0] for index in range(40)]))
    with torch.no_grad():
        checkpoint.model(x, choose=Following(keep))
    for number in range(2):
        means = np.full(16, -np.inf)
        z = standardised(scores[number].numpy())
        for place in range(16):
            there = positions[number].numpy() == place
            means[place] = z[there].mean() if there.any() else -np.inf
        assert np.array_equal(found[number], places.distinct(means)), number
    assert len(positions[1][0]) == 12


def test_scores_are_standardised_for_each_image():
    values = np.array([[1.0, 2.0, 6.0], [5.0, 5.0, 5.0]], np.float32)
    found = standardised(values)
    assert found[0] == pytest.approx((values[0] - 3) / np.sqrt(7))
    assert found[1].tolist() == [0, 0, 0]


def test_budgets_name_members_and_every_patch_is_one_of_them(family):
    _, artifact = family
    assert [member.member for member in members(artifact, ())] == [""]
    whole = load_artifact(f"{artifact.path}@16-16")
    (own,) = members(whole, ("12,6", "75%,37.5%"))
    assert own.manifest.budget == TokenBudget((12, 6), 16)
    with pytest.raises(ConfigError, match="16-16: keeps every patch.*the artefact has a smaller one: --budget 12-6$"):
        members(whole, ())
    with pytest.raises(ArtifactError, match="no graph of budget 8-8; there are: 12-6, 16-16; .*--budget 8,8"):
        members(artifact, ("8,8",))
    assert every_patch(own, 1)[0] == "16-16"


def test_models_without_a_selection_are_refused(family):
    _, artifact = family
    for name, why in (("gft_base_published", "do not depend on the selection"), ("vit_tiny", "without stages")):
        config = preset(name)
        labels = tuple(map(str, range(config.num_classes)))
        manifest = dataclasses.replace(artifact.manifest, model=config, budget=config.budget, labels=labels)
        with pytest.raises(ConfigError, match=f"artefact .*: .*{why}"):
            controls(dataclasses.replace(artifact, manifest=manifest))


def test_static_places_need_an_image(family):
    with pytest.raises(DataError, match="static places"):
        learn_places([open_ruled_graph(family[1], 1)], Subset(Marked(), ()), family[0].info.preprocess)
