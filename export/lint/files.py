"""Lints the graph of a file or an artefact."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from gft_edge.bundle import is_bundle, open_artifact
from gft_edge.errors import ArtifactError
from gft_edge.export.graph import native
from gft_edge.export.graph.loading import read_graph
from gft_edge.export.lint.linter import LintReport, lint, ordered
from gft_edge.export.lint.parser_check import ask_parser
from gft_edge.hardware.tensorrt_versions import Platform
from gft_edge.manifest import MANIFEST, MODEL


def graph_file(path: Path) -> Path:
    """Returns the ONNX file of an artefact, of a bundle or of a quantized ONNX file of another program, or the path itself.

    Raises:
        ArtifactError: a folder that is neither, or a changed file.
    """
    if not path.is_dir():
        return path
    has_record = (path / MANIFEST).exists() or is_bundle(path)
    return path / MODEL if (path / MODEL).is_file() and not has_record else open_artifact(path).file(MODEL)


def lint_file(file: Path, platform: Platform, *, ask: bool = False) -> LintReport:
    """Checks an ONNX file against every rule; large weights in other files are not read.

    Args:
        file: of any graph.
        platform: to judge for.
        ask: let the installed parser of TensorRT or TensorRT-RTX read the file too.

    Raises:
        ArtifactError: missing, or not a valid graph.
        MissingExtraError: no parser is installed.
        ConfigError: the installed parser is of another version than the platform.
    """
    native.start()
    loaded = read_graph(file)
    try:
        report = lint(loaded.model, platform)
    except ArtifactError as error:
        raise ArtifactError(f"graph {file}: {error}") from None
    report = replace(report, notes=(*report.notes, *loaded.notes))
    if not ask:
        return report
    parser, refused = ask_parser(file, platform)
    notes = (*report.notes, f"{parser} {'refuses' if refused else 'reads'} the file")
    return replace(report, findings=ordered((*report.findings, *refused)), notes=notes)
