"""A rule of lint: its text beside the function that checks it. Modules ``*_rules`` hold the rules by theme."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from gft_edge.export.graph.view import GraphView
from gft_edge.hardware.tensorrt_versions import Platform

Severity = Literal["error", "warning"]
Problems = Iterator[tuple[str, str]]
"""Node and message of each place that breaks a rule."""
Check = Callable[[GraphView, Platform], Problems]


def error(platform: Platform) -> Severity:
    """Returns ``"error"`` on every platform."""
    return "error"


def warning(platform: Platform) -> Severity:
    """Returns ``"warning"`` on every platform."""
    return "warning"


def warning_when_weak(platform: Platform) -> Severity:
    """Returns ``"warning"`` where builder flags decide the types, else ``"error"``."""
    return "warning" if platform.is_weak else "error"


def error_without_int64(platform: Platform) -> Severity:
    """Returns ``"error"`` where TensorRT has no INT64, else ``"warning"``."""
    return "error" if platform.generation is not None and not platform.generation.int64 else "warning"


@dataclass(frozen=True)
class Rule:
    """A hazard.

    Args:
        id: never changes.
        title: the hazard in a few words.
        why: one sentence, with the public document or thread it rests on.
        check: yields node and message of each place that breaks the rule.
        severity: on a platform; an error fails lint.
    """

    id: str
    title: str
    why: str
    check: Check
    severity: Callable[[Platform], Severity] = error


def rule(id: str, title: str, why: str, severity: Callable[[Platform], Severity] = error) -> Callable[[Check], Rule]:
    """Turns a check function into a :class:`Rule`; :data:`gft_edge.export.lint.rules.RULES` collects it."""
    return lambda check: Rule(id, title, why, check, severity)
