"""Sessions: one call from images to named outputs, on any backend; and the opener of ONNX Runtime."""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from gft_edge.errors import ArtifactError, ConfigError, DataError
from gft_edge.manifest import MODEL, Artifact, DeploymentManifest
from gft_edge.runtime.backends import huge_pages as pages
from gft_edge.runtime.backends import integer_products
from gft_edge.runtime.backends.batching import run_in_batches
from gft_edge.runtime.backends.graph_io import to_graph_input, with_logits
from gft_edge.runtime.backends.table import DEFAULT, find_backend, parse_backend, require_settings

ONNXRUNTIME = "onnxruntime"
DISABLED_FOR_INT8 = ("MatMulAddFusion", "BiasGeluFusion")
"""Optimizers of ONNX Runtime that keep INT8 products from being found, or from adding their bias (see
:mod:`gft_edge.runtime.backends.integer_products`)."""


@dataclass(frozen=True)
class SessionOptions:
    """Options of :func:`open_session`; a backend ignores those that it does not have.

    Attributes:
        key: of the engine to run, empty for the only one that fits; or the checkpoint that a backend of PyTorch runs.
        threads: of a CPU backend; 0 takes one per core.
        huge_pages, shared: see :func:`onnxruntime_session`.
        as_described: refuse a graph whose inputs and outputs differ from the manifest's.
        settings: of the backend, by name.
    """

    key: str = ""
    threads: int = 0
    huge_pages: bool = False
    as_described: bool = True
    settings: Mapping[str, str] = field(default_factory=dict)
    shared: bool = False


