"""Adopted models compute what the models they come from compute, and what does not fit is refused with the reason."""

from __future__ import annotations

import re

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models.vision_transformer import checkpoint_filter_fn

from gft_edge.checkpoint import load_checkpoint
from gft_edge.errors import ArtifactError
from gft_edge.model.foreign.adopt import Difference, current_name, fit_weights, nearest_backbone, reference_vit
from gft_edge.model.foreign.names import ANCHORS, TimmWeights, timm_weights
from gft_edge.model.foreign.weights_file import StateDict, state_dict_of
from gft_edge.train.adopt_weights import AdoptOptions, adopt_weights, preprocess_of

BACKBONES = {
    "vit_tiny_patch16_224": 48,
    "deit_tiny_distilled_patch16_224": 48,
    "vit_small_patch14_dinov2": 56,
    "vit_small_patch14_reg4_dinov2": 56,
    "deit3_small_patch16_224": 48,
    "vit_xsmall_patch16_clip_224": 48,
}
"""Backbones with the image size of the tests."""


@pytest.fixture(scope="module")
def networks():
    """timm's models with random weights, far from their initial values."""
    made = {}

    def make(name, **options):
        if name not in made:
            network = timm.create_model(name, img_size=BACKBONES[name], num_classes=3).eval()
            generator = torch.Generator().manual_seed(1)
            with torch.no_grad():
                for parameter in network.parameters():
                    noise = torch.randn(parameter.shape, generator=generator)
                    parameter.copy_(parameter + (0.1 if parameter.ndim > 1 else 0.3) * noise)
            made[name] = network
        return made[name]

    return make


def transformers_vit(state):
    """Names of version 4 of transformers for timm's, written apart from the rules."""
    ends = {
        "norm1": "layernorm_before",
        "norm2": "layernorm_after",
        "attn.proj": "attention.output.dense",
        "mlp.fc1": "intermediate.dense",
        "mlp.fc2": "output.dense",
    }
    tree = {}
    for name, tensor in state.items():
        if block := re.match(r"blocks\.(\d+)\.(.+)\.(weight|bias)$", name):
            start, end = f"vit.encoder.layer.{block[1]}.", block[3]
            if block[2] == "attn.qkv":
                for part, piece in zip(("query", "key", "value"), tensor.chunk(3)):
                    tree[f"{start}attention.attention.{part}.{end}"] = piece.clone()
            else:
                tree[f"{start}{ends[block[2]]}.{end}"] = tensor
    for end in ("weight", "bias"):
        tree[f"vit.embeddings.patch_embeddings.projection.{end}"] = state[f"patch_embed.proj.{end}"]
        tree[f"vit.layernorm.{end}"], tree[f"classifier.{end}"] = state[f"norm.{end}"], state[f"head.{end}"]
    return {
        **tree,
        "vit.embeddings.cls_token": state["cls_token"],
        "vit.embeddings.position_embeddings": state["pos_embed"],
    }


def torchvision_vit(state):
    """Names of torchvision for timm's."""
    tree = {}
    pairs = [
        ("norm1", "ln_1"),
        ("norm2", "ln_2"),
        ("attn.proj", "self_attention.out_proj"),
        ("mlp.fc1", "mlp.0"),
        ("mlp.fc2", "mlp.3"),
    ]
    for end in ("weight", "bias"):
        tree[f"conv_proj.{end}"], tree[f"heads.head.{end}"] = state[f"patch_embed.proj.{end}"], state[f"head.{end}"]
        tree[f"encoder.ln.{end}"] = state[f"norm.{end}"]
        for block in range(12):
            start = f"encoder.layers.encoder_layer_{block}."
            tree[f"{start}self_attention.in_proj_{end}"] = state[f"blocks.{block}.attn.qkv.{end}"]
            for own, theirs in pairs:
                tree[f"{start}{theirs}.{end}"] = state[f"blocks.{block}.{own}.{end}"]
    return {**tree, "class_token": state["cls_token"], "encoder.pos_embedding": state["pos_embed"]}


