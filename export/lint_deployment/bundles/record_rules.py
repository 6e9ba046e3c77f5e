"""Record, labels and graphs of a bundle against its artefact."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import onnx

from gft_edge.bundle import ARTIFACT, MADE_ON_DEVICE, RECORD
from gft_edge.errors import ArtifactError, ConfigError
from gft_edge.export.deploy.triton.config import CONFIG
from gft_edge.export.graph.loading import load_graph
from gft_edge.export.lint_deployment.bundles.subject import LABELS, BundleSubject, line_with
from gft_edge.export.lint_deployment.nvinfer.subject import read_nvinfer
from gft_edge.export.lint_deployment.shared.rule import Problem, Problems, rule
from gft_edge.files import sha256
from gft_edge.labels import first_difference, read_labels

_AGAIN = "make the bundle again: gft-edge bundle"


def nvinfer_files(subject: BundleSubject) -> Iterator[Path]:
    """Yields the configurations of nvinfer: texts with a group [property]."""
    for path in subject.named(".txt"):
        if is_nvinfer(path):
            yield path


def is_nvinfer(path: Path) -> bool:
    """Returns whether a text has a line ``[property]``, or its name is that of a configuration of nvinfer."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError:
        return False
    return path.name.startswith("config_infer_") or any(line.strip() == "[property]" for line in lines)


@rule("BU002", "nothing for the target", "each target has files that its runtime is started with.")
def target_files(subject: BundleSubject) -> Problems:
    """Yields a bundle without the files of its target."""
    wanted = {
        "deepstream": ("a configuration of nvinfer", nvinfer_files(subject)),
        "triton": (CONFIG, subject.named(CONFIG)),
        "jetson": ("build.sh", subject.named("build.sh")),
        "onnxruntime": ("providers.json", subject.named("providers.json")),
    }
    name, found = wanted[subject.bundle.target]
    if next(found, None) is None:
        message = f"target {subject.bundle.target} needs {name}, and the bundle has none"
        yield Problem(name, message, _AGAIN, 0, subject.path / RECORD)


@rule(
    "BU003",
    "facts of another configuration",
    "programs that use a bundle read its facts, the runtime reads its configuration.",
)
def facts(subject: BundleSubject) -> Problems:
    """Yields facts of the record that its files do not agree with."""
    found, where = subject.bundle.facts, subject.path / RECORD
    for key in ("config", "client"):
        if isinstance(name := found.get(key), str) and not (subject.path / name).is_file():
            yield Problem(key, f"is {name}, which does not exist", _AGAIN, 0, where)
    if (
        subject.bundle.target == "deepstream"
        and isinstance(name := found.get("config"), str)
        and (subject.path / name).is_file()
    ):
        try:
            config = read_nvinfer(subject.path / name)
        except (ConfigError, ArtifactError):
            return  # reported for that file
        engine, batch = config.sound.file("model-engine-file"), config.sound.integer("batch-size", 1)
        own = (
            ""
            if engine is None
            else engine.relative_to(subject.path).as_posix()
            if engine.is_relative_to(subject.path)
            else str(engine)
        )
        made = found.get(MADE_ON_DEVICE)
        if own and isinstance(made, list) and own not in made:
            line = config.line("model-engine-file")
            message = f"is {own}, the record lets a device make {', '.join(map(str, made))}"
            yield Problem("model-engine-file", message, _AGAIN, line, config.config.path)
        if found.get("batch_size", batch) != batch:
            line = config.line("batch-size")
            yield Problem(
                "batch-size", f"is {batch}, the record has {found['batch_size']}", _AGAIN, line, config.config.path
            )
    for name in found.get("repositories", ()):
        if not (subject.path / name).is_dir():
            yield Problem("repositories", f"names {name}, which does not exist", _AGAIN, 0, where)


@rule("BU004", "labels of another order", "the classes of the manifest are in the order of the graph's outputs.")
def labels(subject: BundleSubject) -> Problems:
    """Yields label files, one label per line, that the manifest disagrees with; those of configurations have rules of their own."""
    if subject.bundle.target in ("deepstream", "triton"):
        return
    for path in subject.named(LABELS):
        try:
            found = read_labels(path)
        except ConfigError as error:
            yield Problem(path.name, str(error), _AGAIN, 0, path)
            continue
        wanted = subject.artifact.manifest.labels
        if len(found) != len(wanted):
            yield Problem(path.name, f"has {len(found)} labels, the model has {len(wanted)} classes", _AGAIN, 1, path)
        elif difference := first_difference(found, wanted):
            number, here, there = difference
            yield Problem(
                path.name,
                f"class {number} is {here}, the manifest has {there}",
                _AGAIN,
                line_with(path, found[number]),
                path,
            )


@rule(
    "BU005",
    "another graph than the artefact's",
    "golden outputs, labels and preprocessing of the manifest are those of the artefact's graph.",
)
def graphs(subject: BundleSubject) -> Problems:
    """Yields graphs outside the artefact with its outputs and another content."""
    scores = subject.artifact.manifest.outputs[0].name
    for path in subject.named(".onnx"):
        try:
            model = load_graph(path)
        except ArtifactError as error:
            yield Problem(path.name, str(error), _AGAIN, 0, path)
            continue
        if scores in _outputs(model) and sha256(path) not in subject.graph_hashes:
            message = f"is not a graph of {ARTIFACT}/: it computes {scores} with another content"
            yield Problem(path.name, message, _AGAIN, 0, path)


def _outputs(model: onnx.ModelProto) -> set[str]:
    return {value.name for value in model.graph.output}