@dataclass(frozen=True)
class Session:
    """A loaded model: ``session(images)`` gives its outputs by name.

    Attributes:
        backend: as requested, with the key of an engine where one is named.
        options: every setting, for the record.
        outputs: names, in order.
        batch: number of images that a graph with a static batch axis takes; else None.
        convert: turns normalised images, or pixels, into the graph's input, for a graph that normalises; else None.
    """

    backend: str
    options: Mapping[str, Any]
    outputs: tuple[str, ...]
    _session: Any
    _input: str
    batch: int | None = None
    convert: Callable[[npt.NDArray[Any]], npt.NDArray[Any]] | None = None

    def __call__(self, images: npt.NDArray[Any]) -> dict[str, npt.NDArray[Any]]:
        """Preprocessed images to outputs by name.

        Args:
            images: (B, 3, H, W) float32 normalised; or RGB pixels (B, H, W, 3) uint8 for a graph that normalises, which
                takes both.

        Returns:
            The graph's outputs; ``logits`` beside them for a graph that gives probabilities
            (:func:`gft_edge.runtime.backends.graph_io.with_logits`).

        Raises:
            DataError: the array does not fit the graph.
            ArtifactError: the graph contradicts itself.
        """
        return self.compute(images if self.convert is None else self.convert(images))

    def compute(self, inputs: npt.NDArray[Any]) -> dict[str, npt.NDArray[Any]]:
        """As a call, for what the graph itself takes: shape and type are those of the manifest's input.

        A graph with a static batch runs once for each batch; the last one is padded.
        """
        size = self.batch
        values = self._run(inputs) if size is None else run_in_batches(self._run, inputs, size, size)
        return with_logits(dict(zip(self.outputs, values)))

    def times(self, images: npt.NDArray[Any]) -> dict[str, float] | None:
        """Returns the milliseconds of copies to and from the GPU and of the computation between; None on other backends.

        Args:
            images: as for :meth:`compute`, at most one batch.
        """
        tell = getattr(self._session, "times", None)
        if tell is None:
            return None
        found: dict[str, float] = tell({self._input: images})
        return found

    def feed(self, inputs: Mapping[str, npt.NDArray[Any]]) -> list[npt.NDArray[Any]]:
        """Returns the outputs in order, for a graph of several inputs; the first of them is the images."""
        try:
            return list(self._session.run(None, dict(inputs)))
        except Exception as error:  # ONNX Runtime's own classes have no public names
            if type(error).__name__ == "InvalidArgument":
                images = next(iter(inputs.values()))
                raise DataError(f"input {images.shape} {images.dtype} does not fit the graph: {error}") from None
            if type(error).__module__.startswith("onnxruntime"):
                raise ArtifactError(f"the graph cannot be run: {error}") from None
            raise

    def _run(self, images: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
        return self.feed({self._input: images})


def onnxruntime_session(
    model: Path | bytes,
    quantized: bool,
    threads: int = 0,
    huge_pages: bool = False,
    shared: bool = False,
    optimized: bool = True,
    weights: Path | None = None,
) -> Session:
    """Loads an ONNX model into ONNX Runtime on the CPU.

    Args:
        model: file, or the serialized model.
        quantized: the graph has INT8 linears as QuantizeLinear and DequantizeLinear. ONNX Runtime's MatMulAddFusion is
            then switched off: it would turn MatMul and Add into a float Gemm and leave no INT8 product, which makes the
            INT8 model slower than the FP32 one. So is its BiasGelu, which takes longer than Add and Gelu.
        threads: intra-op threads; 0 takes one per core.
        huge_pages: hold a large model in huge pages where the kernel gives them on request. This runs the model once and
            moves its memory, which takes up to three seconds per gigabyte: for long-lived sessions. For these the INT8
            products of a quantized graph also add their bias themselves, on x86, to the same results but for
            the last bits (:mod:`gft_edge.runtime.backends.integer_products`), which takes three seconds per gigabyte too.
        shared: take little memory beside other sessions of this kind. Weights in a file of their own are read from that file,
            whose pages all share, in place of a copy in the order that the processor reads; working memory is one arena for
            all. A prediction takes longer.
        optimized: False runs every node as the graph has it.
        weights: folder of the files of weights that a serialized model reads.

    Raises:
        ArtifactError: ONNX Runtime does not accept the file.
        ConfigError: a negative number of threads.
        MissingExtraError: onnxruntime is not installed.
    """
    if threads < 0:
        raise ConfigError(f"threads must be 0 (one per core) or more, found {threads}")
    ort = find_backend(ONNXRUNTIME)[0].import_module()
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    if not optimized:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    if shared:
        _register_arena(ort)
        options.add_session_config_entry("session.disable_prepacking", "1")
        options.add_session_config_entry("session.use_env_allocators", "1")
    if weights is not None:
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(weights))
    disabled = list(DISABLED_FOR_INT8) if quantized else []
    fused = integer_products.rewritten(model) if quantized and huge_pages and optimized and not shared else None
    source = fused or (str(model) if isinstance(model, Path) else model)
    before = None
    if huge_pages and pages.on_request():
        gc.collect()  # memory freed while the model loads would be taken for it, and would then count as old
        before = pages.anonymous_regions()
    try:
        session = ort.InferenceSession(
            source, options, providers=["CPUExecutionProvider"], disabled_optimizers=disabled or None
        )
    except Exception as error:  # ONNX Runtime raises a dozen classes that share no public base
        where = model if isinstance(model, Path) else "model"
        raise ArtifactError(f"{where}: ONNX Runtime cannot load it ({error})") from None
    record = {
        "version": ort.__version__,
        "provider": "CPUExecutionProvider",
        "intra_op_num_threads": threads,
        "inter_op_num_threads": 1,
        "disabled_optimizers": disabled,
        "fused_biases": fused is not None,
        "shared": shared,
        "huge_pages_bytes": 0 if before is None else _hold_in_huge_pages(session, before),
    }
    outputs = tuple(output.name for output in session.get_outputs())
    return Session(ONNXRUNTIME, record, outputs, session, session.get_inputs()[0].name)


@functools.cache
def _register_arena(ort: ModuleType) -> None:
    """Gives the process one arena for sessions that ask for it; ONNX Runtime takes it once."""
    place = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    as_needed = ort.OrtArenaCfg({"arena_extend_strategy": 1})  # in place of powers of two
    ort.create_and_register_allocator(place, as_needed)