def openai_clip(state):
    """Names of OpenAI's CLIP for timm's; its projection has no bias."""
    swaps = [
        ("patch_embed.proj.weight", "conv1.weight"),
        ("norm_pre.", "ln_pre."),
        ("blocks.", "transformer.resblocks."),
        (".norm1.", ".ln_1."),
        (".norm2.", ".ln_2."),
        (".attn.qkv.", ".attn.in_proj_"),
        (".attn.proj.", ".attn.out_proj."),
        (".mlp.fc1.", ".mlp.c_fc."),
        (".mlp.fc2.", ".mlp.c_proj."),
    ]
    tree = {}
    for name, tensor in state.items():
        for own, theirs in swaps:
            name = name.replace(own, theirs)
        tree[f"visual.{re.sub(r'^norm', 'ln_post', name)}"] = tensor
    tree["visual.class_embedding"] = tree.pop("visual.cls_token")[0, 0]
    tree["visual.positional_embedding"] = tree.pop("visual.pos_embed")[0]
    tree["visual.proj"] = tree.pop("visual.head.weight").T
    del tree["visual.head.bias"]
    return {**tree, "logit_scale": torch.ones(())}


def dinov2(state):
    """The original repository's names: position of the class token also with registers, a mask token, chunks of blocks."""
    tree = {re.sub(r"^blocks\.(\d+)", r"blocks.0.\1", name): tensor for name, tensor in state.items()}
    if "reg_token" in tree:
        tree["register_tokens"] = tree.pop("reg_token")
        tree["pos_embed"] = torch.cat([torch.zeros(1, 1, tree["pos_embed"].shape[2]), tree["pos_embed"]], dim=1)
    return {
        "teacher": {
            **{f"backbone.{name}": tensor for name, tensor in tree.items()},
            "backbone.mask_token": torch.zeros(1, 384),
        }
    }


def plain(state):
    return {"model": {f"module.{name}": tensor for name, tensor in state.items()}}


@pytest.mark.parametrize(
    ("backbone", "names", "dropped"),
    [
        ("vit_tiny_patch16_224", plain, ()),
        ("vit_tiny_patch16_224", transformers_vit, ()),
        ("vit_tiny_patch16_224", torchvision_vit, ()),
        ("deit_tiny_distilled_patch16_224", plain, ()),
        ("deit3_small_patch16_224", plain, ()),
        ("vit_small_patch14_dinov2", dinov2, ("mask_token",)),
        ("vit_small_patch14_reg4_dinov2", dinov2, ("mask_token",)),
        ("vit_xsmall_patch16_clip_224", openai_clip, ("logit_scale",)),
    ],
)
def test_with_every_patch_the_logits_are_those_of_the_original(tmp_path, networks, backbone, names, dropped):
    network, size = networks(backbone), BACKBONES[backbone]
    state = network.state_dict()
    if names is openai_clip:
        state["head.bias"].zero_()
    torch.save(names(state), tmp_path / "x.pth")
    found = adopt_weights(tmp_path / "x.pth", tmp_path / "out", AdoptOptions(backbone, image_size=size))
    assert (found.matched, found.resampled, found.dropped, found.missing) == (len(state), (), dropped, ())
    model = load_checkpoint(tmp_path / "out").model
    images = torch.randn(3, 3, size, size)
    with torch.no_grad():
        assert torch.equal(model(images, found.config.full_budget), network(images))
        assert not torch.equal(model(images), network(images))
    assert 0 < found.macs < found.macs_full


def test_half_precision_safetensors_at_another_size(tmp_path, networks):
    """The position embedding is resampled as timm does when it loads weights."""
    name = "vit_tiny_patch16_224"
    network = networks(name)
    state = {key: tensor.half() for key, tensor in network.state_dict().items()}
    save_file(state, tmp_path / "x.safetensors")
    found = adopt_weights(tmp_path / "x.safetensors", tmp_path / "out", AdoptOptions(name, image_size=64))
    assert found.resampled == ("pos_embed from 3 x 3 to 4 x 4 patches",)
    theirs = timm.create_model(name, img_size=64, num_classes=3).eval()
    theirs.load_state_dict(checkpoint_filter_fn({key: tensor.float() for key, tensor in state.items()}, theirs))
    images = torch.randn(2, 3, 64, 64)
    model = load_checkpoint(tmp_path / "out").model
    with torch.no_grad():
        assert torch.equal(model(images, found.config.full_budget), theirs(images))


