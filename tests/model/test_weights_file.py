"""Weights as training programs save them, and files that are none."""

from __future__ import annotations

import argparse
import collections
import datetime
import functools
import types
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from gft_edge.errors import ArtifactError
from gft_edge.model.foreign.weights_file import looks_like, read_weights_file, state_dict_of

DATA = Path(__file__).parent / "data"
ANCHOR = ("base_model.pos_embed",)
STATE = {"base_model.pos_embed": torch.arange(3.0), "classifier.weight": torch.ones(2, 3)}


def prefixed(prefix, state=STATE):
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


def same(found, state=STATE):
    return found.keys() == state.keys() and all(torch.equal(found[name], state[name]) for name in state)


@pytest.mark.parametrize("anchors", [ANCHOR, ()])
@pytest.mark.parametrize(
    "prefix",
    ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "model.", "net.", "backbone.", "model.module.net."],
)  # fmt: skip
def test_prefixes_are_taken_off_in_any_order(prefix, anchors):
    found = state_dict_of(prefixed(prefix), "x", anchors)
    assert same(found.weights)
    assert found.notes == ()


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod."])
@pytest.mark.parametrize(
    "keys",
    [
        ["state_dict"],
        ["model_state_dict"],
        ["model"],
        ["net"],
        ["model_ema"],
        ["state_dict_ema"],
        ["ema"],
        ["model_state"],
        ["teacher"],
        ["checkpoint", "model", "state_dict"],
        ["my_own_name"],
    ],
)
def test_wrappers_are_taken_off(keys, prefix):
    tree = prefixed(prefix)
    for key in reversed(keys):
        tree = {"epoch": 3, "best": torch.tensor(0.5), "optimizer": {"state": {0: {"m": torch.ones(2)}}}, key: tree}
    assert same(state_dict_of(tree, "x", ANCHOR).weights)


def test_a_module_compiled_inside_is_named_as_before():
    state = {"base_model._orig_mod.pos_embed": torch.ones(1), "classifier.weight": torch.ones(1)}
    assert set(state_dict_of(state, "x", ANCHOR).weights) == set(STATE)


def test_what_was_chosen_of_several_is_said():
    other = {name: tensor + 1 for name, tensor in STATE.items()}
    found = state_dict_of({"state_dict_ema": other, "state_dict": STATE}, "x", ANCHOR)
    assert same(found.weights)
    assert found.notes == ("took 'state_dict', left out 'state_dict_ema'",)
    found = state_dict_of({**prefixed("model."), **prefixed("ema_model.", other)}, "x", ANCHOR)
    assert same(found.weights)
    assert found.notes == ("took 'model.', left out 'ema_model.'",)
    assert same(state_dict_of({"model_ema": other}, "x", ANCHOR).weights, other)


def test_tensors_beside_a_lightning_model_are_left_out():
    found = state_dict_of({"state_dict": {**prefixed("model."), "loss.weight": torch.ones(2)}}, "x", ANCHOR)
    assert same(found.weights)
    assert "left out 1 tensors beside the model (loss.weight)" in found.notes


class Config:
    """Of another program."""


class Evil:
    def __reduce__(self):
        return (print, ("code ran",))


@pytest.mark.parametrize(
    "beside",
    [
        np.float64(0.5),
        np.float32(0.5),
        np.int64(3),
        np.bool_(True),
        np.arange(3),
        np.random.RandomState(0).get_state(),
        argparse.Namespace(lr=0.1, betas=(0.9, np.float64(0.5))),
        types.SimpleNamespace(lr=0.1),
        collections.OrderedDict(a=1),
        datetime.datetime(2024, 1, 2),
        Path("runs/x"),
        torch.float16,
        {1, 2},
    ],
)
@pytest.mark.parametrize("new", [True, False])
def test_harmless_objects_beside_the_weights_are_passed_over(tmp_path, beside, new):
    torch.save({"model": STATE, "extra": beside}, tmp_path / "x.pth", _use_new_zipfile_serialization=new)
    assert same(read_weights_file(tmp_path / "x.pth", ANCHOR).weights)


@pytest.mark.parametrize(
    ("content", "name"),
    [
        ({"model": STATE, "cfg": Config()}, "test_weights_file.Config"),
        ({"model": STATE, "f": functools.partial(print)}, "functools.partial"),
        ({"model": STATE, "d": collections.defaultdict(list, a=[1])}, "collections.defaultdict"),
        (nn.Linear(2, 2), "torch.nn.modules.linear.Linear"),
        (Evil(), "print"),
    ],
)
@pytest.mark.parametrize("new", [True, False])
def test_other_objects_are_named_and_not_made(tmp_path, capsys, content, name, new):
    torch.save(content, tmp_path / "x.pth", _use_new_zipfile_serialization=new)
    with pytest.raises(ArtifactError) as error:
        read_weights_file(tmp_path / "x.pth")
    message = str(error.value)
    assert name in message
    assert "torch.save(model.state_dict(), FILE)" in message
    assert "weights_only" not in message
    assert message.isprintable()
    assert capsys.readouterr().out == ""


