"""The journeys of the README, run command by command as they stand there: trained ViT, folder of images, log of trtexec."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import timm
import torch

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
RECORDED = ROOT / "tests/recorded/trtexec"
SMALL = {
    "adopt": ("--image-size", 64),
    "quantize": ("--images", 16),
    "train": ("--set", "model.image_size=32", "--set", "model.budget=12,8,4", "--set", "train.steps=2"),
    "verify": ("--images", 8),
}
"""For a test of some seconds; nothing of it is a decision of the journey."""


def commands(heading: str) -> list[list[str]]:
    """Returns the commands of the first block under a heading of the README."""
    block = re.search(rf"^### {heading}\n\n```text\n(.*?)```", README, re.DOTALL | re.MULTILINE)[1]
    return [line.split() for line in block.strip().splitlines()]


@pytest.fixture
def run(gft_edge, animals, tmp_path, monkeypatch):
    """Runs a journey in an empty folder with the images; returns its verbs and the last command's result."""
    monkeypatch.chdir(tmp_path)
    Path("images").symlink_to(animals)

    def journey(heading, replaced=()):
        verbs = []
        for program, verb, *arguments in commands(heading):
            arguments = [dict(replaced).get(argument, argument) for argument in arguments]
            done = gft_edge(verb, *arguments, *SMALL.get(verb, ()))
            assert (program, done.code) == ("gft-edge", 0), done.out + done.err
            verbs.append(verb)
        return verbs, done

    return journey


def test_a_trained_vit_becomes_a_verified_bundle_in_five_commands(run):
    torch.manual_seed(0)
    weights = timm.create_model("vit_tiny_patch16_224", img_size=64, num_classes=4).state_dict()
    for name, weight in weights.items():
        if name.endswith(("attn.proj.weight", "fc2.weight")):
            weight *= 0.1  # random blocks amplify what rounding changes; trained ones do not
    torch.save({**weights, "head.weight": torch.randn(4, 192)}, "vit.pth")  # classes are clear-cut
    Path("classes.txt").write_text("\n".join(sorted(path.name for path in Path("images").iterdir())))
    verbs, done = run("A trained ViT", {"vit_small_patch16_224": "vit_tiny_patch16_224"}.items())
    assert verbs == ["adopt", "quantize", "export", "verify", "bundle"]
    assert "bundle for jetson on orin-nano" in done.out
    assert Path("runs/bundle.zip").is_file()


def test_a_folder_of_images_becomes_a_bundle_in_five_commands(run):
    verbs, _ = run("A folder of images")
    assert verbs == ["train", "quantize", "export", "verify", "bundle"]
    assert Path("runs/own-bundle.zip").is_file()


def test_a_log_becomes_a_page_in_two_commands(run, tiny_artifact):
    shutil.copytree(tiny_artifact, "runs/own")
    shutil.copy(RECORDED / "orin-10.3.log", "trtexec.log")
    shutil.copy(RECORDED / "times.json", "times.json")
    verbs, _ = run("A trtexec log")
    assert verbs == ["bench", "report"]
    assert "trtexec" in Path("runs/orin/bench.html").read_text(encoding="utf-8")
