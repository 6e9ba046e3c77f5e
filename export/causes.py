"""Causes that lie beside the graph: a manifest that contradicts the checkpoint, stale golden outputs."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import fields

import numpy as np
from torch import nn

from gft_edge.checkpoint import Checkpoint
from gft_edge.errors import ArtifactError
from gft_edge.export.agreement import Arrays, Comparison, compare
from gft_edge.export.onnx import reference_outputs
from gft_edge.export.places import Place
from gft_edge.export.verdict import Limits, judge
from gft_edge.manifest import GOLDEN, Artifact, DeploymentManifest


def read_golden(artifact: Artifact) -> Arrays:
    """The arrays of golden.npz.

    Raises:
        ArtifactError: missing or damaged.
    """
    try:
        with np.load(artifact.file(GOLDEN), allow_pickle=False) as file:
            golden: Arrays = dict(file)
        stages = range(len(artifact.manifest.budget.keep))
        for name in ("images", "logits", *(f"{kind}_{stage}" for stage in stages for kind in ("importance", "kept"))):
            golden[name]
    except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise ArtifactError(f"artefact {artifact.path}: {GOLDEN} is damaged ({error})") from None
    return golden


def stage_place(comparisons: Sequence[Comparison]) -> Place:
    """As near as golden outputs get to the place of a fault."""
    hint = "give --checkpoint to have the node named"
    limits = Limits()
    for s in comparisons[0].stages if comparisons else ():
        sqnr = s.importance_sqnr_db
        if s.identical + s.ties < s.images or (sqnr is not None and sqnr < limits.fp32_importance_sqnr_db):
            text = f"stage {s.stage} is the first whose patches or importance differ: the fault lies in it or before it; {hint}"
            return Place("stage", f"stages.{s.stage}", text, module=f"stages.{s.stage}", sqnr_db=sqnr)
    told = bool(comparisons and comparisons[0].stages)
    where = (
        "all stages agree: the fault lies behind what decides the patches" if told else "only the logits are compared"
    )
    return Place("stage", "logits", f"{where}; {hint}", tensor="logits")


def manifest_places(manifest: DeploymentManifest, checkpoint: Checkpoint) -> list[Place]:
    """What the manifest says otherwise than the checkpoint it was made from."""
    info = checkpoint.info
    places = []
    for kind, ours, theirs in (
        ("preprocess", manifest.preprocess, info.preprocess),
        ("model", manifest.model, info.model),
    ):
        for field in fields(theirs):
            have, want = getattr(ours, field.name), getattr(theirs, field.name)
            if have != want:
                text = f"{kind}: {field.name} is {have} in the manifest, {want} in the checkpoint"
                places.append(Place(kind, field.name, text))
    if manifest.labels != info.labels:
        wrong = [i for i, (a, b) in enumerate(zip(manifest.labels, info.labels)) if a != b]
        order = " in another order" if sorted(manifest.labels) == sorted(info.labels) else ""
        text = (
            f"labels: {len(wrong)} of {len(info.labels)} stand otherwise in the manifest than in the checkpoint{order}"
        )
        if wrong:
            text += f", first number {wrong[0]}: {manifest.labels[wrong[0]]!r} for {info.labels[wrong[0]]!r}"
        places.append(Place("labels", "labels", text))
    return places


def golden_places(artifact: Artifact, models: Mapping[str, nn.Module], limits: Limits) -> list[Place]:
    """Whether golden.npz holds what PyTorch computes today from its images."""
    if GOLDEN not in artifact.manifest.files:
        return []
    golden = read_golden(artifact)
    images = golden.pop("images")
    if images.dtype == np.uint8:
        images = artifact.manifest.preprocess.normalize(images)
    patches = artifact.manifest.model.num_patches
    names = {"torch fp32": "logits", "torch int8": "logits_quantized"}
    for name, model in models.items():
        if names[name] not in golden:
            continue
        today = reference_outputs(model, images, artifact.manifest.budget)
        stored = {**golden, "logits": golden[names[name]]} if name == "torch fp32" else {"logits": golden[names[name]]}
        if any(stored[key].shape != today[key].shape for key in stored.keys() & today.keys()):
            return [Place("golden", GOLDEN, f"{GOLDEN} is stale: its arrays have other shapes than {name} gives")]
        found = compare((name, GOLDEN), today, stored, None, patches)
        wrong = judge([found], "fp32" if name == "torch fp32" else "int8", limits).failures
        if wrong:
            text = f"{GOLDEN} is stale: its images give other outputs in PyTorch today ({wrong[0]})"
            return [Place("golden", GOLDEN, text, tensor=names[name], sqnr_db=found.logit_sqnr_db)]
    return []
