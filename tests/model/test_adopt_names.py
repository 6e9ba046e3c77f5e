"""Names of other programs, wrappers and prefixes: every one gives timm's weights, and nothing is lost silently."""

from __future__ import annotations

import json
import re
from functools import partial
from pathlib import Path

import pytest
import torch
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import nn

from gft_edge.model.foreign.adopt import FittedWeights, default_stages, fit_weights
from gft_edge.model.foreign.names import ANCHORS, timm_weights
from gft_edge.model.foreign.weights_file import state_dict_of

NAMES = json.loads((Path(__file__).parent / "data/transformers_names.json").read_text(encoding="utf-8"))["models"]
"""Names and shapes in state dicts of tiny models of transformers 5.24, and of what version 4 and its files have (``_v4``)."""
SIZES = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
CLIP = {"pre_norm": True, "norm_layer": partial(nn.LayerNorm, eps=1e-5)}
LIKE = {
    "vit": VisionTransformer,
    "deit": VisionTransformerDistilled,
    "dinov2": partial(VisionTransformer, init_values=1e-5),
    "dinov2_registers": partial(VisionTransformer, init_values=1e-5, reg_tokens=4, no_embed_class=True),
    "clip": partial(VisionTransformer, **CLIP),
}


def filled(model, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(tensor.shape, generator=generator) for name, tensor in model.state_dict().items()}


@pytest.fixture(scope="module")
def vit():
    return VisionTransformer(**SIZES, num_classes=5)


@pytest.fixture(scope="module")
def state(vit):
    return filled(vit)


def adopted(tree, **like):
    """The weights of a tree of wrappers, fitted to a ViT without classifier, and the classifier."""
    found = timm_weights(state_dict_of(tree, "x", ANCHORS))
    assert found is not None
    fitted = fit_weights(found, VisionTransformer(**{**SIZES, "num_classes": 0, **like}))
    assert isinstance(fitted, FittedWeights), fitted
    return found, fitted


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    "prefix",
    ["", "module.", "_orig_mod.", "backbone.", "encoder.", "model.", "module._orig_mod.", "_orig_mod.module.backbone."],
)  # fmt: skip
@pytest.mark.parametrize(
    "wrappers",
    [(), ("model",), ("state_dict",), ("net",), ("model_ema",), ("checkpoint", "model", "state_dict")],
)
def test_wrappers_and_prefixes(state, prefix, wrappers):
    tree = {f"{prefix}{name}": tensor for name, tensor in state.items()}
    for key in reversed(wrappers):
        tree = {"epoch": 3, "optimizer": {"state": {0: {"m": torch.ones(2)}}}, key: tree}
    found, fitted = adopted(tree)
    assert same({**fitted.weights, **found.head}, state)
    assert not fitted.dropped and not found.dropped and not found.notes


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_types_become_float32(state, dtype):
    found, fitted = adopted({name: tensor.to(dtype) for name, tensor in state.items()})
    both = {**fitted.weights, **found.head}
    assert {tensor.dtype for tensor in both.values()} == {torch.float32}
    assert same(both, {name: tensor.to(dtype).float() for name, tensor in state.items()})


@pytest.mark.parametrize("classifier", ["head", "head.fc", "fc", "classifier", "heads.head"])
def test_classifier_beside_the_backbone(state, classifier):
    tree = {
        (f"model.{classifier}.{name[5:]}" if name.startswith("head.") else f"model.backbone.{name}"): tensor
        for name, tensor in state.items()
    }
    found, fitted = adopted({**tree, "loss.weight": torch.ones(3)})
    assert same({**fitted.weights, **found.head}, state)
    assert found.origin["head.weight"] == f"model.{classifier}.weight"
    assert found.dropped == ("loss.weight",)


