"""Lets the installed parser of TensorRT or TensorRT-RTX read a file."""

from __future__ import annotations

import importlib
import importlib.util
import json
from pathlib import Path

from gft_edge.errors import ArtifactError, ConfigError
from gft_edge.export.graph import native
from gft_edge.export.lint.linter import Finding
from gft_edge.export.lint.rules import PARSER
from gft_edge.hardware.environment import missing_extra
from gft_edge.hardware.tensorrt_versions import Platform
from gft_edge.runtime.backends.table import backend_of_module

SECONDS = 300.0


def ask_parser(path: Path, platform: Platform) -> tuple[str, tuple[Finding, ...]]:
    """Lets TensorRT's or TensorRT-RTX's parser read a file, in a process of its own.

    Args:
        path: the ONNX file, its weights beside it.
        platform: of the graph; decides which of the two reads it. Without a target, the installed one.

    Returns:
        title of the parser, and its refusals.

    Raises:
        MissingExtraError: neither is installed.
        ConfigError: the one for the target is not installed, or has another version.
    """
    module = _module(platform)
    title = f"the parser of {module} {_version(module)}"
    known = platform.generation
    if known is not None and not platform.is_rtx and platform.version is not None:
        here = _version(module).split(".")[:2]
        if here != platform.version.split(".")[:2]:
            raise ConfigError(
                f"--parser: {module} {'.'.join(here)} is installed here, the graph is judged for {platform.version}; give "
                f"--tensorrt {'.'.join(here)}"
            )
    request = json.dumps({"module": module, "path": str(path.resolve())}).encode()
    try:
        errors = json.loads(native.call("parse", request, SECONDS))
    except native.NativeError as error:
        if error.crashed:
            return title, (Finding(PARSER.id, "error", "graph", f"{title} {error}"),)
        raise ArtifactError(f"--parser: {title} cannot be asked: {error}") from None
    return title, tuple(
        Finding(
            PARSER.id, "error", f"{e['operator']} {e['node']}".strip() or "graph", f"{title}: {_line(e['description'])}"
        )
        for e in errors
    )


def _module(platform: Platform) -> str:
    wanted = (
        ("tensorrt_rtx",) if platform.is_rtx else ("tensorrt",) if platform.version else ("tensorrt", "tensorrt_rtx")
    )
    for module in wanted:
        if importlib.util.find_spec(module) is not None:
            return module
    if len(wanted) == 1 and wanted[0] == "tensorrt" and importlib.util.find_spec("tensorrt_rtx") is not None:
        raise ConfigError("--parser: TensorRT is not installed here, TensorRT-RTX is; give --target rtx")
    raise missing_extra(wanted[0], backend_of_module(wanted[0]).extra)


def _version(module: str) -> str:
    try:
        return str(importlib.import_module(module).__version__)
    except (ImportError, OSError) as error:
        raise ConfigError(f"--parser: {module} cannot be imported here ({error})") from None


def _line(text: str) -> str:
    return " ".join(text.split())
