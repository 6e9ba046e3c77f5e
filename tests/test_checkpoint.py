from __future__ import annotations

import dataclasses
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from gft_edge.calibration.ptq import quantize_int8
from gft_edge.checkpoint import (
    CheckpointInfo,
    load_checkpoint,
    num_parameters,
    read_info,
    read_weights,
    resolve_checkpoint,
    save_checkpoint,
)
from gft_edge.errors import ArtifactError, ConfigError
from gft_edge.files import sha256
from gft_edge.storage.seals import write_sealed


@pytest.fixture
def checkpoint(tiny_checkpoint, tmp_path):
    """A copy that a test may damage."""
    return shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint")


def _edit_weights(folder, edit):
    weights = load_file(folder / "model.safetensors")
    edit(weights)
    save_file(weights, folder / "model.safetensors")
    _edit_config(folder, lambda data: data.update(weights_sha256=sha256(folder / "model.safetensors")))


def _edit_config(folder, edit):
    data = json.loads((folder / "config.json").read_text())
    edit(data)
    write_sealed(folder / "config.json", data)


def test_full_precision_round_trip_is_exact(tiny_checkpoint, tiny_model, tiny_info):
    loaded = load_checkpoint(tiny_checkpoint)
    own = tiny_model.state_dict()
    assert loaded.info == tiny_info
    assert not loaded.model.training
    assert loaded.model.state_dict().keys() == own.keys()
    assert all(torch.equal(tensor, own[name]) for name, tensor in loaded.model.state_dict().items())
    assert loaded.sha256 == sha256(tiny_checkpoint / "model.safetensors")


def test_half_round_trip_is_the_rounded_weights_in_float32(tmp_path, tiny_model, tiny_info):
    save_checkpoint(tmp_path, tiny_info, tiny_model, half=True)
    own = tiny_model.state_dict()
    weights = read_weights(tmp_path)
    assert weights.keys() == own.keys()
    for name, tensor in weights.items():
        floating = own[name].is_floating_point()
        assert tensor.dtype == own[name].dtype
        assert torch.equal(tensor, own[name].half().float() if floating else own[name])


def test_half_checkpoint_is_half_as_large(tmp_path, tiny_checkpoint, tiny_model, tiny_info):
    save_checkpoint(tmp_path, tiny_info, tiny_model, half=True)
    full, half = ((folder / "model.safetensors").stat().st_size for folder in (tiny_checkpoint, tmp_path))
    assert half < 0.6 * full


def test_saving_twice_gives_the_same_bytes(tmp_path, tiny_checkpoint, tiny_model, tiny_info):
    save_checkpoint(tmp_path, tiny_info, tiny_model)
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / name).read_bytes() == (tiny_checkpoint / name).read_bytes()


def test_quantized_round_trip_gives_equal_logits(tmp_path, tiny_model, tiny_info):
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    quantized = quantize_int8(tiny_model, [images.numpy()])
    save_checkpoint(tmp_path, dataclasses.replace(tiny_info, quantization=quantized.summary), quantized.model)
    loaded = load_checkpoint(tmp_path)
    assert loaded.info.quantization == quantized.summary
    with torch.no_grad():
        assert torch.equal(loaded.model(images), quantized.model(images))
        assert not torch.equal(loaded.model(images), tiny_model(images))


def test_num_parameters_counts_values(tiny_model):
    assert num_parameters(tiny_model) == sum(p.numel() for p in tiny_model.parameters())


def test_labels_must_fit_the_model(tiny_info):
    with pytest.raises(ConfigError, match="3 labels for 4 classes"):
        dataclasses.replace(tiny_info, labels=("a", "b", "c"))


def test_missing_folder_is_refused(tmp_path):
    with pytest.raises(
        ArtifactError, match=r"checkpoint .*none: no such folder; give a folder with model\.safetensors"
    ):
        resolve_checkpoint(tmp_path / "none")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_missing_file_is_refused(checkpoint, name):
    (checkpoint / name).unlink()
    with pytest.raises(ArtifactError, match=f"{name}: no such file"):
        load_checkpoint(checkpoint)