def _hold_in_huge_pages(session: Any, before: list[pages.Region]) -> int:
    """Requests huge pages for the memory that a session allocated; returns the bytes that the kernel agreed to."""
    if pages.size(pages.added(before, pages.anonymous_regions())) < pages.WORTHWHILE:
        return 0
    zeros = {
        feed.name: np.zeros(
            [axis if isinstance(axis, int) else 1 for axis in feed.shape],
            np.uint8 if feed.type == "tensor(uint8)" else np.float32,
        )
        for feed in session.get_inputs()
    }
    session.run(None, zeros)  # the memory of activations is allocated now
    return pages.request(pages.added(before, pages.anonymous_regions()))


def open_session(
    artifact: Artifact,
    backend: str = DEFAULT,
    threads: int = 0,
    huge_pages: bool = False,
    as_described: bool = True,
) -> Session:
    """Opens an artefact's model, or an engine of it, after every check on the file.

    Args:
        artifact: with the file in its manifest.
        backend: a name of :data:`gft_edge.runtime.backends.table.BACKENDS`; ``"tensorrt:KEY"`` names one of several engines, and
            settings follow, as ``"tensorrt,cuda_graph=on"``.
        threads, huge_pages, as_described: see :class:`SessionOptions`.

    Raises:
        ConfigError: unknown backend or setting, or an engine without a GPU.
        ArtifactError: missing or changed file, or an engine that does not fit this machine.
        MissingExtraError: the backend is not installed.
    """
    asked = parse_backend(backend)
    options = SessionOptions(asked.key, threads, huge_pages, as_described, asked.settings)
    session: Session = asked.backend.open(artifact, options)
    return fitted(replace(session, backend=backend), artifact.manifest)


def open_onnxruntime(artifact: Artifact, options: SessionOptions, module: str = ONNXRUNTIME) -> Session:
    """Opens the model of an artefact in ONNX Runtime; the opener of that backend.

    Raises:
        ConfigError: the model computes in BF16, a negative number of threads, or a setting, of which it has none.
        ArtifactError: missing, changed or contradictory file.
        MissingExtraError: onnxruntime is not installed.
    """
    require_settings(ONNXRUNTIME, options.settings, ())
    manifest = artifact.manifest
    try:
        model = artifact.file(MODEL)
        session = onnxruntime_session(model, manifest.is_quantized, options.threads, options.huge_pages, options.shared)
        if options.as_described:
            require_interface(session, artifact)
    except ArtifactError:
        if manifest.rest != "bf16":
            raise
        raise ConfigError(
            f"artefact {artifact.path}: ONNX Runtime computes no BF16 on a CPU; run it with --backend tensorrt on a GPU, or "
            "export with --precision fp16"
        ) from None
    return session


def require_interface(session: Session, artifact: Artifact) -> None:
    """Refuses a graph whose inputs or outputs differ from those of the manifest.

    Raises:
        ArtifactError: naming the first difference.
    """
    tables = (
        ("inputs", artifact.manifest.inputs, session._session.get_inputs()),
        ("outputs", artifact.manifest.outputs, session._session.get_outputs()),
    )
    for kind, described, opened in tables:
        wanted = [
            (t.name, t.dtype, *(axis if isinstance(axis, int) else "batch" for axis in t.shape)) for t in described
        ]
        found = [
            (t.name, DTYPES.get(t.type, t.type), *(axis if isinstance(axis, int) else "batch" for axis in t.shape))
            for t in opened
        ]
        if wanted != found:
            raise ArtifactError(
                f"artefact {artifact.path}: {kind} of the graph differ from its manifest: found {found}, expected {wanted}; "
                "export it again"
            )


DTYPES = {"tensor(float)": "float32", "tensor(uint8)": "uint8", "tensor(int32)": "int32"}
"""ONNX Runtime's name of each type in our graphs, and the manifest's name."""


def fitted(session: Session, manifest: DeploymentManifest) -> Session:
    """Wraps a session so that it accepts normalised float images and any batch size."""
    convert = None if manifest.input_kind == "float" else functools.partial(to_graph_input, manifest=manifest)
    return replace(session, batch=manifest.static_batch, convert=convert)
