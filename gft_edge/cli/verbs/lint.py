"""Check a graph for hazards that make it wrong, slow or impossible to build on a target, before anything is built."""

from __future__ import annotations

import argparse
from pathlib import Path

EXAMPLE = "gft-edge lint runs/artifact --target orin-nano --tensorrt 10.3"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the verb's arguments."""
    parser.add_argument("graph", type=Path, metavar="MODEL.onnx|ARTIFACT", help="ONNX file or artefact folder")
    parser.add_argument("--target", metavar="rtx|DEVICE", help="target to check for (TensorRT 10.3 to 11, any GPU)")
    parser.add_argument("--tensorrt", metavar="VERSION", help="TensorRT to check for (the device's newest)")
    parser.add_argument("--parser", action="store_true", help="also run the parser of the installed TensorRT")


def run(args: argparse.Namespace) -> int:
    """Runs the verb."""
    from gft_edge.cli.console import result, table
    from gft_edge.errors import EXIT_CHECK_FAILED, EXIT_OK
    from gft_edge.export.lint.files import graph_file, lint_file
    from gft_edge.export.lint.rules import PARSER, RULES
    from gft_edge.hardware.tensorrt_versions import platform

    target = platform(args.target, args.tensorrt)
    file = graph_file(args.graph)
    report = lint_file(file, target, ask=args.parser)
    why = {rule.id: rule.why for rule in (PARSER, *RULES)}
    lines = [f"{file} for {report.target}"]
    if report.findings:
        rows = [(f.rule, f.severity, f.node, f.message) for f in report.findings]
        lines += [table(("rule", "severity", "where", "what"), rows), ""]
        lines += [f"{rule}: {why[rule]}" for rule in sorted({f.rule for f in report.findings})]
    lines += [f"note: {note}" for note in report.notes]
    warnings = len(report.findings) - len(report.errors)
    lines.append(f"{len(RULES)} rules: {len(report.errors)} errors, {warnings} warnings")
    result(args, report.to_json(), "\n".join(lines))
    return EXIT_CHECK_FAILED if report.errors else EXIT_OK
