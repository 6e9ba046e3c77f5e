"""Checks a graph against the rules of lint."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import onnx

from gft_edge.export.graph.view import GraphView, view
from gft_edge.export.lint.rule import Rule, Severity
from gft_edge.export.lint.rules import PARSER, RULES
from gft_edge.hardware.tensorrt_versions import Platform


@dataclass(frozen=True)
class Finding:
    """A place that breaks a rule."""

    rule: str
    severity: Severity
    node: str
    message: str


@dataclass(frozen=True)
class LintReport:
    """The findings of lint in a graph for a target.

    Args:
        target: title of the platform.
        findings: errors first.
        notes: assumptions, and weights that could not be read.
    """

    target: str
    findings: tuple[Finding, ...]
    notes: tuple[str, ...] = ()

    @property
    def errors(self) -> tuple[Finding, ...]:
        """Findings that prevent a build."""
        return tuple(finding for finding in self.findings if finding.severity == "error")

    def _rules(self) -> tuple[Rule, ...]:
        return (PARSER, *RULES) if any(finding.rule == PARSER.id for finding in self.findings) else RULES

    def to_json(self) -> dict[str, Any]:
        """Returns plain JSON values."""
        return {
            "target": self.target,
            "ok": not self.errors,
            "findings": [asdict(finding) for finding in self.findings],
            "notes": list(self.notes),
            "rules": {rule.id: {"title": rule.title, "why": rule.why} for rule in self._rules()},
        }


def lint(model: onnx.ModelProto, platform: Platform | None = None) -> LintReport:
    """Checks a graph against every rule.

    Args:
        model: any ONNX graph; nothing in it is executed but arithmetic on small constants.
        platform: TensorRT 10.3 to 11 on any GPU by default.

    Raises:
        ArtifactError: not a valid graph.
    """
    return lint_view(view(model), platform)


def lint_view(graph: GraphView, platform: Platform | None = None) -> LintReport:
    """Checks a graph that is viewed already, and every body in it."""
    platform = platform or Platform()
    findings = [
        Finding(rule.id, rule.severity(platform), part.place + node, message)
        for rule in RULES
        for part in graph.everywhere
        for node, message in rule.check(part, platform)
    ]
    notes = (platform.note,) if platform.note else ()
    return LintReport(platform.title, ordered(findings), notes)


def ordered(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Sorts findings: errors before warnings, then by rule."""
    order = {"error": 0, "warning": 1}
    return tuple(sorted(findings, key=lambda finding: (order[finding.severity], finding.rule)))