def test_a_missing_classifier_is_initialised_by_seed_and_said(tmp_path, networks):
    name = "vit_tiny_patch16_224"
    state = {key: tensor for key, tensor in networks(name).state_dict().items() if not key.startswith("head")}
    torch.save(state, tmp_path / "x.pth")
    (tmp_path / "names.txt").write_text("ant\nbee\n")
    heads = []
    for number, seed in enumerate((0, 0, 1)):
        options = AdoptOptions(name, image_size=48, labels=tmp_path / "names.txt", seed=seed)
        found = adopt_weights(tmp_path / "x.pth", tmp_path / f"{number}", options)
        heads.append(load_checkpoint(tmp_path / f"{number}").model.state_dict()["head.weight"])
    assert found.missing == ("head.weight", "head.bias")
    assert found.untrained and "untrained" in found.notes[0]
    assert found.config.num_classes == 2
    assert torch.equal(heads[0], heads[1]) and not torch.equal(heads[0], heads[2])
    found = adopt_weights(tmp_path / "x.pth", tmp_path / "unnamed", AdoptOptions(name, image_size=48))
    assert (found.config.num_classes, found.labels_from) == (1000, "numbered")


def test_one_classifier_of_a_distilled_model_is_not_enough(tmp_path, networks):
    name = "deit_tiny_distilled_patch16_224"
    state = {key: tensor for key, tensor in networks(name).state_dict().items() if not key.startswith("head_dist")}
    torch.save(state, tmp_path / "x.pth")
    found = adopt_weights(tmp_path / "x.pth", tmp_path / "out", AdoptOptions(name, image_size=48))
    assert set(found.missing) == {"head.weight", "head.bias", "head_dist.weight", "head_dist.bias"}
    assert "head.weight" in found.dropped


def test_labels_replace_the_projection_of_clip(tmp_path, networks):
    name = "vit_xsmall_patch16_clip_224"
    torch.save(openai_clip(dict(networks(name).state_dict())), tmp_path / "x.pth")
    (tmp_path / "names.json").write_text('["ant", "bee", "cat", "dog"]')
    options = AdoptOptions(name, image_size=48, labels=tmp_path / "names.json")
    found = adopt_weights(tmp_path / "x.pth", tmp_path / "out", options)
    assert found.config.num_classes == 4 and found.untrained
    assert "visual.proj" in found.dropped or "proj" in found.dropped
    without = adopt_weights(tmp_path / "x.pth", tmp_path / "without", AdoptOptions(name, image_size=48))
    assert any("image embedding" in note for note in without.notes)
    assert any("quickgelu" in note for note in without.notes)


@pytest.mark.parametrize(
    ("backbone", "mean", "crop", "interpolation", "resize"),
    [
        ("vit_tiny_patch16_224", 0.5, 0.9, "bicubic", "crop"),
        ("deit_tiny_distilled_patch16_224", 0.485, 0.9, "bicubic", "crop"),
        ("vit_base_patch16_224.dino", 0.485, 0.9, "bicubic", "crop"),
        ("vit_small_patch14_dinov2", 0.485, 1.0, "bicubic", "crop"),
        ("vit_xsmall_patch16_clip_224", 0.48145466, 0.9, "bicubic", "crop"),
        ("vit_base_patch16_clip_384", 0.48145466, 1.0, "bicubic", "stretch"),
    ],
)
def test_preprocessing_is_that_of_timm(backbone, mean, crop, interpolation, resize):
    spec, name = preprocess_of(reference_vit(backbone), 96)
    assert (spec.mean[0], spec.crop_ratio, spec.interpolation, spec.resize) == (mean, crop, interpolation, resize)
    assert (spec.height, spec.width) == (96, 96)
    assert name.startswith(backbone)


