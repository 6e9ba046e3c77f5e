"""Finds the artefact that a deployed graph was exported as: in the bundle around a configuration, or beside the graph."""

from __future__ import annotations

from pathlib import Path

from gft_edge.bundle import is_bundle, load_bundle
from gft_edge.errors import GFTEdgeError
from gft_edge.files import sha256
from gft_edge.manifest import MANIFEST, MODEL, Artifact, DeploymentManifest, load_artifact

_LEVELS = 6
"""Folders between a configuration and its bundle, at most."""


def find_manifest(config: Path, graph: Path | None, budget: str = "") -> DeploymentManifest | None:
    """Returns the manifest of the artefact, for a graph of a family that of its member; None if there is none to read.

    Args:
        config: the configuration.
        graph: that it names, if it exists.
        budget: of the member, for configurations without a graph.
    """
    try:
        artifact = _artifact(config, graph)
        return None if artifact is None else _member(artifact, graph, budget).manifest
    except (GFTEdgeError, OSError):
        return None  # a bundle is checked whole before its configurations


def bundle_around(path: Path) -> Path | None:
    """Returns the bundle that a file lies in."""
    return next((folder for folder in list(path.resolve().parents)[:_LEVELS] if is_bundle(folder)), None)


def _artifact(config: Path, graph: Path | None) -> Artifact | None:
    bundle = bundle_around(config)
    if bundle is not None:
        return load_bundle(bundle).artifact()
    beside = graph.parent if graph is not None else None
    return load_artifact(beside) if beside is not None and (beside / MANIFEST).is_file() else None


def _member(artifact: Artifact, graph: Path | None, budget: str) -> Artifact:
    """Returns the member of a family with the same graph, else with that budget."""
    family = artifact.manifest.family
    if not family:
        return artifact
    content = "" if graph is None else sha256(graph)
    members = {name: load_artifact(f"{artifact.path}@{name}") for name in family}
    same = (member for member in members.values() if member.manifest.files[MODEL].sha256 == content)
    return next(same, members.get(budget, artifact) if graph is None else artifact)
