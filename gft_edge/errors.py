"""Errors a user can meet, and the exit code each one ends the command line with."""

from __future__ import annotations

EXIT_OK = 0
EXIT_CHECK_FAILED = 1
EXIT_USER_ERROR = 2
EXIT_MISSING_EXTRA = 3


class GFTEdgeError(Exception):
    """A problem the user can mend; its text says what is wrong, where, and what to do."""

    exit_code = EXIT_USER_ERROR


class ConfigError(GFTEdgeError, ValueError):
    """A configuration, recipe, preset or token budget that cannot be used."""


class ArtifactError(GFTEdgeError):
    """A checkpoint, artefact or engine on disk that is missing, damaged or of another kind."""


class DataError(GFTEdgeError):
    """Input data (an image, a data set folder) that cannot be read."""


class CheckFailed(GFTEdgeError):
    """A comparison ran to its end and did not pass."""

    exit_code = EXIT_CHECK_FAILED


class MissingExtraError(GFTEdgeError, ImportError):
    """An optional dependency is not installed.

    Args:
        package: what could not be imported.
        extra: the extra of gft-edge that brings it.
        purpose: what it is needed for, for example "which reads image files".
    """

    exit_code = EXIT_MISSING_EXTRA

    def __init__(self, package: str, extra: str, purpose: str = "") -> None:
        name = f"{package}, {purpose}," if purpose else package
        super().__init__(f"{name} is not installed; run: pip install 'gft-edge[{extra}]'")
        self.package = package
        self.extra = extra
