"""Checks a configuration or a bundle against the rules of deployments."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gft_edge.bundle import is_bundle
from gft_edge.errors import ConfigError
from gft_edge.export.deploy.triton.config import CONFIG
from gft_edge.export.lint_deployment.bundles import engine_rules as bundle_engines
from gft_edge.export.lint_deployment.bundles import record_rules, script_rules
from gft_edge.export.lint_deployment.bundles.record_rules import is_nvinfer, nvinfer_files
from gft_edge.export.lint_deployment.bundles.subject import BundleSubject, read_bundle
from gft_edge.export.lint_deployment.nvinfer import engine_rules, file_rules, input_rules, label_rules, output_rules
from gft_edge.export.lint_deployment.nvinfer.subject import read_nvinfer
from gft_edge.export.lint_deployment.shared.rule import DeploymentFinding, findings, rules_of
from gft_edge.export.lint_deployment.triton import artifact_rules, ensemble_rules, serving_rules, tensor_rules
from gft_edge.export.lint_deployment.triton.subject import read_triton

NVINFER_RULES = rules_of(file_rules, label_rules, output_rules, input_rules, engine_rules)
TRITON_RULES = rules_of(serving_rules, tensor_rules, ensemble_rules, artifact_rules)
BUNDLE_RULES = rules_of(record_rules, bundle_engines, script_rules)
DEPLOYMENT_RULES = (*BUNDLE_RULES, *NVINFER_RULES, *TRITON_RULES)


@dataclass(frozen=True)
class DeploymentReport:
    """What was found in a configuration or a bundle.

    Args:
        path: that was checked.
        files: configurations that were read.
        rules: number of rules that were checked.
        findings: errors first.
    """

    path: Path
    files: tuple[Path, ...]
    rules: int
    findings: tuple[DeploymentFinding, ...]

    @property
    def errors(self) -> tuple[DeploymentFinding, ...]:
        """Findings that make a deployment wrong or keep it from starting."""
        return tuple(finding for finding in self.findings if finding.severity == "error")

    def to_json(self) -> dict[str, Any]:
        """Returns plain JSON values."""
        found = {finding.rule for finding in self.findings}
        return {
            "path": str(self.path),
            "files": [str(file) for file in self.files],
            "ok": not self.errors,
            "findings": [finding.to_json() for finding in self.findings],
            "rules": {rule.id: {"title": rule.title, "why": rule.why} for rule in DEPLOYMENT_RULES if rule.id in found},
        }


def is_deployment(path: Path) -> bool:
    """Returns whether a path is a bundle or a configuration that :func:`lint_deployment` reads, and no graph or artefact."""
    if path.is_dir():
        return is_bundle(path)
    return path.suffix == ".pbtxt" or (path.suffix in (".txt", ".ini", ".cfg") and path.is_file())


def lint_deployment(path: Path) -> DeploymentReport:
    """Checks a bundle, a configuration of Gst-nvinfer, or a ``config.pbtxt`` of Triton, and what it names.

    Raises:
        ConfigError: no configuration.
        ArtifactError: a damaged record, configuration or graph.
        MissingExtraError: a package that reads the file is not installed.
    """
    if path.is_dir():
        return _lint_bundle(path)
    if path.suffix == ".pbtxt":
        return _report(path, (path,), len(TRITON_RULES), _triton(path))
    if not is_nvinfer(path):
        raise ConfigError(
            f"configuration {path}: has no line [property], so it is none of nvinfer; give a bundle, such a configuration, "
            f"{CONFIG} of Triton, an artefact or an ONNX file"
        )
    return _report(path, (path,), len(NVINFER_RULES), _nvinfer(path))


def _lint_bundle(path: Path) -> DeploymentReport:
    subject = read_bundle(path)
    found = list(findings(BUNDLE_RULES, subject, path))
    files = tuple(_configurations(subject))
    for file in files:
        found += _triton(file) if file.name == CONFIG else _nvinfer(file)
    return _report(path, files, len(DEPLOYMENT_RULES), tuple(found))


def _configurations(subject: BundleSubject) -> Iterator[Path]:
    if subject.bundle.target == "deepstream":
        yield from nvinfer_files(subject)
    if subject.bundle.target == "triton":
        yield from subject.named(CONFIG)


def _nvinfer(path: Path) -> tuple[DeploymentFinding, ...]:
    return findings(NVINFER_RULES, read_nvinfer(path), path)


def _triton(path: Path) -> tuple[DeploymentFinding, ...]:
    return findings(TRITON_RULES, read_triton(path), path)


def _report(path: Path, files: tuple[Path, ...], rules: int, found: tuple[DeploymentFinding, ...]) -> DeploymentReport:
    order = {"error": 0, "warning": 1}
    return DeploymentReport(
        path, files, rules, tuple(sorted(found, key=lambda f: (order[f.severity], f.rule, str(f.file), f.line)))
    )
