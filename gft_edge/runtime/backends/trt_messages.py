"""Converts the error messages of TensorRT to one readable line.

Errors come from the logger and not from an ``IErrorRecorder``. The bindings of every generation let Python subclass one, but on
TensorRT-RTX 1.7 the process crashes when a builder with a recorder is destroyed, even after the recorder was unset; and the
recorder receives the logger's line word for word with the code UNSPECIFIED_ERROR. The parser has no recorder; it lists its errors
with their nodes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

from gft_edge.errors import ArtifactError

if TYPE_CHECKING:
    import tensorrt


def error_logger(trt: ModuleType, messages: list[str]) -> tensorrt.ILogger:
    """Returns a logger that appends errors to ``messages`` and prints nothing."""

    class Collector(trt.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                messages.append(message)

    return Collector()


def require(value: object, problem: str, messages: Sequence[str]) -> None:
    """Raises ArtifactError for None, which TensorRT returns instead of raising."""
    if value is None:
        raise ArtifactError(f"{problem}: {explain(messages)}")


_NODE = re.compile(
    r"operation '([^']+)'|implementation for node (\S+?)[.)]*(?:\s|$)|with name: (\S+) and operator|node '([^']+)'"
)
_NOISE = re.compile(r"^I\w+::\w+: |Error Code \d+: |Myelin \(|\[\w+\.c(?:pp|u):\d+:? ?\w*\] ?| In \w+ at /\S+\)?")
_HINTS = (
    ("implementation for node", "raise --workspace, or export without quantizing that node"),
    ("out of memory", "free memory, lower --workspace or --optimization-level"),
)


def explain(messages: Sequence[str]) -> str:
    """Returns the compiler's errors as one line: the node, the messages without source positions, and a hint."""
    text = "; ".join(dict.fromkeys(_NOISE.sub("", message).strip() for message in messages[-3:]))
    if not text:
        return "TensorRT gave no message"
    match = _NODE.search(text)
    node = next((group for group in match.groups() if group), None) if match else None
    hint = next((hint for words, hint in _HINTS if words in text.lower()), None)
    return (f"node {node}: " if node else "") + text + (f" ({hint})" if hint else "")
