"""Faults outside the graph: a manifest that contradicts the checkpoint, stale golden outputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import numpy as np
from torch import nn

from gft_edge.checkpoint import Checkpoint
from gft_edge.export.onnx.artifact import tool_versions
from gft_edge.export.onnx.reference import reference_outputs
from gft_edge.export.verify.places import Place, PlaceKind
from gft_edge.manifest import GOLDEN, Artifact, DeploymentManifest
from gft_edge.runtime.golden import QUANTIZED_LOGITS, golden_problem, load_golden, quantized_outputs
from gft_edge.stats.agreement import Computation, Kind, compare
from gft_edge.stats.verdict import Limits, assess


def manifest_places(manifest: DeploymentManifest, checkpoint: Checkpoint) -> list[Place]:
    """Returns the entries of the manifest that differ from the checkpoint."""
    info = checkpoint.info
    places = []
    pairs: tuple[tuple[PlaceKind, Any, Any], ...] = (
        ("preprocess", manifest.preprocess, info.preprocess),
        ("model", manifest.model, info.model),
    )
    for kind, ours, theirs in pairs:
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
        path, text = _first_difference(manifest.quantization, info.quantization)
        name = ".".join(("quantization", *path))
        places.append(Place("quantization", name, f"quantization: manifest and checkpoint differ: {text}"))
    if manifest.data and manifest.data != info.data:  # earlier versions wrote none
        text = f"data: {manifest.data!r} in the manifest, {info.data!r} in the checkpoint"
        places.append(Place("manifest", "data", text))
    needed = tool_versions()
    unknown = sorted(needed.keys() ^ manifest.tools.keys())
    if unknown and manifest.tools.get("gft_edge") == needed["gft_edge"]:
        text = f"tools: {', '.join(unknown)} {'is' if len(unknown) == 1 else 'are'} missing or unknown in the manifest"
        places.append(Place("manifest", "tools", text))
    return places


def _first_difference(ours: Any, theirs: Any, path: tuple[str, ...] = ()) -> tuple[tuple[str, ...], str]:
    """Returns path and description of the first difference of two trees of JSON values."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for key in (*theirs, *ours):
            if key not in ours or key not in theirs:
                return (*path, key), f"{key} is {'missing' if key in theirs else 'not in the checkpoint'}"
            if ours[key] != theirs[key]:
                return _first_difference(ours[key], theirs[key], (*path, key))
    name = ".".join(path) or "quantization"
    return path, f"{name} is {_short(ours)} in the manifest, {_short(theirs)} in the checkpoint"


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def golden_places(artifact: Artifact, models: Sequence[tuple[Computation, nn.Module]], limits: Limits) -> list[Place]:
    """Returns the place of golden.npz if its outputs are not those that PyTorch computes from its images now.

    Args:
        artifact: with or without golden images.
        models: the full-precision model, then the quantized one if there is one.
        limits: that pass.
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
        stored = quantized_outputs(golden) if number else golden
        stored_by = Computation("torch", computation.arithmetic, GOLDEN)
        kind: Kind = "same_arithmetic" if number else "exact"
        found = compare((computation, stored_by), today, stored, None, patches, kind=kind)
        wrong = assess([found], limits).failures
        if wrong:
            text = f"{GOLDEN} is stale: PyTorch now gives other outputs for its images ({wrong[0]})"
            return [Place("golden", GOLDEN, text, tensor=name, sqnr_db=found.logit_sqnr_db)]
    return []
