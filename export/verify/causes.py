"""Causes that lie beside the graph: a manifest that contradicts the checkpoint, stale golden outputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import numpy as np
from torch import nn

from gft_edge.checkpoint import Checkpoint
from gft_edge.export.onnx.artifact import reference_outputs, tool_versions
from gft_edge.export.verify.golden import QUANTIZED_LOGITS, golden_problem, load_golden
from gft_edge.export.verify.places import Place
from gft_edge.export.verify.verdict import Limits, judge
from gft_edge.manifest import GOLDEN, Artifact, DeploymentManifest
from gft_edge.stats.agreement import Computation, Kind, compare


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
        text = f"labels: {len(wrong)} of {len(info.labels)} differ between manifest and checkpoint{order}"
        if wrong:
            text += f", first number {wrong[0]}: {manifest.labels[wrong[0]]!r} for {info.labels[wrong[0]]!r}"
        places.append(Place("labels", "labels", text))
    if manifest.quantization != info.quantization:
        where, text = _first_other(manifest.quantization, info.quantization, "quantization")
        places.append(
            Place("quantization", where, f"quantization: the manifest's summary is not the checkpoint's: {text}")
        )
    if manifest.data and manifest.data != info.data:  # earlier versions wrote none
        text = f"data: {manifest.data!r} in the manifest, {info.data!r} in the checkpoint"
        places.append(Place("manifest", "data", text))
    needed = tool_versions()
    unknown = sorted(needed.keys() ^ manifest.tools.keys())
    if unknown and manifest.tools.get("gft_edge") == needed["gft_edge"]:
        text = f"tools: {', '.join(unknown)} {'is' if len(unknown) == 1 else 'are'} missing or unknown in the manifest"
        places.append(Place("manifest", "tools", text))
    return places


def _first_other(ours: Any, theirs: Any, where: str) -> tuple[str, str]:
    """Path and words of the first value that two trees of JSON values differ in."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for key in (*theirs, *ours):
            if key not in ours or key not in theirs:
                return f"{where}.{key}", f"{key} is {'missing' if key in theirs else 'not in the checkpoint'}"
            if ours[key] != theirs[key]:
                return _first_other(ours[key], theirs[key], f"{where}.{key}")
    name = where.partition(".")[2] or where
    return where, f"{name} is {_short(ours)} in the manifest, {_short(theirs)} in the checkpoint"


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def golden_places(artifact: Artifact, models: Sequence[tuple[Computation, nn.Module]], limits: Limits) -> list[Place]:
    """Whether golden.npz holds what PyTorch computes today from its images.

    Args:
        artifact: with or without golden images.
        models: the full-precision model, and after it the quantized one where there is one.
        limits: what passes.
    """
    if GOLDEN not in artifact.manifest.files:
        return []
    golden = load_golden(artifact)
    problem = golden_problem(golden, artifact.manifest)
    if problem is not None:
        return [Place("golden", GOLDEN, f"{GOLDEN} is stale: {problem}")]
    images = golden.pop("images")
    if images.dtype == np.uint8:
        images = artifact.manifest.preprocess.normalize(images)
    patches = artifact.manifest.model.num_patches
    for number, (computation, model) in enumerate(models):
        name = QUANTIZED_LOGITS if number else "logits"
        if name not in golden:
            continue
        today = reference_outputs(model, images, artifact.manifest.budget)
        stored = {"logits": golden[name]} if number else golden
        stored_by = Computation("torch", computation.arithmetic, GOLDEN)
        kind: Kind = "same_arithmetic" if number else "exact"
        found = compare((computation, stored_by), today, stored, None, patches, kind=kind)
        wrong = judge([found], limits).failures
        if wrong:
            text = f"{GOLDEN} is stale: its images give other outputs in PyTorch today ({wrong[0]})"
            return [Place("golden", GOLDEN, text, tensor=name, sqnr_db=found.logit_sqnr_db)]
    return []
