"""Graph hazards found before anything is built."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError

from gft_edge.errors import ArtifactError
from gft_edge.export.generations import Platform
from gft_edge.export.graph_view import view
from gft_edge.export.lint_rules import RULES, Rule, Severity


@dataclass(frozen=True)
class Finding:
    """One place where a rule does not hold."""

    rule: str
    severity: Severity
    node: str
    message: str


@dataclass(frozen=True)
class LintReport:
    """What lint found in a graph for a target."""

    target: str
    findings: tuple[Finding, ...]

    @property
    def errors(self) -> tuple[Finding, ...]:
        """Findings that must be mended before a build."""
        return tuple(finding for finding in self.findings if finding.severity == "error")

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "target": self.target,
            "ok": not self.errors,
            "findings": [asdict(finding) for finding in self.findings],
            "rules": {rule.id: {"title": rule.title, "why": rule.why} for rule in RULES},
        }


def lint(model: onnx.ModelProto, platform: Platform | None = None, rules: Sequence[Rule] = RULES) -> LintReport:
    """Checks a graph against every rule.

    Args:
        model: any ONNX graph; nothing in it is executed.
        platform: what it is to run on; TensorRT 10.3 to 11 on any GPU by default.
        rules: all by default.

    Raises:
        ArtifactError: not a valid graph.
    """
    platform = platform or Platform()
    graph = view(model)
    findings = [
        Finding(rule.id, rule.severity(platform), node, message)
        for rule in rules
        for node, message in rule.check(graph, platform)
    ]
    order = {"error": 0, "warning": 1}
    return LintReport(platform.title, tuple(sorted(findings, key=lambda f: (order[f.severity], f.rule))))


def load_graph(path: Path) -> onnx.ModelProto:
    """Reads an ONNX file.

    Raises:
        ArtifactError: missing, or no ONNX graph.
    """
    try:
        model = onnx.load(path)
    except FileNotFoundError as error:
        raise ArtifactError(f"graph {path}: {error.filename or path} is missing") from None
    except (OSError, DecodeError, ValueError) as error:
        raise ArtifactError(f"graph {path}: cannot be read as ONNX ({error})") from None
    if not model.graph.node:
        raise ArtifactError(f"graph {path}: holds no nodes, is it an ONNX model?")
    return model
