"""Stored answers: what is kept of an answer, who may use a file, and damaged files."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from gft_edge.config.recipe import TrainSection
from gft_edge.data.datasets import open_images
from gft_edge.distill.answers import answers_identity, data_hash, open_answers, packed, unpacked
from gft_edge.errors import ArtifactError, CheckFailed, ConfigError
from gft_edge.preprocess import PreprocessSpec

TRAIN = TrainSection(steps=2, batch_size=3, accumulate=2)
CPU = torch.device("cpu")


@pytest.fixture
def logits():
    return 3 * torch.randn(3, 6, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def opened(tmp_path):
    def run(top_k=4, **identity):
        group = {"teacher": {"sha256": "t"}, "data": {"name": "d"}, **identity}
        return open_answers(tmp_path / "answers.safetensors", group, TRAIN, 6, top_k)

    return run


def test_the_best_classes_keep_their_shares_and_the_rest_is_spread_evenly(logits):
    found = unpacked(*packed(logits, 2), 6).exp()
    shares = logits.softmax(dim=1)
    best = shares.topk(2, dim=1)
    assert torch.allclose(found.gather(1, best.indices), best.values, atol=2e-3)
    rest = found.scatter(1, best.indices, 0)
    left = (1 - best.values.sum(dim=1, keepdim=True)) / 4
    assert torch.allclose(rest[rest > 0].view(3, 4), left.expand(-1, 4), atol=2e-3)
    assert torch.allclose(found.sum(dim=1), torch.ones(3))


def test_every_class_kept_is_the_whole_answer_even_of_a_sure_teacher():
    logits = torch.tensor([[0.0, 40.0, -40.0]])
    assert torch.allclose(unpacked(*packed(logits, 3), 3), logits.log_softmax(dim=1), atol=0.05)
    assert bool(torch.isfinite(unpacked(*packed(logits, 1), 3)).all())


def test_a_file_fills_batch_by_batch_and_other_tools_read_it(opened, logits, tmp_path):
    answers = opened()
    assert (answers.batches, answers.done, answers.read(1, CPU)) == (4, 0, None)
    answers.write(1, logits)
    answers.flush()
    again = opened()
    assert again.done == 1
    assert again.read(0, CPU) is None
    assert torch.equal(again.read(1, CPU), unpacked(*packed(logits, 4), 6))
    arrays = load_file(tmp_path / "answers.safetensors")
    assert np.array_equal(arrays["classes"][3:6], packed(logits, 4)[0])


def test_damaged_answers_of_a_batch_are_absent(opened, logits):
    answers = opened()
    answers.write(1, logits)
    answers.arrays["logs"][4, 2] -= np.float16(1)
    assert answers.read(1, CPU) is None


def test_answers_that_are_no_numbers_are_not_stored(opened, logits):
    with pytest.raises(CheckFailed, match="batch 2"):
        opened().write(2, logits * float("nan"))


def test_answers_of_others_are_refused_with_what_differs(opened):
    opened()
    with pytest.raises(ConfigError, match='are of another teacher: sha256 is "u", was "t"'):
        opened(teacher={"sha256": "u"})
    with pytest.raises(ConfigError, match="are of another data: name"):
        opened(data={"name": "e"})
    with pytest.raises(ConfigError, match="are of another answers: top_k is 3, was 4"):
        opened(top_k=3)


@pytest.mark.parametrize("damage", [b"", b"text", b"\xff" * 40, b"\x02\0\0\0\0\0\0\0{}"])
def test_a_file_of_something_else_is_refused(opened, tmp_path, damage):
    (tmp_path / "answers.safetensors").write_bytes(damage)
    with pytest.raises(ArtifactError, match="is no file of stored answers"):
        opened()


def test_a_file_cut_off_is_refused(opened, tmp_path):
    opened()
    file = tmp_path / "answers.safetensors"
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(ArtifactError, match="cut off"):
        opened()


def test_identity_has_what_determines_images_and_answers(recipe):
    images, spec = open_images("typefaces", "train", 40, 32, 0), PreprocessSpec(32, 32)
    base = answers_identity(recipe(), images, spec, "t")
    same = {"train": {"lr": 0.5, "eval_every": 1}, "data": {"num_workers": 1}}
    assert answers_identity(recipe(**same), images, spec, "t") == base
    for changed in ({"train": {"seed": 1}}, {"train": {"mixup": 0.1}}, {"data": {"augment": "light"}}):
        assert answers_identity(recipe(**changed), images, spec, "t")["augmentation"] != base["augmentation"]
    other = dataclasses.replace(spec, mean=(0.5, 0.5, 0.5))
    assert answers_identity(recipe(), images, other, "t")["pixels"] != base["pixels"]


def test_the_hash_of_data_is_that_of_its_images():
    first, again, other = (open_images("typefaces", "train", 40, 32, seed) for seed in (0, 0, 1))
    assert data_hash(first) == data_hash(again) != data_hash(other)
