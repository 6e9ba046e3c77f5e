"""Keys, their values and the files that they name."""

from __future__ import annotations

import difflib

from gft_edge.export.deploy.deepstream.nvinfer_config import PROPERTY
from gft_edge.export.lint_deployment.nvinfer.keys import FILES, GROUPS, KEYS, LEGACY, problem_of_value
from gft_edge.export.lint_deployment.nvinfer.subject import NvinferSubject
from gft_edge.export.lint_deployment.shared.rule import Problem, Problems, rule

_NEAR = 0.8


def _near(name: str, known: list[str]) -> str:
    return next(iter(difflib.get_close_matches(name, known, n=1, cutoff=_NEAR)), "")


@rule(
    "DS001",
    "value that nvinfer does not take",
    "gstnvinfer_property_parser.cpp ends the pipeline or takes the default where a value is none of those it knows.",
)
def values(subject: NvinferSubject) -> Problems:
    """Yields keys with a value of the wrong kind."""
    for key, (text, line) in subject.config.values.get(PROPERTY, {}).items():
        if key in KEYS and (words := problem_of_value(subject.config, key)):
            yield Problem(key, f"has the value {text!r}", f"{key}: {words}", line)


@rule(
    "DS002",
    "misspelt key",
    "nvinfer prints 'Unknown or legacy key specified' and goes on with the default (gstnvinfer_property_parser.cpp).",
)
def misspelt(subject: NvinferSubject) -> Problems:
    """Yields keys that are nearly a known one."""
    for key, (_, line) in subject.config.values.get(PROPERTY, {}).items():
        if key not in KEYS and key not in LEGACY and (meant := _near(key, list(KEYS))):
            yield Problem(key, f"is no key of nvinfer, which ignores it; did you mean {meant}?", meant, line)
    for group, keys in subject.config.values.items():
        if group not in GROUPS and not group.startswith("class-attrs-") and (meant := _near(group, list(GROUPS))):
            line = min((line for _, line in keys.values()), default=1) - 1
            yield Problem(f"[{group}]", "is no group of nvinfer, which ignores its keys", f"[{meant}]", line)
    if PROPERTY not in subject.config.values:
        yield Problem(f"[{PROPERTY}]", "is missing, so nvinfer reads no key", f"[{PROPERTY}] above the keys", 1)


@rule(
    "DS003",
    "unknown or old key",
    "nvinfer prints 'Unknown or legacy key specified' and goes on; keys of Caffe and UFF are gone since DeepStream 7.",
    "warning",
)
def unknown(subject: NvinferSubject) -> Problems:
    """Yields keys that nvinfer does not have, or not any more."""
    for key, (_, line) in subject.config.values.get(PROPERTY, {}).items():
        if key in LEGACY:
            yield Problem(key, "is a key of older versions", LEGACY[key], line)
        elif key not in KEYS and not _near(key, list(KEYS)):
            yield Problem(key, "is no key of nvinfer, which ignores it", f"remove {key}", line)


@rule(
    "DS004",
    "file that does not exist",
    "names are relative to the folder of the configuration (Gst-nvinfer); nvinfer ends without the file.",
)
def files(subject: NvinferSubject) -> Problems:
    """Yields keys whose file is missing."""
    for key in FILES:
        path = subject.sound.file(key)
        if path is not None and not path.is_file():
            found = "is a folder" if path.is_dir() else "does not exist"
            yield Problem(key, f"{path} {found}", f"{key}: a path relative to {path.parent}", subject.line(key))


@rule(
    "DS005",
    "nothing to run",
    "nvinfer builds its engine from onnx-file, or reads model-engine-file; with neither it ends (buildModel of nvdsinfer).",
)
def nothing_to_run(subject: NvinferSubject) -> Problems:
    """Yields a configuration with neither a graph nor an engine that exists."""
    engine = subject.sound.file("model-engine-file")
    if subject.has("onnx-file"):
        return
    if engine is None:
        yield Problem("onnx-file", "is missing, and so is model-engine-file", "onnx-file: the graph")
    elif not engine.is_file():
        message = f"{engine} does not exist, and there is no onnx-file to build it from"
        yield Problem("model-engine-file", message, "onnx-file: the graph", subject.line("model-engine-file"))


@rule(
    "DS006",
    "parser function without a library",
    "nvinfer looks up parse-*-func-name in custom-lib-path alone (nvdsinfer_context_impl_output_parsing.cpp).",
)
def parser_library(subject: NvinferSubject) -> Problems:
    """Yields functions that are in no library."""
    for key in ("parse-classifier-func-name", "parse-bbox-func-name", "engine-create-func-name"):
        if subject.has(key) and not subject.has("custom-lib-path"):
            yield Problem(
                key, "is in no library: custom-lib-path is missing", f"custom-lib-path, or no {key}", subject.line(key)
            )