@pytest.mark.parametrize("names", [("q", "k", "v"), ("q_proj", "k_proj", "v_proj"), ("q", "kv")])
def test_separate_queries_keys_and_values_are_joined(state, names):
    tree = {}
    for name, tensor in state.items():
        if ".qkv." in name:
            sizes = [32] * 3 if len(names) == 3 else [32, 64]
            for part, piece in zip(names, tensor.split(sizes)):
                tree[name.replace(".qkv.", f".{part}.")] = piece
        else:
            tree[name] = tensor
    found, fitted = adopted(tree)
    assert same({**fitted.weights, **found.head}, state)


def test_chunked_blocks_registers_and_mask_token_of_dinov2():
    like = {"init_values": 1e-5, "reg_tokens": 4, "no_embed_class": True}
    vit = VisionTransformer(**SIZES, num_classes=0, **like)
    state = filled(vit)
    tree = {re.sub(r"^blocks\.(\d)", r"blocks.0.\1", name): tensor for name, tensor in state.items()}
    tree["register_tokens"] = tree.pop("reg_token")
    class_position = torch.randn(1, 1, 32)
    tree["pos_embed"] = torch.cat([class_position, tree["pos_embed"]], dim=1)
    for beside in ({}, {"mask_token": torch.zeros(1, 32)}):
        _, fitted = adopted({**tree, **beside}, **like)
        assert same({**fitted.weights, "cls_token": state["cls_token"]}, state)
        assert torch.equal(fitted.weights["cls_token"], state["cls_token"] + class_position)
        assert fitted.dropped == tuple(beside)


def test_layer_scale_of_deit3(state):
    like = {"init_values": 1e-5}
    state = filled(VisionTransformer(**SIZES, num_classes=5, **like))
    tree = {re.sub(r"ls(\d)\.gamma", r"gamma_\1", name): tensor for name, tensor in state.items()}
    found, fitted = adopted(tree, **like)
    assert same({**fitted.weights, **found.head}, state)


def openai(state, prefix):
    """A state dict of OpenAI's CLIP from timm's, written apart from the rules."""
    tree = {
        "class_embedding": state["cls_token"][0, 0],
        "positional_embedding": state["pos_embed"][0],
        "conv1.weight": state["patch_embed.proj.weight"],
        "proj": state["head.weight"].T,
    }
    for end in ("weight", "bias"):
        tree[f"ln_pre.{end}"], tree[f"ln_post.{end}"] = state[f"norm_pre.{end}"], state[f"norm.{end}"]
        for block in range(2):
            own, theirs = f"blocks.{block}.", f"transformer.resblocks.{block}."
            tree[f"{theirs}attn.in_proj_{end}"] = state[f"{own}attn.qkv.{end}"]
            tree[f"{theirs}attn.out_proj.{end}"] = state[f"{own}attn.proj.{end}"]
            tree[f"{theirs}ln_1.{end}"], tree[f"{theirs}ln_2.{end}"] = (
                state[f"{own}norm1.{end}"],
                state[f"{own}norm2.{end}"],
            )
            tree[f"{theirs}mlp.c_fc.{end}"], tree[f"{theirs}mlp.c_proj.{end}"] = (
                state[f"{own}mlp.fc1.{end}"],
                state[f"{own}mlp.fc2.{end}"],
            )
    return {f"{prefix}{name}": tensor for name, tensor in tree.items()}


@pytest.mark.parametrize("prefix", ["visual.", "module.visual.", ""])
def test_clip_of_openai(prefix):
    vit = VisionTransformer(**SIZES, num_classes=16, **CLIP)
    state = {**filled(vit), "head.bias": torch.zeros(16)}
    visual = openai(state, prefix)
    text = (
        {}
        if not prefix
        else {"transformer.resblocks.0.attn.in_proj_weight": torch.ones(3), "text_projection": torch.ones(2)}
    )
    found, fitted = adopted({**visual, **text}, **CLIP)
    assert same({**fitted.weights, **found.head}, state)
    assert found.projection and set(found.dropped) == set(text)
    if prefix == "visual.":  # timm's own conversion
        theirs = checkpoint_filter_fn(dict(visual), vit)
        assert same({**fitted.weights, **found.head}, theirs)


