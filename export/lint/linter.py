"""Graph hazards found before anything is built."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import onnx

from gft_edge.export.graph.view import view
from gft_edge.export.lint.rules import PARSER, RULES, Rule, Severity
from gft_edge.hardware.tensorrt_versions import Platform


@dataclass(frozen=True)
class Finding:
    """One place where a rule does not hold."""

    rule: str
    severity: Severity
    node: str
    message: str


@dataclass(frozen=True)
class LintReport:
    """What lint found in a graph for a target.

    Args:
        target: what it was judged for.
        findings: errors first.
        notes: what was assumed, and what could not be read and was judged without.
    """

    target: str
    findings: tuple[Finding, ...]
    notes: tuple[str, ...] = ()

    @property
    def errors(self) -> tuple[Finding, ...]:
        """Findings that must be mended before a build."""
        return tuple(finding for finding in self.findings if finding.severity == "error")

    def _rules(self) -> tuple[Rule, ...]:
        return (PARSER, *RULES) if any(finding.rule == PARSER.id for finding in self.findings) else RULES

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "target": self.target,
            "ok": not self.errors,
            "findings": [asdict(finding) for finding in self.findings],
            "notes": list(self.notes),
            "rules": {rule.id: {"title": rule.title, "why": rule.why} for rule in self._rules()},
        }


def lint(model: onnx.ModelProto, platform: Platform | None = None, rules: Sequence[Rule] = RULES) -> LintReport:
    """Checks a graph against every rule.

    Args:
        model: any ONNX graph; nothing in it is executed but arithmetic on small constants.
        platform: what it is to run on; TensorRT 10.3 to 11 on any GPU by default.
        rules: all by default.

    Raises:
        ArtifactError: not a valid graph.
    """
    platform = platform or Platform()
    main = view(model)
    findings = [
        Finding(rule.id, rule.severity(platform), graph.place + node, message)
        for rule in rules
        for graph in main.everywhere
        for node, message in rule.check(graph, platform)
    ]
    notes = (platform.note,) if platform.note else ()
    return LintReport(platform.title, ordered(findings), notes)


def ordered(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Errors before warnings, then by rule."""
    order = {"error": 0, "warning": 1}
    return tuple(sorted(findings, key=lambda finding: (order[finding.severity], finding.rule)))
