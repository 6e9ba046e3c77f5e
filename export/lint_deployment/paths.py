"""Lints whatever a path names: a graph, an artefact, a bundle, or the configuration of a server."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gft_edge.bundle import ARTIFACT, load_bundle
from gft_edge.export.lint.files import graph_file, lint_file
from gft_edge.export.lint.linter import LintReport
from gft_edge.export.lint_deployment.linter import DeploymentReport, is_deployment, lint_deployment
from gft_edge.export.tensorrt.registration import read_plan
from gft_edge.hardware.tensorrt_versions import Platform, platform

PLAN = "plan.json"


@dataclass(frozen=True)
class PathReport:
    """What was found; one of the two is None where there is nothing to judge.

    Args:
        graph_file: the graph that was judged.
        graph: findings in it.
        deployment: findings in configurations, and in a bundle.
    """

    graph_file: Path | None
    graph: LintReport | None
    deployment: DeploymentReport | None

    @property
    def ok(self) -> bool:
        """True without an error."""
        reports = [report for report in (self.graph, self.deployment) if report is not None]
        return not any(report.errors for report in reports)

    def to_json(self) -> dict[str, Any]:
        """Returns plain JSON values: those of the graph alone, or those of the deployment with the graph's beside them."""
        if self.deployment is None:
            return self.graph.to_json() if self.graph else {}
        graph = {} if self.graph is None else {"graph": self.graph.to_json()}
        return {**self.deployment.to_json(), **graph, "ok": self.ok}


def lint_path(path: Path, target: str | None = None, tensorrt: str | None = None, *, ask: bool = False) -> PathReport:
    """Checks a graph, an artefact, a bundle with its graph, or a configuration.

    Args:
        path: ``MODEL.onnx``, folder of an artefact or bundle, configuration of Gst-nvinfer, or ``config.pbtxt``.
        target, tensorrt: to judge the graph for; a bundle's device and plan by default.
        ask: let the installed parser of TensorRT read the graph too.

    Raises:
        ConfigError: unknown target, or a text that is no configuration.
        ArtifactError: a file that cannot be read.
        MissingExtraError: a package that reads the file is not installed.
    """
    deployment = lint_deployment(path) if is_deployment(path) else None
    if deployment is None:
        file = graph_file(path)
        return PathReport(file, lint_file(file, platform(target, tensorrt), ask=ask), None)
    if not path.is_dir():
        return PathReport(None, None, deployment)
    file = graph_file(path / ARTIFACT)
    return PathReport(file, lint_file(file, _platform(path, target, tensorrt), ask=ask), deployment)


def _platform(path: Path, target: str | None, tensorrt: str | None) -> Platform:
    if target is None and tensorrt is None and (path / PLAN).is_file():
        return read_plan(path / PLAN).platform
    return platform(target or load_bundle(path).device or None, tensorrt)
