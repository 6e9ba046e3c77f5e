"""Check a graph, a bundle or the configuration of a server for hazards that make it wrong, slow or impossible to run."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gft_edge.export.lint.linter import LintReport
    from gft_edge.export.lint_deployment.linter import DeploymentReport

EXAMPLE = "gft-edge lint runs/artifact --target orin-nano --tensorrt 10.3"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the verb's arguments."""
    parser.add_argument(
        "graph",
        type=Path,
        metavar="MODEL.onnx|ARTIFACT|BUNDLE|CONFIG",
        help="ONNX file, artefact, bundle, configuration of DeepStream's nvinfer, or config.pbtxt of Triton",
    )
    parser.add_argument(
        "--target", metavar="rtx|DEVICE", help="target of the graph (a bundle's own; else TensorRT 10.3 to 11, any GPU)"
    )
    parser.add_argument("--tensorrt", metavar="VERSION", help="TensorRT to check the graph for (the device's newest)")
    parser.add_argument(
        "--same-boundaries",
        type=Path,
        metavar="MODEL.onnx|ARTIFACT|BUNDLE",
        help="the graph that was measured: exit code 1 unless both quantize the same tensors alike, whatever they are called",
    )
    parser.add_argument("--parser", action="store_true", help="also run the parser of the installed TensorRT")


def run(args: argparse.Namespace) -> int:
    """Runs the verb."""
    from gft_edge.cli.console import result
    from gft_edge.errors import EXIT_CHECK_FAILED, EXIT_OK
    from gft_edge.export.lint_deployment.paths import lint_path

    report = lint_path(args.graph, args.target, args.tensorrt, ask=args.parser, boundaries_of=args.same_boundaries)
    lines = _deployment(report.deployment) if report.deployment else []
    if report.graph is not None:
        lines += [""] if lines else []
        lines += _graph(report.graph, report.graph_file)
    if report.boundaries is not None:
        lines += ["", f"against {args.same_boundaries}", *report.boundaries.lines()]
    result(args, report.to_json(), "\n".join(lines))
    return EXIT_OK if report.ok else EXIT_CHECK_FAILED


def _deployment(report: DeploymentReport) -> list[str]:
    from gft_edge.export.lint_deployment.linter import DEPLOYMENT_RULES

    lines = [str(report.path)]
    for found in report.findings:
        lines += [
            f"{found.place}: {found.severity} {found.rule}: {found.key}: {found.message}",
            f"    instead: {found.instead}",
        ]
    why = {rule.id: rule.why for rule in DEPLOYMENT_RULES}
    lines += [f"{rule}: {why[rule]}" for rule in sorted({found.rule for found in report.findings})]
    warnings = len(report.findings) - len(report.errors)
    read = f", {len(report.files)} configurations" if report.path.is_dir() else ""
    return [*lines, f"{report.rules} rules of deployments{read}: {len(report.errors)} errors, {warnings} warnings"]


def _graph(report: LintReport, file: Path | None) -> list[str]:
    from gft_edge.cli.console import table
    from gft_edge.export.lint.rules import PARSER, RULES

    why = {rule.id: rule.why for rule in (PARSER, *RULES)}
    lines = [f"{file} for {report.target}"]
    if report.findings:
        rows = [(f.rule, f.severity, f.node, f.message) for f in report.findings]
        lines += [table(("rule", "severity", "where", "what"), rows), ""]
        lines += [f"{rule}: {why[rule]}" for rule in sorted({f.rule for f in report.findings})]
    lines += [f"note: {note}" for note in report.notes]
    warnings = len(report.findings) - len(report.errors)
    return [*lines, f"{len(RULES)} rules: {len(report.errors)} errors, {warnings} warnings"]
