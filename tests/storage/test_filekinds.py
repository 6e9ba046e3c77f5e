"""What a file is, and what is words of one where a folder should be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from gft_edge.checkpoint import load_checkpoint, resolve_checkpoint
from gft_edge.cli.common import is_artifact
from gft_edge.config.recipe import load_recipe
from gft_edge.errors import ArtifactError, ConfigError
from gft_edge.manifest import load_artifact
from gft_edge.storage.filekinds import describe_file, kind_of, require_graph
from gft_edge.storage.seals import write_sealed

ONNX = b"\x08\x09\x12\x07pytorch\x3a\x02\x0a\x00"


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("a.onnx", b"anything", "a text file"),
        ("a.bin", ONNX, "an ONNX graph"),
        ("a.bin", b"\x08\x07:\x04abcd", "an ONNX graph"),
        ("a.onnx", b"<html>404</html>", "a web page (HTML), so the download did not give the file itself"),
        ("a.onnx", b"version https://git-lfs.github.com/spec/v1\noid", None),
        ("a.onnx", b"", "an empty file"),
        ("a.plan", b"\x01\x02\x03\x04", "a TensorRT engine"),
        ("a.tflite", b"\x1c\x00\x00\x00TFL3", "a TensorFlow Lite graph"),
        ("a.tar", bytes(257) + b"ustar", "a tar archive; unpack it first"),
        ("a.txt", "größe\n".encode(), "a text file"),
        ("a", b"\x08\x63\x12\x01", "a file of an unknown kind"),
    ],
)
def test_kinds(tmp_path, name, content, kind):
    (tmp_path / name).write_bytes(content if name != "a.tar" else b"x" + content[1:])
    found = kind_of(tmp_path / name)
    assert found == kind or (kind is None and found.startswith("a Git LFS pointer"))


def test_graphs_of_the_repository_are_known():
    for file in Path(__file__).parents[1].rglob("*.onnx"):
        assert kind_of(file) in ("an ONNX graph", "an empty file"), file


@pytest.mark.parametrize(
    "reader", [load_artifact, resolve_checkpoint, load_checkpoint, lambda path: is_artifact(str(path))]
)
def test_a_foreign_graph_is_called_one_and_the_verb_that_takes_it_named(tmp_path, reader):
    (tmp_path / "vit.onnx").write_bytes(ONNX)
    with pytest.raises(ArtifactError) as error:
        reader(tmp_path / "vit.onnx")
    words = str(error.value)
    assert "is an ONNX graph" in words
    assert "lint, quantize, verify, bench and build take the graph" in words
    assert "folder" in words
    assert "no such folder" not in words


@pytest.mark.parametrize("reader", [load_artifact, resolve_checkpoint])
def test_foreign_weights_are_called_so(tmp_path, reader):
    torch.save({"w": torch.ones(1)}, tmp_path / "plain.pth")
    with pytest.raises(ArtifactError, match=r"is a PyTorch file; gft-edge import-published reads"):
        reader(tmp_path / "plain.pth")


def test_a_file_inside_a_folder_leads_to_it(tiny_checkpoint):
    with pytest.raises(ArtifactError, match=rf"is a file of a checkpoint; give its folder {tiny_checkpoint}"):
        resolve_checkpoint(tiny_checkpoint / "model.safetensors")


def test_a_checkpoint_is_no_artefact_and_the_other_way_round(tiny_checkpoint, tmp_path):
    with pytest.raises(
        ArtifactError, match=rf"is a checkpoint; make an artefact of it with gft-edge export {tiny_checkpoint}"
    ):
        load_artifact(tiny_checkpoint)
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(ArtifactError, match="is an exported artefact, not a checkpoint"):
        resolve_checkpoint(tmp_path)
    with pytest.raises(ArtifactError, match=r"has no manifest\.json; make one with gft-edge export"):
        load_artifact(tmp_path.parent)


def test_a_configuration_far_larger_than_its_weights_is_refused_before_it_is_built(
    tiny_checkpoint, tmp_path, monkeypatch
):
    import shutil

    from gft_edge.model import build

    monkeypatch.setattr(build, "build_model", lambda *_: pytest.fail("built it"))
    folder = shutil.copytree(tiny_checkpoint, tmp_path / "x")
    config = json.loads((folder / "config.json").read_text())
    config["model"] |= {"depth": 10_000, "embed_dim": 768, "num_heads": 12}
    write_sealed(folder / "config.json", config)
    with pytest.raises(
        ArtifactError, match=r"10000 blocks of width 768, at least 47185 MB, model\.safetensors has 0\.\d MB"
    ):
        load_checkpoint(folder)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "no such file; give an ONNX file or the folder of an artefact"),
        (b"", "it is an empty file"),
        (b"<html>", "it is a web page"),
        (b"\x89PNG", "it is a PNG image"),
        (b"<?xml version='1.0'?><net/>", "it is an XML file"),
    ],
)
def test_what_is_no_graph_is_named(tmp_path, content, says):
    if content is not None:
        (tmp_path / "m.onnx").write_bytes(content)
    with pytest.raises(ArtifactError, match=says):
        require_graph(tmp_path / "m.onnx")
    with pytest.raises(ArtifactError, match="Is a directory"):
        require_graph(tmp_path)


def test_a_file_that_cannot_be_read_is_said(tmp_path):
    assert "cannot be read" in describe_file(tmp_path / "none")


@pytest.mark.parametrize(("content", "says"), [("hello", "it is a text file"), ('{"a": 1}', "it is a JSON file")])
def test_a_graph_in_words_is_no_binary_one(tmp_path, content, says):
    (tmp_path / "m.txt").write_text(content)
    with pytest.raises(ArtifactError, match=says):
        require_graph(tmp_path / "m.txt")


def test_a_recipe_that_is_another_file_is_named(tmp_path):
    (tmp_path / "r.toml").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ConfigError, match="expected TOML or JSON, it is a Git LFS pointer"):
        load_recipe(tmp_path / "r.toml")
    (tmp_path / "m.onnx").write_bytes(b"\x08\x08::")
    with pytest.raises(ConfigError, match="expected TOML or JSON, it is an ONNX graph"):
        load_recipe(tmp_path / "m.onnx")
