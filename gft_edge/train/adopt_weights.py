"""Makes a focal GFT checkpoint of a trained Vision Transformer, without training."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from timm.data import ImageNetInfo
from timm.models.vision_transformer import VisionTransformer

from gft_edge.budget import TokenBudget
from gft_edge.checkpoint import (
    CONFIG,
    WEIGHTS,
    Checkpoint,
    CheckpointInfo,
    load_weights,
    num_parameters,
    save_checkpoint,
)
from gft_edge.config.model import ADOPTED_SCORE, GFTConfig
from gft_edge.data.datasets import held_out_split, open_images
from gft_edge.data.splits import Split
from gft_edge.errors import ArtifactError, ConfigError
from gft_edge.evaluation import Evaluation, EvaluationOptions, evaluate
from gft_edge.files import new_folder, parse_json, require_free, sha256
from gft_edge.labels import read_labels
from gft_edge.model.build import build_model
from gft_edge.model.foreign.adopt import FittedWeights, current_name, fit_weights, focal_config, misfit, reference_vit
from gft_edge.model.foreign.names import ANCHORS, TimmWeights, timm_weights
from gft_edge.model.foreign.weights_file import looks_like, read_weights_file
from gft_edge.model.gft import check_budget, unsupported
from gft_edge.model.macs import count_macs
from gft_edge.preprocess import PreprocessSpec
from gft_edge.progress import Track, silent

CARD = """# Adopted from {name}

A {backbone} whose blocks {stages} select patches; no weight was trained. At the full budget the logits are those of the
original model. {head}
"""
UNTRAINED = "The classifier is untrained: its accuracy means nothing before training."
UNKNOWN_TRAINING = "the weights do not record their training images: measure on images that they were not trained on"
CLASSES = 1000
"""Outputs of an untrained classifier when neither the weights, nor labels, nor timm give a number; timm's own default."""


@dataclass(frozen=True)
class AdoptOptions:
    """Options of :func:`adopt_weights`.

    Attributes:
        backbone: timm's name of the Vision Transformer, optionally with the tag of its pretrained weights, which determines
            the preprocessing.
        labels: file of class names.
        budgets: token budgets as texts; the first is the checkpoint's default, all are measured. None given: shares of the
            patches in equal steps, 75, 50 and 25 % for three stages.
        stages: blocks that select, counted from 1; empty: at 1/4, 5/12 and 7/12 of the depth.
        score: what ranks patches.
        image_size: pixels; None is the backbone's own.
        align: patches and prefix tokens of the default budget become a multiple of this.
        data, split, images: measure the accuracy on these images, see :class:`~gft_edge.evaluation.EvaluationOptions`.
        seed: of an untrained classifier.
    """

    backbone: str
    labels: Path | None = None
    budgets: tuple[str, ...] = ()
    stages: tuple[int, ...] = ()
    score: str = ADOPTED_SCORE
    image_size: int | None = None
    align: int | None = None
    data: str | None = None
    split: Split | None = None
    images: int = 1600
    seed: int = 0


@dataclass(frozen=True)
class AdoptedModel:
    """Facts about an adopted model.

    Attributes:
        config: its configuration.
        family: whose names the weights had.
        labels_from: origin of the class names.
        preprocess: of the pixels.
        preprocess_from: timm's name and tag that it was taken from.
        parameters: number of trainable values.
        matched: number of the model's tensors that the weights fill.
        resampled: what was resampled.
        dropped: names in the file of the tensors that were left out.
        missing: names of the model's tensors that were initialised.
        untrained: the classifier is not trained.
        notes: what a user should know, one sentence each.
        macs_full, macs: multiply-accumulates of an image at the full and at the default budget.
        evaluation: accuracy at each budget, the full one first, if it was measured.
    """

    config: GFTConfig
    family: str
    labels_from: str
    preprocess: PreprocessSpec
    preprocess_from: str
    parameters: int
    matched: int
    resampled: tuple[str, ...]
    dropped: tuple[str, ...]
    missing: tuple[str, ...]
    untrained: bool
    notes: tuple[str, ...]
    macs_full: int
    macs: int
    evaluation: Evaluation | None = None

    def to_json(self) -> dict[str, Any]:
        """Returns plain JSON values."""
        data = {each.name: getattr(self, each.name) for each in dataclasses.fields(self)}
        for name in ("resampled", "dropped", "missing", "notes"):
            data[name] = list(data[name])
        return {
            **data,
            "config": self.config.to_json(),
            "preprocess": self.preprocess.to_json(),
            "evaluation": self.evaluation and self.evaluation.to_json(),
        }


