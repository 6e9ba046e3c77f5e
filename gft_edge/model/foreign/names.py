"""Translates the weights of Vision Transformers of other programs to timm's names.

Known are timm itself (and DeiT, DINO, MAE, DINOv2, which use its names), CLIP of OpenAI and OpenCLIP, Hugging Face transformers
(ViT, DeiT, DINOv2 and CLIP, versions 4 and 5), and torchvision.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from gft_edge.model.foreign.weights_file import StateDict

Rules = tuple[tuple[str, str], ...]
"""Regular expressions and their replacements, applied in order."""

_SEPARATE = ((r"^(blocks\.\d+\.attn)\.([qkv])_(?:proj|lin)\.", r"\1.\2."),)
_TIMM: Rules = ((r"^blocks\.\d+\.(\d+\.)", r"blocks.\1"), *_SEPARATE)
"""DINOv2 saved in chunks has ``blocks.CHUNK.BLOCK``."""
_CLIP: Rules = (
    (r"^conv1\.", "patch_embed.proj."),
    (r"^class_embedding$", "cls_token"),
    (r"^positional_embedding$", "pos_embed"),
    (r"^ln_pre\.", "norm_pre."),
    (r"^ln_post\.", "norm."),
    (r"^transformer\.resblocks\.", "blocks."),
    (r"^(blocks\.\d+)\.ln_([12])\.", r"\1.norm\2."),
    (r"^(blocks\.\d+)\.ls_([12])\.", r"\1.ls\2."),
    (r"^(blocks\.\d+)\.attn\.in_proj_", r"\1.attn.qkv."),
    (r"^(blocks\.\d+)\.attn\.out_proj\.", r"\1.attn.proj."),
    (r"^(blocks\.\d+)\.mlp\.c_fc\.", r"\1.mlp.fc1."),
    (r"^(blocks\.\d+)\.mlp\.c_proj\.", r"\1.mlp.fc2."),
)
_TRANSFORMERS: Rules = (
    (r"^embeddings\.cls_token$", "cls_token"),
    (r"^embeddings\.distillation_token$", "dist_token"),
    (r"^embeddings\.(mask_token|register_tokens)$", r"\1"),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^(?:encoder\.layer|layers)\.", "blocks."),
    (r"^(blocks\.\d+)\.attention\.attention\.(q|k|v)(?:uery|ey|alue)\.", r"\1.attn.\2."),
    (r"^(blocks\.\d+)\.attention\.(q|k|v)_proj\.", r"\1.attn.\2."),
    (r"^(blocks\.\d+)\.attention\.(?:output\.dense|o_proj)\.", r"\1.attn.proj."),
    (r"^(blocks\.\d+)\.layernorm_before\.", r"\1.norm1."),
    (r"^(blocks\.\d+)\.layernorm_after\.", r"\1.norm2."),
    (r"^(blocks\.\d+)\.intermediate\.dense\.", r"\1.mlp.fc1."),
    (r"^(blocks\.\d+)\.output\.dense\.", r"\1.mlp.fc2."),
    (r"^(blocks\.\d+)\.layer_scale([12])\.lambda1$", r"\1.ls\2.gamma"),
    (r"^layernorm\.", "norm."),
)
_TRANSFORMERS_CLIP: Rules = (
    (r"^embeddings\.class_embedding$", "cls_token"),
    (r"^embeddings\.position_embedding\.weight$", "pos_embed"),
    (r"^embeddings\.patch_embedding\.", "patch_embed.proj."),
    (r"^pre_layrnorm\.", "norm_pre."),  # their spelling
    (r"^post_layernorm\.", "norm."),
    (r"^encoder\.layers\.", "blocks."),
    (r"^(blocks\.\d+)\.layer_norm([12])\.", r"\1.norm\2."),
    (r"^(blocks\.\d+)\.self_attn\.(q|k|v)_proj\.", r"\1.attn.\2."),
    (r"^(blocks\.\d+)\.self_attn\.out_proj\.", r"\1.attn.proj."),
)
_TORCHVISION: Rules = (
    (r"^class_token$", "cls_token"),
    (r"^conv_proj\.", "patch_embed.proj."),
    (r"^encoder\.pos_embedding$", "pos_embed"),
    (r"^encoder\.ln\.", "norm."),
    (r"^encoder\.layers\.encoder_layer_", "blocks."),
    (r"^(blocks\.\d+)\.ln_([12])\.", r"\1.norm\2."),
    (r"^(blocks\.\d+)\.self_attention\.in_proj_", r"\1.attn.qkv."),
    (r"^(blocks\.\d+)\.self_attention\.out_proj\.", r"\1.attn.proj."),
    (r"^(blocks\.\d+)\.mlp\.(?:0|linear_1)\.", r"\1.mlp.fc1."),
    (r"^(blocks\.\d+)\.mlp\.(?:3|linear_2)\.", r"\1.mlp.fc2."),
)

_CLASSIFIERS = (
    "head.weight",
    "head.fc.weight",
    "classifier.weight",
    "cls_classifier.weight",
    "fc.weight",
    "heads.head.weight",
    "linear_head.weight",
)
_PROJECTIONS = ("proj", "visual_projection.weight", "head.proj.weight")
"""CLIP's map of the class token to the space that it shares with texts."""
_DISTILLED = ("head_dist.weight", "distillation_classifier.weight")


