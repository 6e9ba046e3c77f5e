"""Runs an engine of an artefact: one code path for ``tensorrt`` and ``tensorrt_rtx``, from 8.6 to 11.

Calls only the name-based interface, which every generation has; a test compares the calls with the real bindings. Memory of
input and outputs, on the GPU and pinned on the host, is allocated once for the largest batch. Thread-safe: requests on one engine
wait for each other. Not verified on hardware.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from gft_edge.errors import ArtifactError, ConfigError, DataError
from gft_edge.hardware.environment import has_nvidia_driver
from gft_edge.hardware.tensorrt_versions import require_rtx_capability
from gft_edge.manifest import Artifact
from gft_edge.runtime.backends.batching import run_in_batches
from gft_edge.runtime.backends.cuda import Cuda, open_cuda
from gft_edge.runtime.backends.sessions import Session, SessionOptions
from gft_edge.runtime.backends.table import CUDA_GRAPH, backend_of_module, require_settings, switch
from gft_edge.runtime.backends.trt_messages import error_logger, explain, require

if TYPE_CHECKING:
    import tensorrt

    from gft_edge.runtime.backends.engine_files import EngineHost


@dataclass(frozen=True)
class EngineTensor:
    """An input or output of an engine, with its memory on the GPU and pinned bytes of the host."""

    name: str
    dtype: np.dtype[Any]
    pointer: int
    host: npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Engine:
    """A loaded engine with its memory.

    Attributes:
        batch: smallest and largest number of images that it takes.
        input, outputs: its tensors.
        objects: objects that must outlive the context: logger, runtime and engine.
        messages: errors of TensorRT.
        cuda_graph: requests replay a CUDA graph, which is captured again when the shape of the input changes.
        graph: the shape it was captured for, and what replays it; empty before the first request.
    """

    context: tensorrt.IExecutionContext
    cuda: Cuda
    batch: tuple[int, int]
    input: EngineTensor
    outputs: tuple[EngineTensor, ...]
    objects: tuple[Any, ...]
    messages: list[str]
    cuda_graph: bool = False
    graph: dict[tuple[int, ...], Callable[[], None]] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def run(self, names: None, feed: Mapping[str, npt.NDArray[Any]]) -> list[npt.NDArray[Any]]:
        """Returns all outputs; has the signature of ONNX Runtime's sessions. Runs images in batches that the engine takes.

        Raises:
            DataError: the array does not fit the engine.
            ArtifactError: execution failed, with TensorRT's message.
        """
        images = self._fitting(feed)
        with self.lock:
            return run_in_batches(functools.partial(run_once, self.context, self), images, *self.batch)

    def times(self, feed: Mapping[str, npt.NDArray[Any]]) -> dict[str, float]:
        """Returns the milliseconds of one execution, by the GPU's clock, for a batch that the engine takes at once.

        Returns:
            ``host_to_device``, ``compute`` and ``device_to_host``. Copies into and out of the pinned memory are in none of them.
        """
        images, marks = self._fitting(feed), []
        with self.lock:
            run_once(self.context, self, images, lambda: marks.append(self.cuda.mark()))
            names = ("host_to_device", "compute", "device_to_host")
            return {name: self.cuda.elapsed_ms(marks[i], marks[i + 1]) for i, name in enumerate(names)}

    def _fitting(self, feed: Mapping[str, npt.NDArray[Any]]) -> npt.NDArray[Any]:
        images: npt.NDArray[Any] = np.ascontiguousarray(feed[self.input.name])
        if images.dtype != self.input.dtype:
            raise DataError(
                f"input {images.shape} {images.dtype} does not fit the engine, which takes {self.input.dtype}"
            )
        return images


def load_module(name: str) -> ModuleType:
    """Imports TensorRT or TensorRT-RTX to run engines.

    Raises:
        MissingExtraError: it is not installed, or its libraries are not.
        ConfigError: there is no driver.
    """
    module = backend_of_module(name).import_module()
    if not has_nvidia_driver():
        raise ConfigError(
            f"backend {name}: engines run on an NVIDIA GPU, and there is no NVIDIA driver here; run it on the device, or "
            "with --backend onnxruntime"
        )
    return module


def engine_host(trt: ModuleType) -> EngineHost:
    """Returns the software and hardware that would load an engine here.

    Raises:
        ConfigError: no GPU is found, or one that TensorRT-RTX does not support.
    """
    from gft_edge.hardware.this_device import device_here
    from gft_edge.runtime.backends.engine_files import EngineHost

    device = device_here().profile
    if trt.__name__ == "tensorrt_rtx":
        require_rtx_capability(device.compute_capability, f"backend tensorrt_rtx on {device.title}")
    name = None if trt.__name__ == "tensorrt_rtx" else device.name
    return EngineHost(trt.__name__, trt.__version__, device.compute_capability, name)


def fitting_engine(artifact: Artifact, host: EngineHost, key: str = "") -> tuple[Path, dict[str, Any]]:
    """Returns the named engine of the artefact, or the only one that fits.

    Args:
        artifact: with engines in its manifest.
        host: the software and hardware that will load it.
        key: of the engine, empty for any.

    Returns:
        path of the engine, and its record.

    Raises:
        ArtifactError: none fits, with the reason and the command that builds one.
        ConfigError: several fit.
    """
    from gft_edge.runtime.backends.engine_files import FLAVOURS, build_command, check_engine

    flavour = FLAVOURS[host.module]
    built = [Path(name).stem for name in artifact.manifest.files if name.endswith(".engine")]
    keys = [key] if key else sorted(name for name in built if name.startswith(flavour))
    found = only_engine(f"artefact {artifact.path}", host.module, keys, lambda each: check_engine(artifact, each, host))
    if found is not None:
        return found
    anywhere = replace(host, device=None)
    raise ArtifactError(
        f"artefact {artifact.path}: has no {host.module} engine; build one: {build_command(artifact, anywhere)}"
    )


def only_engine(
    where: str, module: str, keys: Sequence[str], check: Callable[[str], tuple[Path, dict[str, Any]]]
) -> tuple[Path, dict[str, Any]] | None:
    """Returns the only engine that passes a check, with its record; None where there are no keys.

    Args:
        where: model of the engines, for messages.
        module: that would load it.
        keys: of the engines.
        check: of one; raises ArtifactError.

    Raises:
        ArtifactError: none passes, with the reason of the first.
        ConfigError: several pass.
    """
    found, refusals = {}, []
    for key in keys:
        try:
            found[key] = check(key)
        except ArtifactError as error:
            refusals.append(error)
    if len(found) > 1:
        raise ConfigError(
            f"{where}: {len(found)} engines fit this machine ({', '.join(found)}); name one, "
            f"as --backend {backend_of_module(module).name}:{next(iter(found))}"
        )
    if not found and refusals:
        raise refusals[0]
    return next(iter(found.values()), None)


def open_tensorrt(artifact: Artifact, options: SessionOptions, module: str) -> Session:
    """Opens an engine of an artefact; the opener of the backends that run engines.

    Raises:
        MissingExtraError, ConfigError, ArtifactError: as :func:`open_engine`.
    """
    require_settings(module, options.settings, (CUDA_GRAPH,))
    engine, record = open_engine(artifact, module, options.key, switch(options.settings, CUDA_GRAPH))
    return engine_session(module, engine, record)


def engine_session(module: str, engine: Engine, record: Mapping[str, Any]) -> Session:
    """Returns a session of an engine that is loaded."""
    outputs = tuple(output.name for output in engine.outputs)
    return Session(module, record, outputs, engine, engine.input.name)


def record_batch(record: Mapping[str, Any], where: str) -> tuple[int, int]:
    """Returns the smallest and the largest batch of an engine's record.

    Raises:
        ArtifactError: the record is malformed.
    """
    try:
        low, _, high = (int(size) for size in record["batch"])
    except (KeyError, TypeError, ValueError) as error:
        raise ArtifactError(f"engine {where}: its record is malformed ({error!r})") from None
    return low, high


def open_engine(
    artifact: Artifact, module: str, key: str = "", cuda_graph: bool = False
) -> tuple[Engine, dict[str, Any]]:
    """Loads an engine after every check on it; returns it with the options for the record.

    Raises:
        MissingExtraError: ``module``, or a library for GPU memory, is not installed.
        ConfigError: no driver or GPU, or several engines fit.
        ArtifactError: no engine fits, or TensorRT refuses it.
    """
    trt = load_module(module)
    path, record = fitting_engine(artifact, engine_host(trt), key)
    return open_checked(trt, path, record, cuda_graph)


def open_checked(
    trt: ModuleType, path: Path, record: Mapping[str, Any], cuda_graph: bool = False
) -> tuple[Engine, dict[str, Any]]:
    """Loads an engine that has passed every check; returns it with the options for the record.

    Raises:
        ConfigError, ArtifactError: as :func:`open_engine`.
    """
    cuda = open_cuda()
    engine = load_engine(trt, path.read_bytes(), str(path), record_batch(record, str(path)), cuda, cuda_graph)
    options = {
        "version": trt.__version__,
        "engine": record["key"],
        "engine_sha256": record["engine_sha256"],
        "memory": cuda.name,
        "cuda_graph": cuda_graph,
        "transfers": "input and outputs are copied through pinned memory in every request",
    }
    return engine, options


def load_engine(
    trt: ModuleType,
    blob: bytes,
    where: str,
    batch: tuple[int, int],
    cuda: Cuda | None = None,
    cuda_graph: bool = False,
) -> Engine:
    """Deserialises an engine, which executes its code: call :func:`gft_edge.runtime.backends.engine_files.check_engine` before.

    Args:
        trt: TensorRT or TensorRT-RTX.
        blob: the engine.
        where: its origin, for messages.
        batch: smallest and largest number of images that it takes.
        cuda: its memory; by default opened after TensorRT has accepted the engine.
        cuda_graph: requests replay a CUDA graph.

    Raises:
        ArtifactError: TensorRT refuses it, with TensorRT's message.
    """
    messages: list[str] = []
    logger = error_logger(trt, messages)
    runtime = trt.Runtime(logger)
    engine: tensorrt.ICudaEngine = runtime.deserialize_cuda_engine(blob)
    require(engine, f"engine {where}: {trt.__name__} {trt.__version__} cannot load it", messages)
    context: tensorrt.IExecutionContext = engine.create_execution_context()
    require(context, f"engine {where}: {trt.__name__} {trt.__version__} made no execution context", messages)
    cuda = cuda or open_cuda()
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    inputs = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
    (image,) = inputs
    largest = (batch[1], *tuple(engine.get_tensor_shape(image))[1:])
    if not context.set_input_shape(image, largest):
        raise ArtifactError(f"engine {where}: refuses {largest}, the largest input of its record: {explain(messages)}")
    tensors = {}
    for name in names:
        dtype = np.dtype(trt.nptype(engine.get_tensor_dtype(name)))
        size = int(np.prod(tuple(context.get_tensor_shape(name)))) * dtype.itemsize
        tensors[name] = EngineTensor(name, dtype, cuda.allocate(size), cuda.pinned(size))
        context.set_tensor_address(name, tensors[name].pointer)
    outputs = tuple(tensors[name] for name in names if name not in inputs)
    return Engine(context, cuda, batch, tensors[image], outputs, (logger, runtime, engine), messages, cuda_graph)


def run_once(
    context: tensorrt.IExecutionContext,
    engine: Engine,
    images: npt.NDArray[Any],
    mark: Callable[[], None] = lambda: None,
) -> list[npt.NDArray[Any]]:
    """Returns the outputs of one execution.

    Args:
        context: of the engine.
        engine: with its memory.
        images: contiguous, of the engine's type.
        mark: called in the stream before and after each of upload, execution and download.

    Raises:
        DataError: the engine does not take such a shape.
        ConfigError: the execution cannot be captured as a CUDA graph.
        ArtifactError: execution failed, with TensorRT's message.
    """
    engine.messages.clear()
    if not context.set_input_shape(engine.input.name, images.shape):
        raise DataError(f"input {images.shape} {images.dtype} does not fit the engine: {explain(engine.messages)}")
    image = engine.input.host[: images.nbytes]
    image[:] = images.reshape(-1).view(np.uint8)
    launch = functools.partial(enqueue, context, engine)
    replay = _graph(engine, images.shape, launch) if engine.cuda_graph else launch
    mark()
    engine.cuda.upload(engine.input.pointer, image)
    mark()
    replay()
    mark()
    values = []
    for output in engine.outputs:
        shape = tuple(context.get_tensor_shape(output.name))
        size = int(np.prod(shape)) * output.dtype.itemsize
        engine.cuda.download(output.host[:size], output.pointer)
        values.append(output.host[:size].view(output.dtype).reshape(shape))
    mark()
    engine.cuda.synchronize()
    return [value.copy() for value in values]  # the next request overwrites the pinned memory


def enqueue(context: tensorrt.IExecutionContext, engine: Engine) -> None:
    """Puts one execution into the stream.

    Raises:
        ArtifactError: TensorRT refuses, with its message.
    """
    if not context.execute_async_v3(engine.cuda.stream):
        raise ArtifactError(f"the engine cannot be run: {explain(engine.messages)}")


def _graph(engine: Engine, shape: tuple[int, ...], launch: Callable[[], None]) -> Callable[[], None]:
    """Returns what replays the graph of a shape; only the last shape's is kept, since TensorRT prepares one at a time."""
    if shape not in engine.graph:
        engine.graph.clear()
        launch()  # allocates and chooses kernels, which must not happen in a capture
        engine.cuda.synchronize()
        try:
            engine.graph[shape] = engine.cuda.capture(launch)
        except (ArtifactError, ConfigError) as error:
            raise ConfigError(
                f"the engine cannot be captured as a CUDA graph ({error}); leave cuda_graph out of --backend"
            ) from None
    return engine.graph[shape]
