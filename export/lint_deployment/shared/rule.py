"""A rule of the lint of deployments, and what it finds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Generic, TypeVar

from gft_edge.export.lint.rule import Severity

S = TypeVar("S")


@dataclass(frozen=True)
class Problem:
    """A place that breaks a rule.

    Args:
        key: name of the key, field or file that is wrong.
        message: what it says and what that does.
        instead: what to write.
        line: of the key, counted from 1; 0 where there is none.
        file: that holds the key; None for the file that is checked.
    """

    key: str
    message: str
    instead: str
    line: int = 0
    file: Path | None = None


Problems = Iterator[Problem]


@dataclass(frozen=True)
class DeploymentRule(Generic[S]):
    """A fault of deployments.

    Args:
        id: never changes; ``DS`` for DeepStream, ``TR`` for Triton, ``BU`` for bundles.
        title: the fault in a few words.
        why: one sentence, with the public document, source or thread it rests on.
        severity: an error fails lint.
        check: yields each place that breaks the rule.
    """

    id: str
    title: str
    why: str
    severity: Severity
    check: Callable[[S], Problems]


@dataclass(frozen=True)
class DeploymentFinding:
    """A place that breaks a rule, with the file that holds it."""

    rule: str
    severity: Severity
    file: Path
    line: int
    key: str
    message: str
    instead: str

    @property
    def place(self) -> str:
        """File and line, as compilers write them."""
        return f"{self.file}:{self.line}" if self.line else str(self.file)

    def to_json(self) -> dict[str, Any]:
        """Returns plain JSON values."""
        return {**asdict(self), "file": str(self.file)}


def rule(
    id: str, title: str, why: str, severity: Severity = "error"
) -> Callable[[Callable[[S], Problems]], DeploymentRule[S]]:
    """Turns a check function into a :class:`DeploymentRule`; :func:`rules_of` collects it."""
    return lambda check: DeploymentRule(id, title, why, severity, check)


def rules_of(*themes: ModuleType) -> tuple[DeploymentRule[Any], ...]:
    """Returns every rule of some modules, in the order of their ids."""
    found = [value for theme in themes for value in vars(theme).values() if isinstance(value, DeploymentRule)]
    return tuple(sorted(found, key=lambda rule: rule.id))


def findings(rules: Iterable[DeploymentRule[S]], subject: S, file: Path) -> tuple[DeploymentFinding, ...]:
    """Returns what the rules find; ``file`` is the one that is checked."""
    return tuple(
        DeploymentFinding(
            rule.id, rule.severity, problem.file or file, problem.line, problem.key, problem.message, problem.instead
        )
        for rule in rules
        for problem in rule.check(subject)
    )
