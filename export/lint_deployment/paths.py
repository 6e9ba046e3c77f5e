"""Lints whatever a path names: a graph, an artefact, a bundle, or the configuration of a server."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gft_edge.bundle import ARTIFACT, load_bundle
from gft_edge.errors import ConfigError
from gft_edge.export.foreign.model import is_foreign, load_foreign
from gft_edge.export.graph.qdq_boundaries import BoundaryComparison, compare_boundary_files
from gft_edge.export.lint.files import graph_file, lint_file
from gft_edge.export.lint.linter import LintReport
from gft_edge.export.lint_deployment.bundles.subject import PLAN
from gft_edge.export.lint_deployment.linter import DeploymentReport, is_deployment, lint_deployment
from gft_edge.export.tensorrt.registration import read_plan
from gft_edge.hardware.tensorrt_versions import Platform, platform


@dataclass(frozen=True)
class PathReport:
    """What was found; a part is None where there is nothing to judge.

    Args:
        graph_file: the graph that was judged.
        graph: findings in it.
        deployment: findings in configurations, and in a bundle.
        boundaries: comparison of its quantization with that of another graph.
    """

    graph_file: Path | None
    graph: LintReport | None
    deployment: DeploymentReport | None
    boundaries: BoundaryComparison | None = None

    @property
    def ok(self) -> bool:
        """True without an error, and with the same quantization boundaries as the other graph."""
        reports = [report for report in (self.graph, self.deployment) if report is not None]
        return not any(report.errors for report in reports) and (self.boundaries is None or self.boundaries.ok)

    def to_json(self) -> dict[str, Any]:
        """Returns plain JSON values: those of the graph alone, or those of the deployment with the graph's beside them."""
        graph = {} if self.graph is None else self.graph.to_json()
        if self.deployment is not None:
            graph = {**self.deployment.to_json(), **({"graph": graph} if graph else {}), "ok": self.ok}
        return graph if self.boundaries is None else {**graph, "boundaries": self.boundaries.to_json(), "ok": self.ok}


def lint_path(
    path: Path,
    target: str | None = None,
    tensorrt: str | None = None,
    *,
    ask: bool = False,
    boundaries_of: Path | None = None,
) -> PathReport:
    """Checks a graph, an artefact, a bundle with its graph, or a configuration.

    Args:
        path: ``MODEL.onnx``, folder of an artefact or bundle, configuration of Gst-nvinfer, or ``config.pbtxt``.
        target, tensorrt: to judge the graph for; a bundle's device and plan by default.
        ask: let the installed parser of TensorRT read the graph too.
        boundaries_of: a graph, artefact or bundle that must have the same quantization boundaries.

    Raises:
        ConfigError: unknown target, a text that is no configuration, or boundaries of one.
        ArtifactError: a file that cannot be read.
        MissingExtraError: a package that reads the file is not installed.
    """
    if boundaries_of is not None:
        return _with_boundaries(lint_path(path, target, tensorrt, ask=ask), path, boundaries_of)
    deployment = lint_deployment(path) if is_deployment(path) else None
    if deployment is None:
        file = _graph_of(path)
        return PathReport(file, lint_file(file, platform(target, tensorrt), ask=ask), None)
    if not path.is_dir():
        return PathReport(None, None, deployment)
    file = graph_file(path / ARTIFACT)
    return PathReport(file, lint_file(file, _platform(path, target, tensorrt), ask=ask), deployment)


def _with_boundaries(report: PathReport, path: Path, other: Path) -> PathReport:
    """Adds the comparison with the graph of another path, which is the one that was measured."""
    if report.graph_file is None:
        raise ConfigError(f"{path}: a configuration has no quantization boundaries; give the graph or the bundle")
    bundled = is_deployment(other) and other.is_dir()
    measured = _graph_of(other / ARTIFACT if bundled else other)
    return replace(report, boundaries=compare_boundary_files(measured, report.graph_file))


def _graph_of(path: Path) -> Path:
    """Returns the graph of a path; that of a quantized ONNX file of another program has the hash of its record."""
    return load_foreign(path).file if path.is_dir() and is_foreign(path) else graph_file(path)


def _platform(path: Path, target: str | None, tensorrt: str | None) -> Platform:
    if target is None and tensorrt is None and (path / PLAN).is_file():
        return read_plan(path / PLAN).platform
    return platform(target or load_bundle(path).device or None, tensorrt)
