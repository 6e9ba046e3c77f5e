"""Seals of JSON records: a record holds the sha256 of its own canonical text, which detects a changed byte.

A seal detects damage and careless edits. It is no signature: anyone who can write the file can seal it again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gft_edge.errors import ArtifactError
from gft_edge.files import canonical_json, read_json, write_json

SEAL = "seal"


def seal_of(data: Mapping[str, Any]) -> str:
    """Returns the hexadecimal sha256 of the canonical JSON of a record without its seal."""
    return hashlib.sha256(canonical_json({k: v for k, v in data.items() if k != SEAL}).encode()).hexdigest()


def sealed(data: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a record with its seal, replacing one that it has."""
    return {**data, SEAL: seal_of(data)}


def write_sealed(path: Path, data: Mapping[str, Any]) -> None:
    """Writes a record as canonical JSON with its seal, whole or not at all."""
    write_json(path, sealed(data))


def read_sealed(path: Path, what: str, remedy: str) -> dict[str, Any]:
    """Reads a record written by :func:`write_sealed`.

    The text must be canonical, so that no other spelling of a value (``1.0`` and ``1.00``) passes.

    Args:
        path: the file.
        what: kind of record, for messages.
        remedy: for a broken seal, for messages.

    Raises:
        ArtifactError: missing, no JSON object, without a seal, or changed since it was written.
    """
    data = read_json(path, what)
    seal = data.get(SEAL)
    if seal is None:
        raise ArtifactError(f"{what} {path}: has no seal (written by an older version, or by hand); {remedy}")
    try:
        whole = seal == seal_of(data) and path.read_bytes() == canonical_json(data).encode()
    except (OSError, ValueError):  # changed while it is read; NaN or a lone surrogate, which no writer leaves
        whole = False
    if not whole:
        raise ArtifactError(f"{what} {path}: was changed since it was written (its seal does not match); {remedy}")
    return {key: value for key, value in data.items() if key != SEAL}
