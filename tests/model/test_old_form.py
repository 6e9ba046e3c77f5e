"""Files of the old focal form, with attention layers between the blocks: each reader gives one line with the remedies."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from gft_edge.budget import TokenBudget
from gft_edge.checkpoint import CheckpointInfo, load_checkpoint, read_info, save_checkpoint
from gft_edge.cli.main import main
from gft_edge.config.model import preset
from gft_edge.errors import ArtifactError
from gft_edge.files import sha256
from gft_edge.manifest import DeploymentManifest, TensorInfo
from gft_edge.preprocess import PreprocessSpec
from gft_edge.report.results.run_files import find
from gft_edge.storage.seals import write_sealed

LINE = (
    "is a focal model of the old form, with attention layers between its blocks; this version selects inside the blocks"
)
REMEDY = "train it again, or give the weights of its backbone to gft-edge adopt"


def without_score(model):
    return {name: value for name, value in model.items() if name not in ("score", "num_prefix_tokens")}


@pytest.fixture
def old(tiny_checkpoint, tmp_path):
    """A checkpoint as the old form wrote it: no score, a stage's layers among the weights."""
    folder = shutil.copytree(tiny_checkpoint, tmp_path / "old")
    weights = load_file(folder / "model.safetensors")
    save_file({**weights, "stages.0.attn.q.weight": torch.zeros(32, 32)}, folder / "model.safetensors")
    data = json.loads((folder / "config.json").read_text())
    data["model"] = without_score(data["model"])
    data["weights_sha256"] = sha256(folder / "model.safetensors")
    write_sealed(folder / "config.json", data)
    return folder


@pytest.mark.parametrize("read", [load_checkpoint, read_info])
def test_old_checkpoints_are_refused_with_one_line(old, read):
    with pytest.raises(ArtifactError) as caught:
        read(old)
    text = str(caught.value)
    assert text == f"checkpoint {old / 'config.json'}: model: {LINE}; {REMEDY}"


@pytest.mark.parametrize("verb", ["evaluate", "export", "quantize", "train"])
def test_verbs_end_with_that_line(old, tmp_path, capsys, verb):
    out = ["--out", str(tmp_path / "out")]
    if verb == "train":
        (tmp_path / "recipe.toml").write_text(f"[train]\ninit = '{old}'\nsteps = 1\n")
        arguments = ["--config", str(tmp_path / "recipe.toml"), *out]
    else:
        arguments = [str(old), *(out if verb != "evaluate" else [])]
    assert main([verb, *arguments]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert LINE in lines[-1]


def test_old_manifests_are_refused_with_one_line(tiny_info):
    manifest = DeploymentManifest(
        model=tiny_info.model,
        labels=tiny_info.labels,
        preprocess=PreprocessSpec(32, 32),
        budget=tiny_info.model.budget,
        precision="fp32",
        maps="none",
        opset=18,
        inputs=(TensorInfo("image", "float32", ("batch", 3, 32, 32), "images"),),
        outputs=(TensorInfo("logits", "float32", ("batch", 4), "one per class"),),
        checkpoint_sha256="0" * 64,
    )
    data = manifest.to_json()
    data["model"] = without_score(data["model"])
    with pytest.raises(ArtifactError, match=f"^manifest a: model: {LINE}; {REMEDY}$"):
        DeploymentManifest.from_json(data, "manifest a")


def test_a_page_names_an_old_checkpoint_with_the_reason(old):
    unused = {row.file: row.why for row in find(old.parent).unused}
    assert LINE in unused["old/config.json"]


def test_weights_of_the_old_form_under_a_new_configuration_are_named(old, tiny_config):
    data = json.loads((old / "config.json").read_text())
    data["model"] = tiny_config.to_json()
    write_sealed(old / "config.json", data)
    with pytest.raises(ArtifactError, match=r"unknown tensors \['stages\.0\.attn\.q\.weight'\]"):
        load_checkpoint(old)


def test_published_checkpoints_of_the_old_version_still_load(tmp_path, make_model):
    """Their configurations have no score."""
    sizes = {"image_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2, "num_classes": 4}
    config = preset("gft_base_published", stages=(2, 2), budget=TokenBudget((12, 6), 16), **sizes)
    model = make_model(config)
    save_checkpoint(tmp_path / "a", CheckpointInfo(config, tuple("abcd"), PreprocessSpec(32, 32)), model)
    file = tmp_path / "a/config.json"
    data = json.loads(file.read_text())
    write_sealed(file, data | {"model": without_score(data["model"])})
    found = load_checkpoint(tmp_path / "a")
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        np.testing.assert_array_equal(found.model(images), model(images))
