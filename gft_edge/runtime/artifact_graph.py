"""Reads an artefact's graph for what looks into it; a session opens the file itself. Needs onnx when it is called."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gft_edge.errors import ArtifactError
from gft_edge.manifest import MODEL, Artifact

if TYPE_CHECKING:
    import onnx


def load_artifact_graph(artifact: Artifact, weights: bool = True) -> onnx.ModelProto:
    """Returns the graph, after its hash is checked and that of every file it reads.

    Args:
        artifact: of the graph.
        weights: also read those that are in a file of their own.

    Raises:
        ArtifactError: the file is missing, changed, or not an ONNX model.
        ModuleNotFoundError: onnx is not installed.
    """
    import onnx

    path = artifact.file(MODEL)
    try:
        return onnx.load(str(path), load_external_data=weights)
    except Exception as error:  # protobuf's own class, which onnx does not export
        raise ArtifactError(f"artefact {artifact.path}: {MODEL} is no ONNX model ({error}); export it again") from None
