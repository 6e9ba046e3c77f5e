"""Names of backbones that have a source are for pretrained training alone."""

from __future__ import annotations

import json
import shutil
import socket

import pytest
import timm
from torch import nn

from gft_edge.checkpoint import load_checkpoint
from gft_edge.config.model import GFTConfig
from gft_edge.errors import ArtifactError, ConfigError
from gft_edge.model.backbone import architecture_of, create_network
from gft_edge.model.build import build_model
from gft_edge.storage.seals import write_sealed


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*_, **__):
        pytest.fail("opened a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.mark.parametrize(
    "name", ["hf-hub:someone/anything", "hf_hub:a/b", "local-dir:/tmp", "someone/anything", "https://x/y"]
)
@pytest.mark.parametrize("variant", ["timm", "transfg"])
def test_a_name_with_a_source_is_refused_before_timm_sees_it(name, variant, monkeypatch):
    monkeypatch.setattr(timm, "create_model", lambda *_, **__: pytest.fail("reached timm"))
    with pytest.raises(ConfigError, match=r"names a source, which is read only with model\.pretrained=true"):
        build_model(GFTConfig(name, 224, 3, variant=variant))


def test_a_checkpoint_opens_no_connection(tiny_checkpoint, tmp_path):
    folder = shutil.copytree(tiny_checkpoint, tmp_path / "ckpt")
    config = json.loads((folder / "config.json").read_text())
    config["model"]["backbone"] = "hf-hub:someone/anything"
    write_sealed(folder / "config.json", config)
    with pytest.raises(ArtifactError, match="'hf-hub:someone/anything' names a source"):
        load_checkpoint(folder)


def test_pretrained_training_may_ask_and_keeps_the_plain_name(monkeypatch):
    plain = timm.create_model("test_vit", num_classes=3)
    monkeypatch.setattr(timm, "create_model", lambda *_, **__: plain)
    assert create_network("hf-hub:someone/anything", True) is plain
    assert architecture_of(nn.Sequential(plain), "hf-hub:someone/anything") == "test_vit"
    assert architecture_of(nn.Sequential(plain), "vit_tiny_patch16_224") == "vit_tiny_patch16_224"
    assert architecture_of(nn.Linear(1, 1), "hf-hub:a/b") == "hf-hub:a/b"