def test_imagenet_names(tmp_path):
    name = "vit_tiny_patch16_224"
    torch.save(timm.create_model(name, img_size=48).state_dict(), tmp_path / "x.pth")
    found = adopt_weights(tmp_path / "x.pth", tmp_path / "out", AdoptOptions(name, image_size=48))
    labels = load_checkpoint(tmp_path / "out").info.labels
    assert found.labels_from == "ImageNet-1k"
    assert labels[0] == "tench, Tinca tinca" and "crane (n02012849)" in labels and len(set(labels)) == 1000
    tagged = AdoptOptions(f"{name}.augreg_in21k", image_size=48)
    found = adopt_weights(tmp_path / "x.pth", tmp_path / "tagged", tagged)
    assert found.labels_from == "numbered"


@pytest.mark.parametrize(
    "backbone",
    [
        "vit_tiny_patch16_224",
        "deit_tiny_distilled_patch16_224",
        "vit_small_patch14_reg4_dinov2",
        "vit_xsmall_patch16_clip_224",
    ],
)
def test_nearest_backbone(backbone):
    """Of the weights at timm's own size; a DeiT of the same sizes has the longer name."""
    state = {name: torch.zeros(tensor.shape) for name, tensor in reference_vit(backbone).state_dict().items()}
    assert nearest_backbone(timm_weights(StateDict(state))) == backbone


def test_names_that_timm_has_replaced(recwarn):
    vit = reference_vit("vit_base_patch16_224_dino")
    assert current_name("vit_base_patch16_224_dino", vit) == "vit_base_patch16_224.dino"
    assert current_name("vit_base_patch16_224", reference_vit("vit_base_patch16_224")) == "vit_base_patch16_224"
    assert not recwarn.list


def test_no_backbone_has_such_sizes():
    trunk = {"patch_embed.proj.weight": torch.zeros(100, 3, 16, 16)}
    assert nearest_backbone(TimmWeights("timm", trunk)) is None


@pytest.mark.parametrize(
    ("change", "first"),
    [
        ({"blocks.3.mlp.fc1.weight": torch.zeros(5, 192)}, "blocks.3.mlp.fc1.weight"),
        ({"pos_embed": torch.zeros(1, 9 + 2, 192)}, "pos_embed"),
        ({"patch_embed.proj.weight": torch.zeros(192, 3, 8, 8)}, "patch_embed.proj.weight"),
        ({"norm.weight": None}, "norm.weight"),
        ({"blocks.12.norm1.weight": torch.zeros(192)}, "blocks.12.norm1.weight"),
        ({"blocks.0.attn.q_norm.weight": torch.zeros(64)}, "blocks.0.attn.q_norm.weight"),
        ({"blocks.0.ls1.gamma": torch.zeros(192)}, "blocks.0.ls1.gamma"),
        ({"norm_pre.weight": torch.zeros(192)}, "norm_pre.weight"),
        ({"fc_norm.weight": torch.zeros(192)}, "fc_norm.weight"),
        ({"reg_token": torch.zeros(1, 4, 192)}, "reg_token"),
    ],
)
def test_the_first_difference(networks, change, first):
    state = {**networks("vit_tiny_patch16_224").state_dict(), **change}
    tree = {name: tensor for name, tensor in state.items() if tensor is not None}
    found = timm_weights(state_dict_of(tree, "x", ANCHORS))
    difference = fit_weights(found, reference_vit("vit_tiny_patch16_224", 48))
    assert isinstance(difference, Difference) and difference.name == first


def test_positions_that_are_no_square_are_refused(networks):
    state = {**networks("vit_tiny_patch16_224").state_dict(), "pos_embed": torch.zeros(1, 24, 192)}
    with pytest.raises(ArtifactError, match="24 positions, no square grid"):
        fit_weights(timm_weights(state_dict_of(state, "x", ANCHORS)), reference_vit("vit_tiny_patch16_224", 48))


def test_the_random_state_of_the_program_is_left_alone(tmp_path, networks):
    torch.save(networks("vit_tiny_patch16_224").state_dict(), tmp_path / "x.pth")
    before = torch.random.get_rng_state()
    adopt_weights(tmp_path / "x.pth", tmp_path / "out", AdoptOptions("vit_tiny_patch16_224", image_size=48))
    assert np.array_equal(before.numpy(), torch.random.get_rng_state().numpy())
