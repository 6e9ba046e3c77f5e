"""Trainings with a teacher: every kind of loss, both sources of answers, and what is refused."""

from __future__ import annotations

import json

import pytest
import torch

import gft_edge.distill.distiller as module
from gft_edge.checkpoint import load_checkpoint, read_weights
from gft_edge.train.loop import train


def losses(out):
    return [json.loads(line)["loss"] for line in (out / "log.jsonl").read_text().splitlines()]


def same(first, second):
    first, second = read_weights(first), read_weights(second)
    return first.keys() == second.keys() and all(torch.equal(t, second[name]) for name, t in first.items())


@pytest.fixture
def no_teacher(monkeypatch):
    """Makes it an error to load a teacher."""

    def refuse(*arguments):
        raise AssertionError("the teacher was loaded")

    monkeypatch.setattr(module, "load_teacher", refuse)


@pytest.mark.parametrize(
    "settings",
    [
        {"loss": "kl", "temperature": 2.0},
        {"loss": "dist"},
        {"loss": "hard"},
        {"masked": True},
        {"map_weight": 0.5, "ranking_weight": 0.5},
        {"map_weight": 0.5, "map": "rollout"},
    ],
    ids=lambda settings: "-".join(settings),
)
def test_a_training_learns_from_its_teacher(recipe, tmp_path, settings):
    info = train(recipe(**settings), tmp_path / "run")
    assert info.provenance["recipe"]["distill"]["loss"] == settings.get("loss", "dist")
    assert all(loss > 0 for loss in losses(tmp_path / "run"))
    load_checkpoint(tmp_path / "run")


def test_the_loss_is_the_sum_of_its_parts(recipe, tmp_path):
    for name, settings in {
        "labels": {"weight": 0.0},
        "kl": {"loss": "kl", "label_weight": 0.0},
        "both": {"loss": "kl", "weight": 2.0, "label_weight": 0.5},
    }.items():
        train(recipe(train={"steps": 1}, **settings), tmp_path / name)
    labels, kl, both = (losses(tmp_path / name)[0] for name in ("labels", "kl", "both"))
    assert both == pytest.approx(0.5 * labels + 2 * kl, rel=1e-5)


def test_without_weight_it_is_the_training_without_a_teacher(recipe, tmp_path):
    train(recipe(weight=0.0), tmp_path / "off")
    train(recipe(at=None), tmp_path / "none")
    assert same(tmp_path / "off", tmp_path / "none")
