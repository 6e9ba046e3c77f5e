"""Turns a path into an artefact or a foreign model, the one place that tells them apart; and opens a foreign model on a backend."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gft_edge.bundle import is_bundle, open_artifact
from gft_edge.errors import ArtifactError, ConfigError
from gft_edge.export.foreign.model import RECORD, ForeignModel, is_foreign, load_foreign
from gft_edge.manifest import MANIFEST, MODEL, QUANTIZED, Artifact, Batch, HighPrecision, Precision, TensorInfo
from gft_edge.runtime.backends.engine import engine_host, engine_session, load_module, only_engine, open_checked
from gft_edge.runtime.backends.engine_files import check_engine_beside, keys_beside
from gft_edge.runtime.backends.providers import PROVIDERS, open_graph
from gft_edge.runtime.backends.sessions import ONNXRUNTIME, Session, onnxruntime_session
from gft_edge.runtime.backends.table import CUDA_GRAPH, DEFAULT, BackendRequest, parse_backend, require_settings

if TYPE_CHECKING:  # artefacts are opened where onnx is not installed
    from gft_edge.export.graph.view import GraphView

Model = Artifact | ForeignModel
ANY_BATCH: Batch = (1, 1, 8)
"""Smallest, usual and largest batch of a graph that takes any, where the user names none."""


def open_model(path: str | Path) -> Model:
    """Opens an artefact, a bundle, an ONNX file of another program, or the folder that ``quantize`` wrote for one.

    Raises:
        ArtifactError: none of these, damaged, or changed.
    """
    if is_foreign(path):
        return load_foreign(path)
    folder = Path(path)
    if (folder / MODEL).is_file() and not (folder / MANIFEST).exists() and not is_bundle(folder):
        raise ArtifactError(
            f"{folder}: has {MODEL}, but neither the {MANIFEST} of an artefact nor the {RECORD} of quantize; give the file "
            f"{folder / MODEL} itself"
        )
    return open_artifact(path)


@dataclass(frozen=True)
class ForeignFacts:
    """The properties of a foreign graph that sessions and results depend on.

    Attributes:
        precision, rest: as in a manifest, read from the graph.
        batch: smallest, usual and largest number of images of a request.
        inputs: its only input.
    """

    precision: Precision
    rest: HighPrecision
    batch: Batch
    inputs: tuple[TensorInfo, ...]

    @property
    def is_quantized(self) -> bool:
        """True if linear layers have 8-bit weights."""
        return self.precision in QUANTIZED


def viewed(model: ForeignModel) -> GraphView:
    """Returns the graph with its inferred types and shapes.

    Raises:
        ArtifactError: not a valid graph.
    """
    from gft_edge.export.graph.loading import load_graph
    from gft_edge.export.graph.view import view

    try:
        return view(load_graph(model.file))
    except ArtifactError as error:
        text = str(error)
        raise ArtifactError(text if str(model.file) in text else f"graph {model.file}: {text}") from None


def facts_of(model: ForeignModel, batch: Batch = ANY_BATCH) -> ForeignFacts:
    """Returns the facts of a foreign model.

    Args:
        model: with its graph.
        batch: of requests, where the graph takes any.

    Raises:
        ArtifactError: not a valid graph.
    """
    from gft_edge.export.graph.summary import arithmetic

    computed = arithmetic(viewed(model))
    precision: Precision = computed.precision  # type: ignore[assignment]
    if model.quantization is not None:
        precision = model.quantization.precision  # type: ignore[assignment]
    rest: HighPrecision = computed.rest  # type: ignore[assignment]
    shape = ("batch" if model.batch is None else model.batch, *(int(size or 0) for size in model.input_shape[1:]))
    sizes = batch if model.batch is None else (model.batch,) * 3
    return ForeignFacts(precision, rest, sizes, (TensorInfo(model.input_name, "float32", shape, "images"),))


def open_foreign(
    model: ForeignModel,
    facts: ForeignFacts,
    backend: str = DEFAULT,
    threads: int = 0,
    *,
    huge_pages: bool = False,
    optimized: bool = True,
) -> Session:
    """Opens a foreign model on a backend; the session takes preprocessed images (B, 3, H, W).

    Args:
        model: to open.
        facts: of it.
        backend: as for :func:`gft_edge.runtime.backends.sessions.open_session`; an engine stands beside the file.
        threads, huge_pages, optimized: of ONNX Runtime on the processor, see
            :func:`gft_edge.runtime.backends.sessions.onnxruntime_session`.

    Raises:
        ConfigError: unknown backend or setting, one that runs checkpoints, or no GPU.
        ArtifactError: the backend refuses the file, or no engine beside it fits this machine.
        MissingExtraError: the backend is not installed.
    """
    asked = parse_backend(backend)
    providers = {provider.backend: provider for provider in PROVIDERS}
    if asked.backend.name == ONNXRUNTIME:
        require_settings(ONNXRUNTIME, asked.settings, ())
        session = onnxruntime_session(
            model.file, facts.is_quantized, threads, huge_pages=huge_pages, optimized=optimized
        )
    elif asked.backend.name in providers:
        provider = providers[asked.backend.name]
        session = open_graph(provider, model.file, facts, asked.settings, asked.backend.module)
    elif asked.backend.runs_engines and asked.backend.name == asked.backend.module:  # not PyTorch programs
        session = _open_engine(model, asked)
    else:
        raise ConfigError(
            f"backend {asked.backend.name}: runs {asked.backend.needs.removeprefix('an NVIDIA GPU, ')}, and {model.path} is an "
            "ONNX file of another program; take --backend onnxruntime, one of its providers, or tensorrt"
        )
    return dataclasses.replace(session, backend=backend, batch=model.batch, convert=model.to_input)


def _open_engine(model: ForeignModel, asked: BackendRequest) -> Session:
    module = asked.backend.module
    require_settings(module, asked.settings, (CUDA_GRAPH,))
    trt = load_module(module)
    host = engine_host(trt)
    keys = [asked.key] if asked.key else keys_beside(model.file, module)
    found = only_engine(
        str(model.file), module, keys, lambda key: check_engine_beside(model.file, model.sha256, key, host)
    )
    if found is None:
        target = "rtx" if module == "tensorrt_rtx" else "this-gpu"
        raise ArtifactError(
            f"{model.file}: no {module} engine stands beside it; build one: gft-edge build {model.path} --target {target}"
        )
    engine, record = open_checked(trt, *found, asked.switch(CUDA_GRAPH))
    return engine_session(module, engine, record)