@pytest.mark.parametrize(
    "damage",
    [lambda data: b"", lambda data: data[:-5], lambda data: data[:100], lambda data: b"\xff" * 8 + data[8:]],
    ids=["empty", "cut-end", "cut-header", "header-length"],
)
def test_damaged_weights_are_refused(checkpoint, damage):
    file = checkpoint / "model.safetensors"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(ArtifactError, match=r"model\.safetensors: damaged or not a safetensors file"):
        load_checkpoint(checkpoint)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(checkpoint, value):
    _edit_weights(checkpoint, lambda weights: weights["head.weight"][1, 2].fill_(value))
    with pytest.raises(ArtifactError, match=r"head\.weight holds NaN or infinity"):
        load_checkpoint(checkpoint)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            lambda w: w.update({"head.weight": w["head.weight"].t().contiguous()}),
            r"head\.weight is \(32, 4\), expected \(4, 32\)",
        ),
        (lambda w: w.pop("head.bias"), r"missing tensors \['head\.bias'\]"),
        (lambda w: w.update({"more": torch.zeros(1)}), r"unknown tensors \['more'\]"),
    ],
    ids=["shape", "missing", "unknown"],
)
def test_weights_of_another_model_are_refused(checkpoint, edit, message):
    _edit_weights(checkpoint, edit)
    with pytest.raises(ArtifactError, match=f"checkpoint .*{message}"):
        load_checkpoint(checkpoint)


@pytest.mark.parametrize("schema", [0, 2, "1", None])
def test_another_schema_is_refused(checkpoint, schema):
    _edit_config(checkpoint, lambda data: data.update(schema=schema))
    with pytest.raises(ArtifactError, match=r"config\.json: schema .*, this version reads 1"):
        load_checkpoint(checkpoint)


@pytest.mark.parametrize("text", ["", "{", "[]", "null"])
def test_config_that_is_no_json_object_is_refused(checkpoint, text):
    (checkpoint / "config.json").write_text(text)
    with pytest.raises(ArtifactError, match=r"checkpoint .*config\.json: "):
        read_info(checkpoint)


@pytest.mark.parametrize(
    "edit",
    [
        lambda data: data.pop("model"),
        lambda data: data.pop("labels"),
        lambda data: data.update(model=5),
        lambda data: data["model"].update(depth=0),
        lambda data: data.update(labels=5),
        lambda data: data["labels"].pop(),
        lambda data: data.update(preprocess=[]),
        lambda data: data["preprocess"].update(height=0),
        lambda data: data.update(quantization={}),
        lambda data: data.update(quantization=5),
        lambda data: data.update(quantization={"ranges": {"head": "wide"}}),
        lambda data: data.update(quantization={"ranges": {"nose": 1.0}}),
    ],
    ids=[
        "no-model", "no-labels", "model-5", "depth-0", "labels-5", "label-short", "preprocess-list", "height-0",
        "quantization-empty", "quantization-5", "range-text", "range-unknown",
    ],
)  # fmt: skip
def test_damaged_config_is_refused_and_named(checkpoint, edit):
    _edit_config(checkpoint, edit)
    with pytest.raises(ArtifactError, match="checkpoint"):
        load_checkpoint(checkpoint)


def test_info_survives_json(tiny_info):
    data = json.loads(json.dumps(tiny_info.to_json()))
    assert CheckpointInfo.from_json(data, "test") == tiny_info


def test_a_torn_pair_of_weights_and_configuration_is_refused(checkpoint, tiny_info, make_model, tiny_config):
    """A process killed between the two files leaves new weights beside the old configuration."""
    old = (checkpoint / "config.json").read_bytes()
    save_checkpoint(checkpoint, tiny_info, make_model(tiny_config, seed=7))
    load_checkpoint(checkpoint)
    (checkpoint / "config.json").write_bytes(old)
    with pytest.raises(ArtifactError, match=r"model\.safetensors: is not the file that config\.json was written with"):
        load_checkpoint(checkpoint)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_flipped_bit_of_a_checkpoint_is_refused(checkpoint, name):
    file = checkpoint / name
    whole = file.read_bytes()
    for position in range(0, len(whole), max(len(whole) // 60, 1)):
        changed = bytearray(whole)
        changed[position] ^= 1 << position % 8
        file.write_bytes(changed)
        with pytest.raises(ArtifactError):
            load_checkpoint(checkpoint)


def test_temporaries_that_safetensors_left_are_removed(tiny_info, tiny_model, tmp_path):
    folder = tmp_path / "best"
    folder.mkdir()
    (folder / ".tmpQ0qc6p").write_bytes(b"half of the weights")
    save_checkpoint(folder, tiny_info, tiny_model)
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors"}
