"""Caches that a runtime keeps in an artefact: compiled kernels, engines, timings; in ``caches/``, beside the hash-checked files.

An engine of a cache is native code, so a cache is used only if it is exactly the one that this machine and software wrote: its card
holds the reasons to trust it and the hash of every file. Otherwise it is emptied; a cache can always be made again.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from gft_edge.errors import GFTEdgeError
from gft_edge.files import read_json, sha256, write_json
from gft_edge.manifest import Artifact

CACHES = "caches"
CARD = "card.json"


@dataclass(frozen=True)
class Cache:
    """A folder that a runtime may write to.

    Attributes:
        path: of the folder.
        facts: what it depends on: graph, versions, GPU.
        state: ``"new"``, ``"reused"``, or ``"emptied: REASON"``.
    """

    path: Path
    facts: Mapping[str, str]
    state: str

    def close(self) -> None:
        """Records the files that the runtime wrote, so that the next session may use them."""
        write_json(self.path / CARD, {"facts": dict(self.facts), "files": _hashes(self.path)})


def open_cache(artifact: Artifact, name: str, facts: Mapping[str, str]) -> Cache | None:
    """Returns the cache of that name, emptied unless it is trusted; None where the artefact cannot be written to.

    Args:
        artifact: that holds it.
        name: of the folder below ``caches/``.
        facts: what its content depends on, for example ``{"model_sha256": ..., "onnxruntime": "1.31.1", "gpu": "8.7"}``.
    """
    path = artifact.path / CACHES / name
    try:
        if path.parent.is_symlink() or path.is_symlink():
            return None
        path.mkdir(parents=True, exist_ok=True)
        reason = _distrust(path, facts)
        if reason:
            shutil.rmtree(path)
            path.mkdir()
        probe = path / "writable"
        probe.touch()
        probe.unlink()
    except OSError:
        return None
    state = "reused" if reason is None else f"emptied: {reason}" if reason else "new"
    return Cache(path, facts, state)


def _distrust(path: Path, facts: Mapping[str, str]) -> str | None:
    """Returns why a cache cannot be used, ``""`` for an empty one, None for one that can."""
    if not any(path.iterdir()):
        return ""
    if any(file.is_symlink() for file in path.rglob("*")):
        return "it holds a link"
    if not (path / CARD).is_file():
        return "it has no card"
    try:
        card = read_json(path / CARD, "card of a cache")
    except GFTEdgeError:
        return "its card is damaged"
    if card.get("facts") != dict(facts):
        recorded = card.get("facts")
        other = [n for n in facts if not isinstance(recorded, dict) or recorded.get(n) != facts[n]]
        return f"it is of another {other[0] if other else 'card'}"
    return None if card.get("files") == _hashes(path) else "its files were changed"


def _hashes(path: Path) -> dict[str, str]:
    files = {file.relative_to(path).as_posix(): file for file in sorted(path.rglob("*")) if file.is_file()}
    return {name: sha256(file) for name, file in files.items() if name != CARD}


def machine_mark(root: Path = Path("/")) -> str:
    """Returns a hash of the system's own id, so that a cache that came with the artefact is not that of this machine."""
    try:
        return hashlib.sha256((root / "etc/machine-id").read_bytes()).hexdigest()[:16]
    except OSError:
        return "unknown"