def files():
    """Bytes of files that are none of weights, and what each is."""
    return {
        "html": ((DATA / "html.pth").read_bytes(), "a web page"),
        "doctype": (b"\n<!DOCTYPE html><html></html>", "a web page"),
        "lfs": ((DATA / "lfs.pth").read_bytes(), "a Git LFS pointer"),
        "empty": (b"", "an empty file"),
        "zeros": (bytes(1000), "a file of zeros"),
        "gguf": (b"GGUF" + bytes(100), "a GGUF file"),
        "hdf5": (b"\x89HDF\r\n\x1a\n" + bytes(100), "an HDF5 file"),
        "npy": (b"\x93NUMPY\x01\x00", "a NumPy array"),
        "gzip": (b"\x1f\x8b\x08" + bytes(9), "a gzip archive"),
        "onnx": (b"\x08\x09\x12\x07pytorch", "an ONNX graph; give the weights that it was exported from"),
        "text": (b"hello, this is text\n", "a text file"),
        "json": (b'{"a": 1}', "a JSON file"),
        "png": (b"\x89PNG\r\n\x1a\n", "a PNG image"),
        "bytes": (b"\x01\x02\x03\xff\xfe", "a file of an unknown kind"),
        "cut": (b"PK\x03\x04" + bytes(200), "a zip archive that is damaged or cut off"),
        "pickle": (b"\x80\x02}q\x00(", "it is damaged or cut off"),
    }


@pytest.mark.parametrize("name", files())
def test_files_of_other_kinds_are_named(tmp_path, name):
    content, says = files()[name]
    (tmp_path / "x.pth").write_bytes(content)
    with pytest.raises(ArtifactError) as error:
        read_weights_file(tmp_path / "x.pth")
    assert says in str(error.value)
    assert str(error.value).isprintable()


def test_archives_of_other_kinds_are_named(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.pth", "w") as archive:
        archive.writestr("model/README", "x")
    np.savez(tmp_path / "b.npz", a=np.zeros(1))
    with zipfile.ZipFile(tmp_path / "c.pth", "w") as archive:
        for name in ("data.pkl", "constants.pkl", "code/__torch__.py"):
            archive.writestr(f"net/{name}", "x")
    torch.save(STATE, tmp_path / "d.pth")
    (tmp_path / "d.pth").write_bytes((tmp_path / "d.pth").read_bytes()[:-400])
    for name, says in (
        ("a.pth", "a zip archive that PyTorch did not write"),
        ("b.npz", "a NumPy archive"),
        ("c.pth", "a TorchScript archive; save its weights: torch.save(torch.jit.load(FILE).state_dict(), NEW)"),
        ("d.pth", "damaged or cut off"),
        ("none.pth", "no such file"),
        (".", "cannot be read (Is a directory)"),
    ):
        with pytest.raises(ArtifactError) as error:
            read_weights_file(tmp_path / name)
        assert says in str(error.value)


@pytest.mark.parametrize("name", ["x.safetensors", "x.pth"])
def test_safetensors_are_read_whatever_they_are_called(tmp_path, name):
    save_file(prefixed("module."), str(tmp_path / name))
    assert same(read_weights_file(tmp_path / name, ANCHOR).weights)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-1])
    with pytest.raises(ArtifactError, match="damaged or cut off"):
        read_weights_file(tmp_path / name)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_no_numbers_are_refused_by_name(tmp_path, value):
    broken = {**STATE, "classifier.weight": torch.tensor([1.0, value])}
    torch.save({"model": prefixed("module.", broken)}, tmp_path / "x.pth")
    with pytest.raises(ArtifactError, match=r"classifier\.weight holds NaN or infinity"):
        read_weights_file(tmp_path / "x.pth", ANCHOR)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ([1, 2], "holds a list, not a state dict"),
        ({0: torch.ones(1)}, "its keys are numbers such as 0"),
        ({"state_dict": {0: torch.ones(1)}, 1: 2}, "numbers such as 1"),
        ({"epoch": 3}, "it has no tensors, it holds 'epoch'"),
        ({}, "it holds nothing"),
        ({"w": torch.ones(2).to_sparse()}, "w is not a plain tensor"),
    ],
)
def test_what_is_no_state_dict_is_one_line(tmp_path, content, says):
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(ArtifactError) as error:
        read_weights_file(tmp_path / "x.pth")
    assert says in str(error.value)


def test_models_of_other_programs_are_recognised():
    def of(**shapes):
        return {name: torch.zeros(shape) for name, shape in shapes.items()}

    vit = {"patch_embed.proj.weight": (192, 3, 16, 16), "head.weight": (5, 192)}
    vit |= {f"blocks.{block}.attn.qkv.weight": (576, 192) for block in range(12)}
    assert looks_like(of(**vit)) == "a plain timm ViT (embed dim 192, depth 12, 5 classes)"
    assert "distilled DeiT" in looks_like(of(**vit, dist_token=(1, 1, 192)))
    hub = {f"vit.encoder.layer.{layer}.output.dense.weight": (2, 2) for layer in range(3)}
    assert "Hugging Face transformers (depth 3)" in looks_like(of(**hub, **{"vit.embeddings.cls_token": (1,)}))
    vision = {f"encoder.layers.encoder_layer_{layer}.mlp.0.weight": (2, 2) for layer in range(4)}
    assert looks_like(of(**vision, **{"conv_proj.weight": (2, 2)})) == "a ViT of torchvision (depth 4)"
    resnet = {f"layer{stage}.{block}.conv1.weight": (2, 2) for stage in range(1, 5) for block in range(2)}
    assert "ResNet of timm or torchvision (8 blocks, 10 classes)" in looks_like(
        of(**resnet, **{"conv1.weight": (2, 2), "fc.weight": (10, 2)})
    )
    assert looks_like(of(x=(1,))) is None
