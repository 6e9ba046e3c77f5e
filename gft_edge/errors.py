"""Errors a user can meet, and the exit code each one ends the command line with."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Iterable

EXIT_OK = 0
EXIT_CHECK_FAILED = 1
EXIT_USER_ERROR = 2
EXIT_MISSING_EXTRA = 3
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143


class GFTEdgeError(Exception):
    """A problem the user can mend; its text says what is wrong, where, and what to do."""

    exit_code = EXIT_USER_ERROR


class ConfigError(GFTEdgeError, ValueError):
    """A configuration, recipe, preset or token budget that cannot be used."""


class ArtifactError(GFTEdgeError):
    """A checkpoint, artefact or engine on disk that is missing, damaged or of another kind."""


class DataError(GFTEdgeError):
    """Input data (an image, a data set folder) that cannot be read."""


class OutputError(GFTEdgeError):
    """A result that could not be written; nothing half-written is left.

    Args:
        path: what should have been written, or words such as "standard output".
        reason: the system's answer.
    """

    def __init__(self, path: object, reason: str) -> None:
        super().__init__(f"cannot write {path}: {reason}")
        self.path = path
        self.reason = reason


class CheckFailed(GFTEdgeError):
    """A comparison ran to its end and did not pass."""

    exit_code = EXIT_CHECK_FAILED


class MissingExtraError(GFTEdgeError, ImportError):
    """An optional dependency is not installed.

    Args:
        package: what could not be imported.
        extra: the extra of gft-edge that brings it.
        purpose: what it is needed for, for example "which reads image files".
        remedy: how to get it where that is not by the extra.
    """

    exit_code = EXIT_MISSING_EXTRA

    def __init__(self, package: str, extra: str, purpose: str = "", remedy: str = "") -> None:
        name = f"{package}, {purpose}," if purpose else package
        how = remedy or f"run: pip install 'gft-edge[{extra}]'"
        super().__init__(f"{name} is not installed; {how}")
        self.package = package
        self.extra = extra


def exit_code(main: Callable[[], int]) -> int:
    """Runs the ``main`` of a module started by ``python -m``; an error of the user's is one line on stderr and its code."""
    try:
        return main()
    except GFTEdgeError as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        return error.exit_code


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Returns ``" (did you mean 'x'?)"`` for the nearest known name, or ``""`` when none is near."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
