"""``gft-edge adopt``: what it prints and writes, and what it refuses."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import timm
import torch

from gft_edge.budget import TokenBudget
from gft_edge.checkpoint import load_checkpoint
from gft_edge.cli.parsing import verb_parser
from gft_edge.cli.verbs import adopt as adopt_verb
from gft_edge.model.macs import count_macs

TINY = "vit_tiny_patch16_224"


class Code:
    """An object that only running code could make."""


@pytest.fixture(scope="module")
def files(tmp_path_factory, quantized, tiny_checkpoint):
    """Files of weights by name, and folders that are none."""
    root = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    vit = timm.create_model(TINY, img_size=64, num_classes=4).state_dict()
    vit["head.weight"] = torch.randn(4, 192)
    contents = {
        "vit.pth": {"model": {f"module.{name}": tensor for name, tensor in vit.items()}, "epoch": 3},
        "headless.pth": {name: tensor for name, tensor in vit.items() if not name.startswith("head")},
        "resnet.pth": timm.create_model("resnet18").state_dict(),
        "mobilenet.pth": {f"features.{number}.conv.weight": torch.ones(1, 1, 3, 3) for number in range(9)},
        "swin.pth": {"layers.0.attn.relative_position_bias_table": torch.ones(3)},
        "siglip.pth": {name: tensor for name, tensor in vit.items() if name != "cls_token"},
        "pooled.pth": {**vit, "fc_norm.weight": torch.ones(192)},
        "old.pth": {**vit, "stages.0.attn.q.weight": torch.ones(3)},
        "published.pth": {"base_model.pos_embed": torch.ones(1, 5, 8), "classifier.weight": torch.ones(3, 8)},
        "pickled.pth": {"model": vit, "cfg": Code()},
        "optimizer.pth": {"optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}}, "epoch": 3},
        "nan.pth": {**vit, "norm.weight": torch.full((192,), torch.nan)},
        "int8.pth": {**vit, "blocks.0.mlp.fc1.weight": torch.ones(768, 192, dtype=torch.int8)},
        "lora.pth": {**vit, "blocks.0.attn.qkv.lora_A.weight": torch.ones(4, 192)},
        "dino.pth": {
            **{f"student.backbone.{name}": tensor for name, tensor in vit.items()},
            **{f"teacher.backbone.{name}": tensor for name, tensor in vit.items()},
        },
        "list.pth": [vit],
        "unbiased.pth": {name: tensor for name, tensor in vit.items() if not name.endswith("qkv.bias")},
        "narrow.pth": timm.create_model(TINY, img_size=64, embed_dim=100, num_heads=2, num_classes=4).state_dict(),
    }
    for name, content in contents.items():
        torch.save(content, root / name)
    (root / "empty.pth").touch()
    (root / "labels.txt").write_text("ant\nbee\ncat\ndog\n")
    (root / "two.txt").write_text("ant\nbee\n")
    (root / "hub").mkdir()
    (root / "hub/model.safetensors").touch()
    (root / "hub/config.json").write_text('{"model_type": "vit"}')
    (root / "nothing").mkdir()
    (root / "two").mkdir()
    for name in ("b.pth", "a.bin", "config.json"):
        (root / "two" / name).touch()
    return {"root": root, "ckpt": tiny_checkpoint, "ckpt8": quantized}


@pytest.fixture
def adopt(gft_edge, files, tmp_path):
    def run(name, *options, backbone=TINY):
        size = () if "--image-size" in options else ("--image-size", 64)
        return gft_edge(
            "adopt", files["root"] / name, "--backbone", backbone, *size, *options, "--out", tmp_path / "out"
        )

    return run


def test_the_table_says_what_became_of_the_weights(adopt, files, tmp_path):
    done = adopt("vit.pth", "--labels", files["root"] / "labels.txt", "--budget", "12,6,3", "--score", "column-gala")
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert lines[0] == f"{tmp_path / 'out'}: no weight was trained"
    for text in (
        "matched    152    under the names of timm",
        "resampled  0",
        "left out   0",
        "missing    0",
        "blocks 3, 5, 7 of 12 by column-gala, budget 12-6-3 of 16",
        "4, names: labels.txt",
        "mean 0.5/0.5/0.5",
        "as timm's vit_tiny_patch16_224.augreg_in21k_ft_in1k",
        f"gft-edge quantize {tmp_path / 'out'}",
        "gft-edge build",
    ):
        assert text in done.out, text
    info = load_checkpoint(tmp_path / "out").info
    assert info.labels == ("ant", "bee", "cat", "dog")
    assert info.provenance["adopted_from"] == "vit.pth"
    assert info.model.score == "column-gala"
    assert "full budget the logits are those of the" in (tmp_path / "out/card.md").read_text()


def test_json_has_everything(adopt, tmp_path):
    done = adopt("headless.pth", "--stages", "2,4", "--align", 2, "--json", "--image-size", 128)
    assert done.code == 0, done.err
    data = done.json
    assert data["missing"] == ["head.weight", "head.bias"] and data["untrained"]
    assert load_checkpoint(tmp_path / "out").info.model.score == "class-row", "the best one without training"
    assert data["resampled"] == ["pos_embed from 4 x 4 to 8 x 8 patches"]
    assert data["config"]["stages"] == [2, 4]
    assert data["config"]["budget"]["keep"] == list(TokenBudget((42, 21), 64).align(2, 1).keep)
    assert data["matched"] == 150 and data["preprocess"]["height"] == 128
    assert "note: the weights have no classifier that fits" in done.err


def test_many_names_are_listed_with_v(adopt, files, tmp_path):
    state = torch.load(files["root"] / "vit.pth")["model"]
    torch.save({**state, **{f"text.layer{number}": torch.ones(1) for number in range(12)}}, files["root"] / "more.pth")
    assert "left out   12     text.layer0, text.layer1, text.layer10 ... (-v lists all)" in adopt("more.pth").out
    (tmp_path / "out").rename(tmp_path / "first")
    assert "text.layer11" in adopt("more.pth", "-v").out


def test_which_of_two_models_was_taken_is_said(adopt):
    done = adopt("dino.pth")
    assert done.code == 0, done.err
    assert "note: took 'student.backbone.', left out 'teacher.backbone.'" in done.err


def test_with_data_the_price_is_known(adopt, files, animals, tmp_path):
    """As evaluate measures it, at the full budget, the checkpoint's own and every other one."""
    labels = ("--labels", files["root"] / "labels.txt")
    done = adopt("vit.pth", *labels, "--data", animals, "--budget", "12,6,3", "--budget", "5,4,3", "--json")
    assert done.code == 0, done.err
    results = done.json["evaluation"]["results"]
    assert [row["budget"] for row in results] == ["16-16-16", "12-6-3", "5-4-3"]
    assert done.json["evaluation"]["images"] == 24
    metrics = load_checkpoint(tmp_path / "out").info.metrics
    assert metrics["top1_full"] == results[0]["top1"] and metrics["top1_5-4-3"] == results[2]["top1"]