@dataclass(frozen=True)
class Family:
    """Names of one program.

    Attributes:
        title: for messages.
        anchor: a name that only the vision part of its models has.
        rules: from its names to timm's, after the prefix is removed.
        heads: names of the classifier, preferred ones first.
    """

    title: str
    anchor: str
    rules: Rules
    heads: tuple[str, ...] = (*_CLASSIFIERS, *_PROJECTIONS)


FAMILIES = (
    Family("timm", "patch_embed.proj.weight", _TIMM),
    Family("CLIP", "ln_pre.weight", _CLIP, (*_PROJECTIONS, *_CLASSIFIERS)),
    Family("transformers", "embeddings.patch_embeddings.projection.weight", _TRANSFORMERS),
    # The classifier of its CLIPForImageClassification reads the mean of the patches.
    Family("transformers CLIP", "pre_layrnorm.weight", _TRANSFORMERS_CLIP, _PROJECTIONS),
    Family("torchvision", "conv_proj.weight", _TORCHVISION),
)
ANCHORS = tuple(family.anchor for family in FAMILIES)


@dataclass(frozen=True)
class TimmWeights:
    """Weights under timm's names, in float32.

    Attributes:
        family: title of the :class:`Family`.
        trunk: everything but the classifier; attention with one joint layer for queries, keys and values.
        head: ``head.weight``, ``head.bias`` and those of ``head_dist``, as far as the file has them.
        projection: the head is CLIP's projection to the space of texts, not a classifier.
        origin: name in the file of each tensor of ``trunk`` and ``head``.
        dropped: names in the file of tensors that are not part of the image model.
        notes: what a user should know about the translation, one sentence each.
    """

    family: str
    trunk: dict[str, Tensor]
    head: dict[str, Tensor] = field(default_factory=dict)
    projection: bool = False
    origin: dict[str, str] = field(default_factory=dict)
    dropped: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def timm_weights(found: StateDict) -> TimmWeights | None:
    """Returns the weights of a Vision Transformer under timm's names; None if the names are those of no known family.

    Args:
        found: read with :data:`ANCHORS`.
    """
    family = next((each for each in FAMILIES if each.anchor in found.weights), None)
    if family is None:
        return None
    origin: dict[str, str] = {}
    trunk: dict[str, Tensor] = {}
    for name, tensor in found.weights.items():
        plain = name
        for pattern, replacement in family.rules:
            plain = re.sub(pattern, replacement, plain)
        trunk[plain] = tensor.float() if tensor.is_floating_point() else tensor
        origin[plain] = name
    _join_qkv(trunk, origin)
    if "cls_token" in trunk and trunk["cls_token"].ndim == 1:
        trunk["cls_token"] = trunk["cls_token"].reshape(1, 1, -1)
    if "pos_embed" in trunk and trunk["pos_embed"].ndim == 2:
        trunk["pos_embed"] = trunk["pos_embed"].unsqueeze(0)
    beside = dict(found.beside)
    head, sources, notes = _head(family, trunk, beside)
    origin.update(sources)
    return TimmWeights(
        family=family.title,
        trunk=trunk,
        head=head,
        projection=sources.get("head.weight", "").endswith(_PROJECTIONS),
        origin=origin,
        dropped=tuple(beside),
        notes=(*found.choices, *notes),
    )


