"""A model of a Triton repository against the artefact that it was made of."""

from __future__ import annotations

import numpy as np

from gft_edge.export.lint_deployment.shared.rule import Problem, Problems, rule
from gft_edge.export.lint_deployment.triton.subject import BUDGET, CHECKPOINT, PREPROCESS, TritonSubject, parameter

_ERROR = 1e-5
"""Relative error of float32 constants that is none."""


@rule(
    "TR040",
    "parameters of another artefact",
    "the parameters gft_edge_* name budget, preprocessing and checkpoint of the manifest.",
)
def parameters(subject: TritonSubject) -> Problems:
    """Yields parameters that name another artefact than the bundle's."""
    if subject.manifest is None:
        return
    manifest = subject.manifest
    known = (
        (manifest.budget.id, *manifest.family)
        if subject.graph is None or subject.graph.only_normalises
        else (manifest.budget.id,)
    )
    wanted = {
        BUDGET: known,
        PREPROCESS: (manifest.preprocess.id,),
        CHECKPOINT: (manifest.checkpoint_sha256,),
    }
    for key, values in wanted.items():
        found = parameter(subject.config, key)
        if found and found not in values:
            message = f"is {found[:16]}, the artefact has {values[0][:16]}"
            yield Problem(key, message, values[0], subject.line(_path(subject, key)))


def _path(subject: TritonSubject, key: str) -> str:
    """Returns the path of a parameter: entries of maps have no order of their own, so the file is searched."""
    lines = subject.config.path.read_text(encoding="utf-8").split("\n")
    number = next((n for n, line in enumerate(lines, 1) if f'"{key}"' in line), 0)
    return next(
        (path for path, line in subject.lines.items() if line == number and path.endswith(".key")), "parameters"
    )


@rule(
    "TR041",
    "normalisation of another preprocessing",
    "the arithmetic on the pixels must be (x / 255 - mean) / std of the manifest.",
)
def normalisation(subject: TritonSubject) -> Problems:
    """Yields a graph that normalises with other constants, or in another order of colours, than the manifest says."""
    graph, manifest = subject.graph, subject.manifest
    if graph is None or manifest is None or not graph.takes_pixels or min(graph.gains) == 1:
        return
    scale, shift = manifest.preprocess.scale_and_shift()
    reverses = manifest.preprocess.color_order == "bgr"
    if graph.reverses != reverses:
        message = f"{'reverses' if graph.reverses else 'keeps'} RGB, the model takes {manifest.preprocess.color_order.upper()}"
        yield Problem("model.onnx", message, "make the bundle again", 0, graph.file)
    elif not (
        np.allclose(graph.gains, scale, rtol=_ERROR) and np.allclose(graph.shifts, shift, rtol=_ERROR, atol=_ERROR)
    ):
        found = ", ".join(f"{gain:.5g}x{shift:+.5g}" for gain, shift in zip(graph.gains, graph.shifts))
        wanted = ", ".join(f"{gain:.5g}x{shift:+.5g}" for gain, shift in zip(scale, shift))
        yield Problem(
            "model.onnx", f"computes {found}; the manifest has {wanted}", "make the bundle again", 0, graph.file
        )
