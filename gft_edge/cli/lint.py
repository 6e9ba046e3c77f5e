"""Look for what makes a graph wrong, slow or impossible to build on a target, before anything is built."""

from __future__ import annotations

import argparse
from pathlib import Path

EXAMPLE = "gft-edge lint runs/artifact --target orin-nano --tensorrt 10.3"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the verb's arguments."""
    parser.add_argument("graph", type=Path, metavar="MODEL.onnx|ARTIFACT", help="ONNX file or artefact folder")
    parser.add_argument("--target", metavar="rtx|DEVICE", help="judge for this target (TensorRT 10.3 to 11, any GPU)")
    parser.add_argument("--tensorrt", metavar="VERSION", help="judge for this TensorRT (the device's newest)")


def run(args: argparse.Namespace) -> int:
    """Runs the verb."""
    from gft_edge.cli.console import result, table
    from gft_edge.errors import EXIT_CHECK_FAILED, EXIT_OK
    from gft_edge.export.generations import platform
    from gft_edge.export.lint import lint, load_graph
    from gft_edge.export.lint_rules import RULES
    from gft_edge.filekinds import require_graph
    from gft_edge.manifest import MODEL, load_artifact

    target = platform(args.target, args.tensorrt)
    path = args.graph
    if path.is_dir():
        path = load_artifact(path).file(MODEL)
    else:
        require_graph(path)
    report = lint(load_graph(path), target)
    why = {rule.id: rule.why for rule in RULES}
    lines = [f"{path} for {report.target}"]
    if report.findings:
        rows = [(f.rule, f.severity, f.node, f.message) for f in report.findings]
        lines += [table(("rule", "severity", "where", "what"), rows), ""]
        lines += [f"{rule}: {why[rule]}" for rule in sorted({f.rule for f in report.findings})]
    warnings = len(report.findings) - len(report.errors)
    lines.append(f"{len(RULES)} rules: {len(report.errors)} errors, {warnings} warnings")
    result(args, report.to_json(), "\n".join(lines))
    return EXIT_CHECK_FAILED if report.errors else EXIT_OK
