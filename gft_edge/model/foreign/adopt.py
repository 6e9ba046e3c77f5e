"""Fits the weights of a trained Vision Transformer to a backbone of timm, with nothing lost silently."""

from __future__ import annotations

import contextlib
import io
import logging
import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import timm
import torch
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import Tensor

from gft_edge.budget import MIN_TOKENS, TokenBudget
from gft_edge.config.model import GFTConfig
from gft_edge.errors import ArtifactError, ConfigError, did_you_mean
from gft_edge.model.backbone import create_network
from gft_edge.model.foreign.names import TimmWeights, sizes
from gft_edge.model.gft import unsupported

_PATCHES = "patch_embed.proj.weight"
_PARTS = (
    "blocks.",
    "patch_embed.",
    "norm",
    "fc_norm.",
    "attn_pool.",
    "cls_token",
    "pos_embed",
    "reg_token",
    "dist_token",
    "rope",
)
"""Starts of names that belong to the image model: tensors of these names cannot be left out."""
_FAMILIES = ("vit_*", "deit*")
_PREFIXES = (0, 1, 2, 5)
"""Usual numbers of positions before the patches: none, class token, distillation token, four registers."""
_WIDTHS = {
    192: ("tiny",),
    256: ("xsmall", "little"),
    384: ("small",),
    512: ("medium",),
    640: ("betwixt",),
    768: ("base",),
    1024: ("large",),
    1280: ("huge",),
    1408: ("giant",),
    1536: ("giant",),
    1664: ("gigantic",),
}
"""Words for the width in timm's names."""


@dataclass(frozen=True)
class FittedWeights:
    """Weights that fit a backbone.

    Attributes:
        weights: of the backbone without its classifier, under timm's names.
        resampled: what was resampled, from which grid to which.
        dropped: names in the file of tensors that the backbone does not have and that do not belong to an image model.
    """

    weights: dict[str, Tensor]
    resampled: tuple[str, ...]
    dropped: tuple[str, ...]


@dataclass(frozen=True)
class Difference:
    """First tensor that does not fit: its name and the shapes (None: not there) of the weights and of the backbone."""

    name: str
    weights: tuple[int, ...] | None
    backbone: tuple[int, ...] | None


def reference_vit(backbone: str, image_size: int | None = None) -> VisionTransformer:
    """Returns a backbone without classifier and without values, on the meta device.

    Args:
        backbone: timm's name.
        image_size: pixels, the backbone's own by default.

    Raises:
        ConfigError: there is no such backbone, it is no VisionTransformer, or the size does not fit it.
    """
    plain = backbone.partition(".")[0]
    if ":" not in backbone and "/" not in backbone and not timm.is_model(plain):
        known = [name for pattern in _FAMILIES for name in timm.list_models(pattern)]
        raise ConfigError(
            f"backbone {backbone!r}: timm has no model of this name{did_you_mean(plain, known)}; "
            "python -c \"import timm; print(timm.list_models('vit*'))\" lists them"
        )
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # timm warns of names that it has replaced; see current_name
        network = create_network(backbone, False, num_classes=0)
        if not isinstance(network, VisionTransformer):
            raise ConfigError(
                f"backbone {backbone!r} is a {type(network).__name__}, not a timm VisionTransformer with a class token"
            )
        if image_size is None:
            return network
        resized = create_network(backbone, False, num_classes=0, img_size=image_size)
    assert isinstance(resized, VisionTransformer)
    return resized


def current_name(backbone: str, vit: VisionTransformer) -> str:
    """Returns timm's name of today for a backbone, where timm has replaced the given one."""
    cfg = vit.pretrained_cfg
    if cfg.get("architecture") in (None, backbone.partition(".")[0]):
        return backbone
    return ".".join(str(part) for part in (cfg["architecture"], cfg.get("tag")) if part)


def default_stages(depth: int) -> tuple[int, ...]:
    """Returns the blocks that select: at 1/4, 5/12 and 7/12 of the depth, 3, 5 and 7 of 12."""
    return tuple(sorted({max(1, math.floor(depth * share / 12 + 0.5)) for share in (3, 5, 7)}))