def _join_qkv(trunk: dict[str, Tensor], origin: dict[str, str]) -> None:
    """Replaces separate queries, keys and values by one layer, the form of timm."""
    for name in list(trunk):
        match = re.fullmatch(r"(blocks\.\d+\.attn\.)q\.(weight|bias)", name)
        if match is None:
            continue
        start, kind = match.groups()
        for parts in (("q", "k", "v"), ("q", "kv")):
            names = [f"{start}{part}.{kind}" for part in parts]
            if all(each in trunk for each in names):
                trunk[f"{start}qkv.{kind}"] = torch.cat([trunk.pop(each) for each in names])
                origin[f"{start}qkv.{kind}"] = ", ".join(origin.pop(each) for each in names)
                break


def _head(
    family: Family, trunk: dict[str, Tensor], beside: dict[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, str], list[str]]:
    """Takes the classifier out of the tensors of the model or of those beside it.

    Returns:
        tensors under timm's names, their names in the file, and notes.
    """
    width = len(trunk["patch_embed.proj.weight"])
    head: dict[str, Tensor] = {}
    sources: dict[str, str] = {}
    notes: list[str] = []
    for own, names in (("head", family.heads), ("head_dist", _DISTILLED)):
        for name, place in _named(names, trunk, beside):
            weight = place[name].T if name.rpartition(".")[2] == "proj" else place[name]
            if weight.ndim == 2 and weight.shape[1] == width:
                head[f"{own}.weight"], sources[f"{own}.weight"] = weight.float().contiguous(), name
                del place[name]
                bias = name.removesuffix("weight") + "bias"
                if name.endswith("weight") and bias in place:
                    head[f"{own}.bias"], sources[f"{own}.bias"] = place.pop(bias).float(), bias
                else:
                    head[f"{own}.bias"] = torch.zeros(len(weight))
                break
            if weight.ndim == 2:
                notes.append(f"classifier {name} reads {weight.shape[1]} values, the class token has {width}: left out")
    return head, sources, notes


def _named(
    suffixes: tuple[str, ...], trunk: dict[str, Tensor], beside: dict[str, Tensor]
) -> list[tuple[str, dict[str, Tensor]]]:
    """Returns the tensors of these names, with or without a prefix, and the mapping that has each."""
    found = [(name, trunk) for name in suffixes if name in trunk]
    return found + [
        (name, beside) for suffix in suffixes for name in beside if name == suffix or name.endswith(f".{suffix}")
    ]


def sizes(weights: Mapping[str, Tensor]) -> str:
    """Describes the sizes of a Vision Transformer's weights under timm's names, for messages."""
    patch, qkv = weights.get("patch_embed.proj.weight"), weights.get("blocks.0.attn.qkv.weight")
    parts = []
    if qkv is not None:
        parts.append(f"width {qkv.shape[1]}")
    parts.append(f"depth {depth(weights)}")
    if patch is not None and patch.ndim == 4:
        parts.append(f"patches of {patch.shape[-1]} pixels")
    for name, title in (
        ("dist_token", "distillation token"),
        ("reg_token", "registers"),
        ("register_tokens", "registers"),
    ):
        if name in weights:
            parts.append(f"{weights[name].shape[1]} {title}" if title == "registers" else title)
    if "norm_pre.weight" in weights:
        parts.append("a norm before the blocks")
    if any(name.endswith(("ls1.gamma", "gamma_1")) for name in weights):
        parts.append("LayerScale")
    return ", ".join(parts)


def depth(weights: Mapping[str, Tensor]) -> int:
    """Returns the number of blocks."""
    return len({name.split(".")[1] for name in weights if name.startswith("blocks.")})
