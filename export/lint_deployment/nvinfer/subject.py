"""A configuration of Gst-nvinfer with everything that it names."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from gft_edge.export.deploy.deepstream.nvinfer_config import PROPERTY, NvinferConfig, read_config
from gft_edge.export.lint_deployment.nvinfer.keys import KEYS, problem_of_value
from gft_edge.export.lint_deployment.shared.served_graph import ServedGraph, read_served_graph
from gft_edge.export.lint_deployment.shared.source import find_manifest
from gft_edge.manifest import DeploymentManifest

CLASSIFIER, OTHER = 1, 100
MODES = ("fp32", "int8", "fp16", "best")
"""Words in the name of an engine, by ``network-mode``."""


@dataclass(frozen=True)
class NvinferSubject:
    """A configuration and what it names.

    Args:
        config: as read.
        sound: without unknown keys and values of the wrong kind, whose defaults hold then.
        graph: that ``onnx-file`` names, None where there is none.
        labels: content of the labels file by line, each with its number; None where there is none.
        manifest: of the artefact, None for a graph of another origin.
    """

    config: NvinferConfig
    sound: NvinferConfig
    graph: ServedGraph | None
    labels: tuple[tuple[int, str], ...] | None
    manifest: DeploymentManifest | None

    @property
    def is_classifier(self) -> bool:
        """The default parser reads the outputs as attributes."""
        return self.kind == CLASSIFIER and "parse-classifier-func-name" not in self.sound.values.get(PROPERTY, {})

    @property
    def names_classes(self) -> bool:
        """Has labels: nvinfer's own parser attaches them, or the application reads them beside the tensors."""
        return self.is_classifier or self.kind == OTHER

    @property
    def kind(self) -> int:
        """``network-type``."""
        return self.sound.integer("network-type", 0)

    @property
    def is_secondary(self) -> bool:
        """Works on objects that a detector found."""
        return self.sound.integer("process-mode", 1) == 2

    @property
    def label_file(self) -> Path | None:
        """Labels file, also where it does not exist."""
        return self.sound.file("labelfile-path")

    @property
    def engine_name(self) -> str:
        """Name of the engine that nvinfer writes beside the graph (buildModel in nvdsinfer_context_impl.cpp)."""
        sound = self.sound
        device = (
            f"dla{sound.integer('use-dla-core', 0)}" if sound.flag("enable-dla") else f"gpu{sound.integer('gpu-id', 0)}"
        )
        graph = Path(sound.text("onnx-file")).name
        mode = MODES[sound.integer("network-mode", 0)]
        return f"{graph}_b{sound.integer('batch-size', 1)}_{device}_{mode}.engine"

    def has(self, key: str) -> bool:
        """Returns whether the configuration has a key with a sound value."""
        return key in self.sound.values.get(PROPERTY, {})

    def line(self, *keys: str) -> int:
        """Returns the line of the first of these keys that is there."""
        return next((self.config.line(key) for key in keys if self.config.line(key)), 0)


def read_nvinfer(path: Path) -> NvinferSubject:
    """Reads a configuration, and the graph, the labels and the manifest that belong to it.

    Raises:
        ConfigError: no configuration of nvinfer.
        ArtifactError: the graph that it names is no ONNX graph.
    """
    config = read_config(path)
    properties = config.values.get(PROPERTY, {})
    kept = {key: value for key, value in properties.items() if key in KEYS and problem_of_value(config, key) is None}
    sound = replace(config, values={**config.values, PROPERTY: kept})
    onnx, labels = sound.file("onnx-file"), sound.file("labelfile-path")
    graph = read_served_graph(onnx) if onnx is not None and onnx.is_file() else None
    return NvinferSubject(
        config,
        sound,
        graph,
        _lines(labels) if labels is not None and labels.is_file() else None,
        find_manifest(path, graph.file if graph else None),
    )


def _lines(path: Path) -> tuple[tuple[int, str], ...]:
    """Returns the lines as parseLabelsFile of nvinfer sees them: split at line feeds only, empty ones skipped."""
    text = path.read_bytes().decode("utf-8", errors="replace")
    return tuple((number, line) for number, line in enumerate(text.split("\n"), 1) if line)