def test_with_data_as_text_and_as_evaluate(gft_edge, adopt, files, animals, tmp_path):
    done = adopt("vit.pth", "--labels", files["root"] / "labels.txt", "--data", animals, "--images", 12)
    assert done.code == 0, done.err
    assert f"accuracy on 12 test images of {animals}, before any training" in done.out
    table = done.out[done.out.index("budget  ") :].splitlines()
    assert table[2].split()[:2] == ["16-16-16", "100.0%"] and table[2].split()[-1] == "+0.00"
    assert f"--data {animals}" in done.out
    assert "measure on images that they were not trained on" in done.err
    again = gft_edge("evaluate", tmp_path / "out", "--data", animals, "--images", 12, "--json")
    assert f"{again.json['results'][1]['top1']:.2%}" in table[3]
    config = load_checkpoint(tmp_path / "out").info.model
    assert f"{count_macs(config) / count_macs(config, config.full_budget):.1%}" == table[3].split()[1]


def test_an_untrained_classifier_is_not_measured(adopt, animals):
    done = adopt("headless.pth", "--data", animals)
    assert done.code == 0, done.err
    assert "not measured, the classifier is untrained" in done.out
    assert "next: train the classifier" in done.out


def test_folders_named_by_wordnet_ids_match_imagenet(adopt, files, tmp_path, animals):
    state = timm.create_model(TINY, img_size=64).state_dict()
    torch.save(state, files["root"] / "imagenet.pth")
    for name, image in (("n01440764", "ant"), ("n03126707", "bee")):
        (tmp_path / "data/test" / name).mkdir(parents=True)
        source = next((animals / image).iterdir())
        (tmp_path / "data/test" / name / source.name).write_bytes(source.read_bytes())
        (tmp_path / "data/train" / name).mkdir(parents=True)
        (tmp_path / "data/train" / name / source.name).write_bytes(source.read_bytes())
    done = adopt("imagenet.pth", "--data", tmp_path / "data", "--json")
    assert done.code == 0, done.err
    assert load_checkpoint(tmp_path / "out").info.labels[0] == "n01440764"


