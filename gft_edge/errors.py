"""Errors for users, each with the exit code of the command line."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Iterable

EXIT_OK = 0
EXIT_CHECK_FAILED = 1
EXIT_USER_ERROR = 2
EXIT_MISSING_EXTRA = 3


class GFTEdgeError(Exception):
    """A problem that the user can solve; the text names the problem, the place and the remedy."""

    exit_code = EXIT_USER_ERROR


class ConfigError(GFTEdgeError, ValueError):
    """An unusable configuration, recipe, preset or token budget."""


class ArtifactError(GFTEdgeError):
    """A missing or damaged checkpoint, artefact or engine, or a file of another kind."""


class DataError(GFTEdgeError):
    """Unreadable input data: an image or a data set folder."""


class OutputError(GFTEdgeError):
    """A result that cannot be written; no partial file is left.

    Args:
        path: of the output, or words such as "standard output".
        reason: error message of the system.
    """

    def __init__(self, path: object, reason: str) -> None:
        super().__init__(f"cannot write {path}: {reason}")
        self.path = path
        self.reason = reason


class CheckFailed(GFTEdgeError):
    """A comparison that was completed and did not pass."""

    exit_code = EXIT_CHECK_FAILED


class MissingExtraError(GFTEdgeError, ImportError):
    """An optional dependency is not installed.

    Args:
        package: that could not be imported.
        extra: of gft-edge that installs it.
        purpose: its use, for example "which reads image files".
        remedy: how to install it where the extra does not.
    """

    exit_code = EXIT_MISSING_EXTRA

    def __init__(self, package: str, extra: str, purpose: str = "", remedy: str = "") -> None:
        name = f"{package}, {purpose}," if purpose else package
        how = remedy or f"run: pip install 'gft-edge[{extra}]'"
        super().__init__(f"{name} is not installed; {how}")
        self.package = package
        self.extra = extra


def exit_code(main: Callable[[], int]) -> int:
    """Runs the ``main`` of a module started by ``python -m``; prints an error for users as one line and returns its exit code."""
    try:
        return main()
    except GFTEdgeError as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        return error.exit_code


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Returns ``" (did you mean 'x'?)"`` for the nearest known name, or ``""`` when none is near."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
