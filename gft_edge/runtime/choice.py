"""``--backend auto``: the fastest way to run an artefact among what is installed and fits this machine, and why it was taken."""

from __future__ import annotations

from gft_edge.errors import GFTEdgeError
from gft_edge.hardware.environment import has_nvidia_driver
from gft_edge.manifest import Artifact
from gft_edge.runtime.backends.sessions import Session, open_session
from gft_edge.runtime.backends.table import BACKENDS, DEFAULT

AUTO = "auto"
ENGINES = "engines/"
"""Folder of an artefact's engines."""
GRAPHS_ON_GPU = ("onnxruntime-cuda",)
"""Backends that run a graph on a GPU at once. ONNX Runtime's TensorRT providers compile for minutes first and are never chosen."""


def open_chosen(
    artifact: Artifact, backend: str = AUTO, threads: int = 0, huge_pages: bool = False
) -> tuple[Session, str]:
    """Opens an artefact with a backend, or with the first one that opens.

    Args:
        artifact, threads, huge_pages: as for :func:`gft_edge.runtime.backends.sessions.open_session`.
        backend: a name of the table; ``"auto"`` tries engines of the artefact, then ONNX Runtime on a GPU, then on the processor.

    Returns:
        The session, and one line that says which backend it is and why no faster one.

    Raises:
        GFTEdgeError: as :func:`gft_edge.runtime.backends.sessions.open_session`; with ``"auto"`` of ONNX Runtime on the processor.
    """
    if backend != AUTO:
        return open_session(artifact, backend, threads, huge_pages), f"{backend}: as asked for"
    names, reasons = _candidates(artifact)
    for name in names:
        try:
            session = open_session(artifact, name, threads, huge_pages)
        except GFTEdgeError as error:
            if name == DEFAULT:
                raise
            reasons.append(f"{name}: {error}")
        else:
            return session, "; ".join([f"{name}: the first that opens here", *reasons])
    raise AssertionError("the default backend is the last candidate")


def _candidates(artifact: Artifact) -> tuple[list[str], list[str]]:
    """Returns the backends to try, the fastest first, and why others are not among them."""
    if not has_nvidia_driver():
        return [DEFAULT], ["no engine and no GPU, for there is no NVIDIA driver"]
    if not any(name.startswith(ENGINES) for name in artifact.manifest.files):
        return [*GRAPHS_ON_GPU, DEFAULT], ["the artefact has no engine; gft-edge build makes one"]
    return [*(backend.name for backend in BACKENDS if backend.runs_engines), *GRAPHS_ON_GPU, DEFAULT], []