REFUSED = {
    "cnn": (["resnet.pth"], "looks like a plain ResNet", "adopt needs a ViT with a class token"),
    "other cnn": (["mobilenet.pth"], "looks like a convolutional network (9 convolutions)"),
    "swin": (["swin.pth"], "looks like a Swin Transformer"),
    "no class token": (["siglip.pth"], "has no class token; it looks like a plain timm ViT (embed dim 192, depth 12"),
    "average pooling": (["pooled.pth"], "fc_norm.weight (192,) is in the weights and not in the backbone"),
    "old focal": (["old.pth"], "a focal GFT of an earlier form"),
    "published": (["published.pth"], "use gft-edge import-published"),
    "pickled code": (["pickled.pth"], "test_adopt.Code, which is code and is not run"),
    "optimizer": (["optimizer.pth"], "it has no tensors, it holds 'optimizer', 'epoch'"),
    "nan": (["nan.pth"], "norm.weight holds NaN or infinity"),
    "int8 weights": (["int8.pth"], "blocks.0.mlp.fc1.weight is int8; adopt full-precision weights"),
    "lora": (["lora.pth"], "merge the LoRA layers into the weights first"),
    "list": (["list.pth"], "holds a list, not a state dict"),
    "empty": (["empty.pth"], "it is an empty file"),
    "missing": (["none.pth"], "none.pth: no such file"),
    "own checkpoint": (["{ckpt}"], "is a checkpoint of gft-edge already"),
    "quantized checkpoint": (["{ckpt8}"], "is a checkpoint of gft-edge already"),
    "quantized weights": (["{ckpt8}/model.safetensors"], "belongs to a quantized checkpoint"),
    "downloaded folder": (["hub"], "is a folder; give {root}/hub/model.safetensors"),
    "folder": (["nothing"], "is a folder without weights; give a file of weights (.safetensors, .pth, .pt or .bin)"),
    "folder of several": (["two"], "is a folder; give one of its files of weights: {root}/two/a.bin, {root}/two/b.pth"),
    "another backbone": (
        ["vit.pth", "--backbone", "vit_small_patch16_224"],
        "cls_token is (1, 1, 192) in the weights, (1, 1, 384) in the backbone",
        "width 192, depth 12, patches of 16 pixels; give --backbone vit_tiny_patch16_224",
    ),
    "sizes of no backbone": (["narrow.pth"], "width 100", "no ViT of timm with a class token has these sizes"),
    "tensors of no backbone": (
        ["unbiased.pth"],
        "blocks.0.attn.qkv.bias is not in the weights",
        "no ViT of timm with a class token has these tensors",
    ),
    "misspelt backbone": (["vit.pth", "--backbone", "vit_tny_patch16_224"], "did you mean 'vit_tiny_patch16_224'?"),
    "unknown tag": (["vit.pth", "--backbone", f"{TINY}.nope"], "Invalid pretrained tag (nope)"),
    "downloaded backbone": (["vit.pth", "--backbone", "hf-hub:timm/x"], "names a source"),
    "cnn backbone": (["vit.pth", "--backbone", "resnet18"], "is a ResNet, not a timm VisionTransformer"),
    "pooling backbone": (["vit.pth", "--backbone", "vit_base_patch16_siglip_224"], "has no class token"),
    "SwiGLU backbone": (
        ["vit.pth", "--backbone", "vit_giant_patch14_dinov2", "--image-size", "28"],
        "has an MLP that is not two layers",
    ),
    "q-k norm backbone": (
        ["vit.pth", "--backbone", "vit_base_patch16_rpn_224"],
        "has blocks that are not timm's Block",
    ),
    "labels": (["vit.pth", "--labels", "{root}/two.txt"], "two.txt: holds 2 names, the model has 4 classes"),
    "no labels file": (["vit.pth", "--labels", "{root}/none.txt"], "none.txt: cannot be read"),
    "score": (["vit.pth", "--score", "colum-mean"], "unknown score 'colum-mean' (did you mean 'column-mean'?)"),
    "budget": (["vit.pth", "--budget", "3,2"], "2 numbers for a model of 3 stages"),
    "second budget": (["vit.pth", "--budget", "full", "--budget", "3,2"], "2 numbers for a model of 3 stages"),
    "large budget": (["vit.pth", "--budget", "99,9,9"], "keeps 99 but the image has only 16"),
    "stages in words": (["vit.pth", "--stages", "three"], "--stages 'three': expected block numbers such as 3,5,7"),
    "stages beyond the depth": (["vit.pth", "--stages", "3,13"], "stages must be blocks 1 to 12, found [3, 13]"),
    "image size": (["vit.pth", "--image-size", "50"], "image_size 50 is not a multiple of patch_size 16"),
    "data of other classes": (["vit.pth", "--data", "{data}"], "its 4 classes are not the model's 4", "--labels FILE"),
    "no data": (["vit.pth", "--data", "{root}/none"], "none"),
    "images of no data": (["vit.pth", "--images", "8"], "--images chooses images of --data; give --data D"),
    "split of no data": (["vit.pth", "--split", "val"], "--split chooses images of --data; give --data D"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals(gft_edge, files, animals, tmp_path, case):
    (name, *options), *texts = REFUSED[case]
    fill = {**{key: str(path) for key, path in files.items()}, "data": str(animals)}
    weights = name.format(**fill) if name.startswith("{") else files["root"] / name
    chosen = [option.format(**fill) for option in options]
    for flag, value in (("--backbone", TINY), ("--image-size", "64")):
        chosen += [] if flag in chosen else [flag, value]
    done = gft_edge("adopt", weights, *chosen, "--out", tmp_path / "deep/out")
    assert done.code == 2
    assert done.out == ""
    assert done.err.startswith("gft-edge adopt: ") and done.err.count("\n") == 1
    for text in texts:
        assert text.format(**fill) in done.err
    assert not (tmp_path / "deep").exists()


def test_an_output_that_is_not_empty_is_left_alone(gft_edge, files, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine").write_text("x")
    done = gft_edge("adopt", files["root"] / "vit.pth", "--backbone", TINY, "--out", tmp_path / "out")
    assert done.code == 2 and "not empty; give another --out or remove it first" in done.err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]


def test_the_page_names_the_options_of_the_verb():
    page = (Path(__file__).parents[2] / "docs/adopt.md").read_text(encoding="utf-8")
    named = set(re.findall(r"^\| `(--[a-z-]+)", page, re.MULTILINE))
    flags = set(verb_parser("adopt", adopt_verb).flags())
    assert named <= flags and len(named) == 7
    for command in re.findall(r"^gft-edge adopt (.*)$", page, re.MULTILINE):
        verb_parser("adopt", adopt_verb).parse_args(command.split())


def test_backbone_is_required(gft_edge, files):
    done = gft_edge("adopt", files["root"] / "vit.pth", "--out", "x")
    assert done.code == 2 and "--backbone" in done.err


def test_config_of_another_program_beside_the_weights_is_ignored(gft_edge, files, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["ViT"], "quantization": {"bits": 4}}))
    from safetensors.torch import save_file

    state = {
        name.removeprefix("module."): tensor for name, tensor in torch.load(files["root"] / "vit.pth")["model"].items()
    }
    save_file(state, tmp_path / "model.safetensors")
    done = gft_edge(
        "adopt", tmp_path / "model.safetensors", "--backbone", TINY, "--image-size", 64, "--out", tmp_path / "out"
    )
    assert done.code == 0, done.err