def focal_config(backbone: str, vit: VisionTransformer, num_classes: int, stages: tuple[int, ...] = ()) -> GFTConfig:
    """Returns the configuration of a focal model on a backbone.

    Args:
        backbone: its name.
        vit: made by :func:`reference_vit`.
        num_classes: of the classifier.
        stages: blocks that select, :func:`default_stages` if empty. They keep shares of the patches in equal steps: 75, 50 and 25 %
            for three.

    Raises:
        ConfigError: the stages do not fit, or images or patches are not square.
    """
    (rows, cols), (height, width) = vit.patch_embed.img_size, vit.patch_embed.patch_size
    if rows != cols or height != width:
        raise ConfigError(f"backbone {backbone!r}: only square images and patches are supported")
    stages = stages or default_stages(len(vit.blocks))
    patches, steps = vit.patch_embed.num_patches, len(stages) + 1
    keep = tuple(max(patches * (steps - number) // steps, MIN_TOKENS) for number in range(1, steps))
    return GFTConfig(
        backbone=backbone,
        image_size=rows,
        num_classes=num_classes,
        patch_size=height,
        embed_dim=vit.embed_dim,
        depth=len(vit.blocks),
        num_heads=vit.blocks[0].attn.num_heads,
        stages=stages,
        budget=TokenBudget(keep, patches),
        num_prefix_tokens=vit.num_prefix_tokens or 1,  # the model refuses one without any
    )


def fit_weights(found: TimmWeights, vit: VisionTransformer) -> FittedWeights | Difference:
    """Returns the weights as the backbone needs them, or the first difference.

    The position embedding is resampled to the backbone's grid (bicubic, antialiased, by timm).

    Raises:
        ArtifactError: the positions are no square grid.
    """
    own = {name: tuple(tensor.shape) for name, tensor in vit.state_dict().items()}
    given = {name: tuple(tensor.shape) for name, tensor in found.trunk.items()}
    for name, shape in own.items():
        linear = name == _PATCHES and len(given.get(name, ())) == 2  # timm's filter reshapes it
        if name in given and given[name] != shape and name != "pos_embed" and not linear:
            return Difference(name, given[name], shape)
    grid = None
    if "pos_embed" in given and "pos_embed" in own:
        expected = 1 if "register_tokens" in given else 0 if vit.no_embed_class else vit.num_prefix_tokens
        prefix, grid = _grid(given["pos_embed"], expected)
        if prefix != expected or given["pos_embed"][2] != own["pos_embed"][2]:
            return Difference("pos_embed", given["pos_embed"], own["pos_embed"])
    with _quiet():
        fitting = checkpoint_filter_fn(_copied(found.trunk), vit, adapt_layer_scale=True)
    for name, shape in own.items():
        if name not in fitting or tuple(fitting[name].shape) != shape:
            return Difference(name, tuple(fitting[name].shape) if name in fitting else None, shape)
    extra = [name for name in fitting if name not in own]
    needed = next((name for name in extra if name.startswith(_PARTS)), None)
    if needed is not None:
        return Difference(needed, tuple(fitting[needed].shape), None)
    resampled: tuple[str, ...] = ()
    new = vit.patch_embed.grid_size
    if grid is not None and grid != new:
        resampled = (f"pos_embed from {grid[0]} x {grid[1]} to {new[0]} x {new[1]} patches",)
    gone = [name for name in found.trunk if name not in fitting and name in found.origin and _really_gone(name)]
    return FittedWeights(
        {name: fitting[name].contiguous() for name in own},
        resampled,
        tuple(found.origin.get(name, name) for name in (*extra, *gone)),
    )


def _really_gone(name: str) -> bool:
    """Returns whether timm's filter removed a tensor; it gives others another name."""
    return name == "mask_token" or "pre_logits" in name


def _copied(trunk: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns the tensors for timm's filter, which recognises DINOv2 by its mask token."""
    copied = dict(trunk)
    if "register_tokens" in copied:
        copied.setdefault("mask_token", torch.zeros(0))
    return copied


def _grid(positions: tuple[int, ...], expected: int) -> tuple[int, tuple[int, int]]:
    """Returns the number of positions before the patches, and rows and columns of the patches.

    Args:
        positions: shape of the position embedding.
        expected: number of positions before the patches to try first.

    Raises:
        ArtifactError: the patches are no square grid.
    """
    if len(positions) != 3:
        raise ArtifactError(f"pos_embed is {positions}, expected (1, positions, width)")
    for prefix in (expected, *_PREFIXES):
        side = math.isqrt(max(positions[1] - prefix, 0))
        if side > 1 and side * side == positions[1] - prefix:
            return prefix, (side, side)
    raise ArtifactError(f"pos_embed has {positions[1]} positions, no square grid; only square images are supported")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences timm's lines about resampling, which the result states."""
    logger = logging.getLogger("timm")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(before)


def misfit(found: TimmWeights, difference: Difference, backbone: str) -> ArtifactError:
    """Returns the error that names the first difference and the nearest backbone of timm."""

    def text(shape: tuple[int, ...] | None, side: str) -> str:
        return f"{shape} in {side}" if shape is not None else f"not in {side}"

    if difference.backbone is None:
        where = f"{difference.name} {difference.weights} is in the weights and not in the backbone"
    else:
        where = f"{difference.name} is {text(difference.weights, 'the weights')}, {difference.backbone} in the backbone"
    if ".lora_" in difference.name:
        return ArtifactError(f"{where}; merge the LoRA layers into the weights first (merge_and_unload of peft)")
    near = nearest_backbone(found)
    what = "sizes" if difference.weights and difference.backbone else "tensors"
    advice = f"; give --backbone {near}" if near else f"; no ViT of timm with a class token has these {what}"
    return ArtifactError(f"backbone {backbone!r} does not fit: {where}; the weights have {sizes(found.trunk)}{advice}")


def nearest_backbone(found: TimmWeights) -> str | None:
    """Returns the name of a timm ViT with a class token that these weights fit: of their image size, with the shortest name."""
    patches = found.trunk[_PATCHES]
    side = patches.shape[-1] if patches.ndim == 4 else math.isqrt(patches.shape[1] // 3)
    words = set(_WIDTHS.get(len(patches), ()))
    names = [
        name
        for pattern in _FAMILIES
        for name in timm.list_models(pattern)
        if f"patch{side}_" in name and words & set(name.split("_"))
    ]
    second = None
    for name in sorted(names, key=lambda name: (len(name), name)):
        try:
            vit = reference_vit(name)
            fitted = fit_weights(found, vit)
        except (ConfigError, ArtifactError):
            continue
        if isinstance(fitted, FittedWeights) and unsupported(vit, focal_config(name, vit, 1)) is None:
            if not fitted.resampled:
                return name
            second = second or name
    return second
