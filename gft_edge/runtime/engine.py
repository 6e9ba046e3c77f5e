"""Runs an engine of an artefact: one code path for ``tensorrt`` and ``tensorrt_rtx``, from 8.6 to 11.

Calls only the name-based interface, which every generation has; a test compares the calls with the real bindings. Not verified
on hardware.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from gft_edge.errors import ArtifactError, ConfigError, DataError
from gft_edge.hardware.environment import has_nvidia_driver
from gft_edge.manifest import Artifact
from gft_edge.runtime.backends import backend_of_module
from gft_edge.runtime.batching import run_in_batches
from gft_edge.runtime.cuda import Cuda, open_cuda
from gft_edge.runtime.sessions import Session, SessionOptions
from gft_edge.runtime.trt_messages import error_logger, explain, require

if TYPE_CHECKING:
    import tensorrt

    from gft_edge.runtime.engine_files import EngineHost


@dataclass(frozen=True)
class EngineTensor:
    """An input or output of an engine, with its memory on the GPU."""

    name: str
    dtype: np.dtype[Any]
    pointer: int


@dataclass(frozen=True)
class Engine:
    """A loaded engine with its memory.

    Attributes:
        batch: smallest and largest number of images that it takes.
        input, outputs: its tensors.
        objects: objects that must outlive the context: logger, runtime and engine.
    """

    context: tensorrt.IExecutionContext
    cuda: Cuda
    batch: tuple[int, int]
    input: EngineTensor
    outputs: tuple[EngineTensor, ...]
    objects: tuple[Any, ...]
    messages: list[str]

    def run(self, names: None, feed: Mapping[str, npt.NDArray[Any]]) -> list[npt.NDArray[Any]]:
        """Returns all outputs; has the signature of ONNX Runtime's sessions. Runs images in batches that the engine takes.

        Raises:
            DataError: the array does not fit the engine.
            ArtifactError: execution failed, with TensorRT's message.
        """
        images = np.ascontiguousarray(feed[self.input.name])
        if images.dtype != self.input.dtype:
            raise DataError(
                f"input {images.shape} {images.dtype} does not fit the engine, which takes {self.input.dtype}"
            )
        return run_in_batches(functools.partial(run_once, self.context, self), images, *self.batch)


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
        ConfigError: no GPU is found.
    """
    from gft_edge.hardware.this_device import device_here
    from gft_edge.runtime.engine_files import EngineHost

    device = device_here().profile
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
    from gft_edge.runtime.engine_files import check_engine

    flavour = "rtx" if host.module == "tensorrt_rtx" else "trt"
    built = [Path(name).stem for name in artifact.manifest.files if name.endswith(".engine")]
    keys = [key] if key else sorted(name for name in built if name.startswith(flavour))
    found, refusals = {}, []
    for each in keys:
        try:
            found[each] = check_engine(artifact, each, host)
        except ArtifactError as error:
            refusals.append(error)
    if len(found) > 1:
        raise ConfigError(
            f"artefact {artifact.path}: {len(found)} engines fit this machine ({', '.join(found)}); name one, "
            f"as --backend {host.module}:{next(iter(found))}"
        )
    if found:
        return next(iter(found.values()))
    if refusals:
        raise refusals[0]
    target = "rtx" if flavour == "rtx" else "this-gpu"
    raise ArtifactError(
        f"artefact {artifact.path}: has no {host.module} engine; build one: gft-edge build {artifact.path} --target {target}"
    )


def open_tensorrt(artifact: Artifact, options: SessionOptions, module: str) -> Session:
    """Opens an engine of an artefact; the opener of the backends that run engines.

    Raises:
        MissingExtraError, ConfigError, ArtifactError: as :func:`open_engine`.
    """
    engine, record = open_engine(artifact, module, options.key)
    outputs = tuple(output.name for output in engine.outputs)
    return Session(module, record, outputs, engine, engine.input.name)


def open_engine(artifact: Artifact, module: str, key: str = "") -> tuple[Engine, dict[str, Any]]:
    """Loads an engine after every check on it; returns it with the options for the record.

    Raises:
        MissingExtraError: ``module``, or a library for GPU memory, is not installed.
        ConfigError: no driver or GPU, or several engines fit.
        ArtifactError: no engine fits, or TensorRT refuses it.
    """
    trt = load_module(module)
    path, record = fitting_engine(artifact, engine_host(trt), key)
    cuda = open_cuda()
    try:
        low, _, high = (int(size) for size in record["batch"])
    except (KeyError, TypeError, ValueError) as error:
        raise ArtifactError(f"engine {path}: its record is malformed ({error!r})") from None
    engine = load_engine(trt, path.read_bytes(), str(path), (low, high), cuda)
    options = {
        "version": trt.__version__,
        "engine": record["key"],
        "engine_sha256": record["engine_sha256"],
        "memory": cuda.name,
        "transfers": "input and outputs are copied in every request",
    }
    return engine, options


def load_engine(trt: ModuleType, blob: bytes, where: str, batch: tuple[int, int], cuda: Cuda | None = None) -> Engine:
    """Deserialises an engine, which executes its code: call :func:`gft_edge.runtime.engine_files.check_engine` before.

    Args:
        trt: TensorRT or TensorRT-RTX.
        blob: the engine.
        where: its origin, for messages.
        batch: smallest and largest number of images that it takes.
        cuda: its memory; by default opened after TensorRT has accepted the engine.

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
        tensors[name] = EngineTensor(name, dtype, cuda.allocate(size))
        context.set_tensor_address(name, tensors[name].pointer)
    outputs = tuple(tensors[name] for name in names if name not in inputs)
    return Engine(context, cuda, batch, tensors[image], outputs, (logger, runtime, engine), messages)


def run_once(context: tensorrt.IExecutionContext, engine: Engine, images: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
    """Returns the outputs of one execution.

    Raises:
        DataError: the engine does not take such a shape.
        ArtifactError: execution failed, with TensorRT's message.
    """
    engine.messages.clear()
    if not context.set_input_shape(engine.input.name, images.shape):
        raise DataError(f"input {images.shape} {images.dtype} does not fit the engine: {explain(engine.messages)}")
    engine.cuda.upload(engine.input.pointer, images)
    if not context.execute_async_v3(engine.cuda.stream):
        raise ArtifactError(f"the engine cannot be run: {explain(engine.messages)}")
    values = [np.empty(tuple(context.get_tensor_shape(output.name)), output.dtype) for output in engine.outputs]
    for value, output in zip(values, engine.outputs):
        engine.cuda.download(value, output.pointer)
    engine.cuda.synchronize()
    return values