def test_timm_trunk_of_openclip(state):
    tree = {f"visual.trunk.{name}": tensor for name, tensor in state.items() if not name.startswith("head.")}
    tree["visual.head.proj.weight"], tree["text.weight"] = torch.randn(16, 32), torch.ones(2)
    found, fitted = adopted(tree)
    assert same(fitted.weights, {name: tensor for name, tensor in state.items() if not name.startswith("head.")})
    assert torch.equal(found.head["head.weight"], tree["visual.head.proj.weight"])
    assert found.projection and found.dropped == ("text.weight",)


def test_torchvision(state):
    """The same outputs as torchvision's own model."""
    from torchvision.models import VisionTransformer as Theirs

    theirs = Theirs(32, 8, 2, 2, 32, 128, num_classes=5).eval()
    theirs.load_state_dict(filled(theirs, 1))
    found, fitted = adopted(theirs.state_dict())
    vit = VisionTransformer(**SIZES, num_classes=5).eval()
    vit.load_state_dict({**fitted.weights, **found.head})
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(vit(images), theirs(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_every_name_of_transformers_is_translated(name):
    tree = {key: torch.randn(shape) for key, shape in NAMES[name].items()}
    kind = name.removesuffix("_v4").removesuffix("_model")
    vit = LIKE[kind if kind in LIKE else kind.partition("_")[0]](**SIZES, num_classes=0)
    found = timm_weights(state_dict_of(tree, "x", ANCHORS))
    fitted = fit_weights(found, vit)
    assert isinstance(fitted, FittedWeights), fitted
    assert {key: tensor.shape for key, tensor in fitted.weights.items()} == {
        key: tensor.shape for key, tensor in vit.state_dict().items()
    }
    heads = {"vit": 5, "deit": 5, "clip_vision": 16, "clip": 16}
    assert found.head.get("head.weight", torch.empty(0)).shape[0] == heads.get(name.removesuffix("_v4"), 0)
    assert ("head_dist.weight" in found.head) == (kind == "deit")
    # Every tensor is used, or is not part of the image model.
    gone = {*fitted.dropped, *found.dropped}
    known = r"(embeddings\.mask_token|pooler\..*|text_.*|logit_scale|classifier\..*)$"
    assert all(re.match(known, key) for key in gone)
    used = {
        part for own in {**found.trunk, **found.head} if own in found.origin for part in found.origin[own].split(", ")
    }
    assert used | gone == {re.sub(r"^(vit|deit|dinov2|vision_model)\.", "", key) for key in tree}
    queries = next(key for key in tree if re.search(r"0\..*(query|q_proj)\.weight$", key) and "text" not in key)
    values = re.sub(r"query(?=\.weight$)", "value", queries).replace("q_proj", "v_proj")
    joint = fitted.weights["blocks.0.attn.qkv.weight"]
    assert torch.equal(joint[:32], tree[queries]) and torch.equal(joint[64:], tree[values])


def test_a_classifier_of_another_width_is_left_out_and_named(state):
    found, fitted = adopted({**state, "head.weight": torch.ones(5, 64)})
    assert not found.head
    assert "classifier head.weight reads 64 values, the class token has 32" in found.notes[0]
    assert set(fitted.dropped) == {"head.weight", "head.bias"}


def test_positions_are_resampled_as_timm_does(state, vit):
    _, fitted = adopted(state, img_size=64)
    large = VisionTransformer(**{**SIZES, "img_size": 64}, num_classes=5)
    assert torch.equal(fitted.weights["pos_embed"], checkpoint_filter_fn(dict(state), large)["pos_embed"])
    assert fitted.resampled == ("pos_embed from 4 x 4 to 8 x 8 patches",)


@pytest.mark.parametrize(
    ("depth", "stages"), [(12, (3, 5, 7)), (24, (6, 10, 14)), (6, (2, 3, 4)), (1, (1,)), (2, (1,))]
)
def test_default_stages(depth, stages):
    assert default_stages(depth) == stages
