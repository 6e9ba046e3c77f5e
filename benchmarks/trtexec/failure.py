"""The cause of a failed run of trtexec among its error lines, which is seldom the first."""

from __future__ import annotations

import re

_CAUSES = (
    re.compile(r"Could not find any implementation for node", re.IGNORECASE),
    re.compile(r"No importer registered|Plugin not found|UNSUPPORTED_NODE|could not find plugin", re.IGNORECASE),
    re.compile(r"out of memory|OutOfMemory|insufficient memory|exceeds? .*memory", re.IGNORECASE),
    re.compile(r"Unknown option|Unrecognized", re.IGNORECASE),
    re.compile(r"Version tag does not match|serialization|incompatible|not compatible|magic ?tag", re.IGNORECASE),
    re.compile(r"static dimension mismatch|dimension mismatch|does not satisfy|optimization profile", re.IGNORECASE),
    re.compile(r"While parsing node|Failed to parse|cannot open|could not open|no such file", re.IGNORECASE),
)
"""Patterns that name a cause, the surest first; onnx-tensorrt names a node before it names its problem."""
_CONSEQUENCES = re.compile(
    r"Engine could not be created|Building engine failed|Failed to create engine|set ?up failed|"
    r"Parsing model failed|Network creation failed|Skipping tactic|haveStreamOrderedAllocatorHelper|^\s*$",
    re.IGNORECASE,
)
_ERROR = re.compile(r"\[(?:E|F)\]\s?(.*)$")
_DECORATION = re.compile(
    r"^(?:\[TRT\]\s*|Error\[\d+\]:?\s*|\[\w+\.\w+::[^\]]*\]\s*|Error Code:? \d+:\s*|IBuilder::\w+:\s*)+"
)
_INTERNAL = re.compile(r"^Internal Error \((.*)\)\.?$")


def is_failure(text: str) -> bool:
    """Returns True if the output reports a failure although its verdict is missing."""
    return bool(re.search(r"\[E\].*(?:Engine set ?up failed|Inference set ?up failed|Building engine failed)", text))


def cause_of_failure(text: str) -> str:
    """Returns the error line with the cause, without codes and source positions."""
    errors = [match[1].strip() for line in text.splitlines() if (match := _ERROR.search(line))]
    for pattern in _CAUSES:
        for error in errors:
            if pattern.search(error):
                return _plain(error)
    telling = [error for error in errors if not _CONSEQUENCES.search(error)]
    return _plain((telling or errors)[0]) if errors else "it gives no reason"


def _plain(error: str) -> str:
    text = _DECORATION.sub("", error)
    match = _INTERNAL.match(text)
    return match[1] if match else text or error