def adopt_weights(
    file: Path,
    out: Path,
    options: AdoptOptions,
    note: Callable[[str], None] = lambda line: None,
    track: Track = silent,
) -> AdoptedModel:
    """Turns the weights of a trained Vision Transformer into a checkpoint folder with a card.

    Args:
        file: of PyTorch or safetensors.
        out: new or empty folder.
        options: backbone and what to make of it.
        note: receives how images were found.
        track: shows the progress of the measurement.

    Raises:
        ArtifactError: the file has no weights of such a backbone.
        ConfigError: a backbone, budget, stage, score or label that does not fit, or ``out`` is not empty.
        DataError: nothing usable in the data, or the model does not know a class.
    """
    require_free(out)
    found = _translated(file)
    vit = reference_vit(options.backbone, options.image_size)
    labels, labels_from, head = _labels(found, vit, options)
    config = _config(vit, len(labels), options)
    budgets = [config.budget, *(_parsed(config, text) for text in options.budgets[1:])]
    if problem := unsupported(vit, config):  # before a model of any size is built
        raise ConfigError(f"backbone {options.backbone!r} {problem}")
    try:
        fitted = fit_weights(found, vit)
    except ArtifactError as error:
        raise ArtifactError(f"{file}: {error}") from None
    if not isinstance(fitted, FittedWeights):
        raise ArtifactError(f"{file}: {misfit(found, fitted, options.backbone)}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        model = build_model(config).eval()
    own = model.state_dict()
    weights = {**fitted.weights, **head}
    missing = tuple(name for name in own if name not in weights)
    for name, tensor in weights.items():
        if not tensor.is_floating_point():
            kind = str(tensor.dtype).removeprefix("torch.")
            raise ArtifactError(f"{file}: {found.origin[name]} is {kind}; adopt full-precision weights, then quantize")
    load_weights(model, {**{name: own[name] for name in missing}, **weights}, str(file))
    preprocess, preprocess_from = preprocess_of(vit, config.image_size)
    unused = [found.origin[name] for name in found.head if name not in head and name.endswith("weight")]
    result = AdoptedModel(
        config=config,
        family=found.family,
        labels_from=labels_from,
        preprocess=preprocess,
        preprocess_from=preprocess_from,
        parameters=num_parameters(model),
        matched=len(own) - len(missing),
        resampled=fitted.resampled,
        dropped=(*fitted.dropped, *unused, *found.dropped),
        missing=missing,
        untrained=bool(missing),
        notes=(*found.notes, *_notes(found, vit, preprocess, bool(missing), bool(head))),
        macs_full=count_macs(config, config.full_budget),
        macs=count_macs(config),
    )
    info = CheckpointInfo(config, labels, preprocess, provenance=_provenance(file, result))
    if options.data is not None and not result.untrained:
        texts = tuple(dict.fromkeys(("full", *(budget.id for budget in budgets))))
        asked = EvaluationOptions(options.data, options.split, options.images, texts)
        measured = evaluate(Checkpoint(info, model, "", out), asked, note, track)
        result = dataclasses.replace(result, evaluation=measured, notes=(*result.notes, UNKNOWN_TRAINING))
        info = dataclasses.replace(info, metrics=_metrics(measured))
    with new_folder(out) as folder:
        save_checkpoint(folder, info, model)
        stages = ", ".join(str(block) for block in config.stages)
        card = CARD.format(name=file.name, backbone=config.backbone, stages=stages, head=UNTRAINED * result.untrained)
        (folder / "card.md").write_text(card, encoding="utf-8")
    return result


def _translated(file: Path) -> TimmWeights:
    """Reads the weights under timm's names.

    Raises:
        ArtifactError: they are no weights of a Vision Transformer with a class token.
    """
    if file.is_dir():
        if (file / CONFIG).is_file() and _own_config(file / CONFIG) is not None:
            raise ArtifactError(f"{file}: is a checkpoint of gft-edge already; quantize or export it, or train from it")
        inside = [
            each.name for each in sorted(file.iterdir()) if each.suffix in (".safetensors", ".pth", ".pt", ".bin")
        ]
        if not inside:
            raise ArtifactError(
                f"{file}: is a folder without weights; give a file of weights (.safetensors, .pth, .pt or .bin)"
            )
        one = "" if len(inside) == 1 else "one of its files of weights: "
        raise ArtifactError(f"{file}: is a folder; give {one}{', '.join(str(file / name) for name in inside[:4])}")
    if file.name == WEIGHTS and (_own_config(file.parent / CONFIG) or {}).get("quantization") is not None:
        raise ArtifactError(
            f"{file}: belongs to a quantized checkpoint; adopt the full-precision weights, then quantize"
        )
    read = read_weights_file(file, ANCHORS)
    like = looks_like(read.weights)
    needs = "adopt needs a ViT with a class token"
    if any(name.startswith("stages.") for name in read.weights) and "cls_token" in read.weights:
        raise ArtifactError(
            f"{file}: holds a focal GFT of an earlier form, with attention layers between the blocks, which cannot be used "
            "any more; train it again, or adopt the weights of its backbone"
        )
    if "base_model.pos_embed" in read.weights:
        raise ArtifactError(f"{file}: holds weights of the published GFT code; use gft-edge import-published")
    found = timm_weights(read)
    if found is None:
        names = ", ".join(list(read.weights)[:3])
        looks = f"it looks like {like}" if like else f"its tensors are {names} ..."
        raise ArtifactError(f"{file}: holds no Vision Transformer; {looks}; {needs}")
    if "cls_token" not in found.trunk or "blocks.0.attn.qkv.weight" not in found.trunk:
        lacks = "class token" if "cls_token" not in found.trunk else "blocks with queries, keys and values"
        looks = f"; it looks like {like}" if like else ""
        raise ArtifactError(f"{file}: has no {lacks}{looks}; {needs}")
    return found


def _own_config(file: Path) -> dict[str, Any] | None:
    """Returns the content of config.json if it is a checkpoint's."""
    try:
        data = parse_json(file.read_bytes())
    except (OSError, ValueError):
        return None
    return data if isinstance(data, dict) and "gft_edge" in data else None


def _labels(
    found: TimmWeights, vit: VisionTransformer, options: AdoptOptions
) -> tuple[tuple[str, ...], str, dict[str, torch.Tensor]]:
    """Returns class names, their origin, and the classifier's weights if they can be used."""
    head = dict(found.head)
    heads = ["head.weight", "head_dist.weight"] if hasattr(vit, "dist_token") else ["head.weight"]
    unusable = found.projection and options.labels is not None
    if unusable or not all(name in head for name in heads):
        head = {}
    head = {name: tensor for name, tensor in head.items() if name.replace("bias", "weight") in heads}
    if head:
        count = len(head["head.weight"])
        if len({len(head[name]) for name in heads}) > 1:
            counts = " and ".join(str(len(head[name])) for name in heads)
            raise ArtifactError(f"the two classifiers of the weights have {counts} classes; they need the same number")
    else:
        count = int(vit.pretrained_cfg.get("num_classes") or CLASSES)
    if options.labels is not None:
        return read_labels(options.labels, count if head else None), options.labels.name, head
    if head and not found.projection and count == 1000 and "in1k" in str(vit.pretrained_cfg.get("tag")):
        return _imagenet_labels(options), "ImageNet-1k", head
    return tuple(f"class_{number}" for number in range(count)), "numbered", head


def _imagenet_labels(options: AdoptOptions) -> tuple[str, ...]:
    """Returns names of the classes of ImageNet-1k; their WordNet ids where the folders of the data are named so."""
    imagenet = ImageNetInfo("imagenet-1k")
    ids = tuple(imagenet.label_names())
    if options.data is not None:
        split = options.split or held_out_split(options.data)
        if set(open_images(options.data, split, 1, 32).labels) <= set(ids):
            return ids
    words = imagenet.label_descriptions()
    return tuple(word if words.count(word) == 1 else f"{word} ({name})" for word, name in zip(words, ids))


def _config(vit: VisionTransformer, num_classes: int, options: AdoptOptions) -> GFTConfig:
    """Returns the configuration of the focal model; raises ConfigError if the options do not fit."""
    config = focal_config(current_name(options.backbone, vit), vit, num_classes, options.stages)
    budget = _parsed(config, options.budgets[0]) if options.budgets else config.budget
    if options.align is not None:
        budget = budget.align(options.align, config.num_prefix_tokens)
    return dataclasses.replace(config, budget=budget, score=options.score)


def _parsed(config: GFTConfig, text: str) -> TokenBudget:
    budget = config.parse_budget(text)
    check_budget(budget, config)
    return budget


def preprocess_of(vit: VisionTransformer, image_size: int) -> tuple[PreprocessSpec, str]:
    """Returns the preprocessing of timm's pretrained weights of this name, and the name with its tag."""
    cfg = vit.pretrained_cfg
    interpolation = str(cfg.get("interpolation"))
    spec = PreprocessSpec(
        height=image_size,
        width=image_size,
        resize="stretch" if cfg.get("crop_mode") == "squash" else "crop",
        crop_ratio=1.0 if cfg.get("crop_mode") == "squash" else float(cfg.get("crop_pct") or 1.0),
        interpolation="bilinear" if interpolation == "bilinear" else "bicubic",
        mean=tuple(cfg["mean"]),
        std=tuple(cfg["std"]),
    )
    return spec, ".".join(str(part) for part in (cfg.get("architecture"), cfg.get("tag")) if part)


def _notes(found: TimmWeights, vit: VisionTransformer, spec: PreprocessSpec, untrained: bool, head: bool) -> list[str]:
    """Returns what a user should know about the model."""
    notes = []
    if untrained:
        notes.append(f"the weights have no classifier that fits: it is initialised at random. {UNTRAINED}")
    if found.projection and head:
        notes.append("the outputs are CLIP's image embedding, not classes; --labels FILE replaces them by a classifier")
    if "CLIP" in found.family and "quickgelu" not in str(vit.pretrained_cfg.get("architecture")):
        notes.append(
            "the activation is GELU as in OpenCLIP's weights; those of OpenAI and of transformers' CLIP need QuickGELU, a "
            "backbone with 'quickgelu' in its name"
        )
    if found.family == "torchvision" and spec.mean != (0.485, 0.456, 0.406):
        notes.append(f"torchvision trains with another mean than {spec.mean}: a backbone named deit_ has it")
    return notes


def _provenance(file: Path, result: AdoptedModel) -> dict[str, Any]:
    return {
        "adopted_from": file.name,
        "sha256": sha256(file),
        "names": result.family,
        "preprocess_from": result.preprocess_from,
        "resampled": list(result.resampled),
        "initialised": list(result.missing),
    }


def _metrics(evaluation: Evaluation) -> dict[str, Any]:
    """Returns the accuracies for config.json."""
    first, *others = evaluation.results
    figures = {"data": evaluation.data, "split": evaluation.split, "images": first.accuracy.count}
    figures["top1_full"] = first.accuracy.top1
    return {**figures, **{f"top1_{each.budget}": each.accuracy.top1 for each in others}}
