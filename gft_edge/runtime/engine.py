"""Runs an engine of an artefact: one path for ``tensorrt`` and ``tensorrt_rtx``, from 8.6 to 11.

Calls of the name-based interface alone, which every generation has; a test holds them against the real bindings. Not verified on
hardware.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from gft_edge.errors import ArtifactError, ConfigError, DataError
from gft_edge.hardware.environment import has_nvidia_driver, missing_extra
from gft_edge.manifest import Artifact
from gft_edge.runtime.cuda import Cuda, open_cuda
from gft_edge.runtime.trt_messages import error_logger, explain, require

if TYPE_CHECKING:
    import tensorrt

    from gft_edge.runtime.engine_files import EngineHost

EXTRAS = {"tensorrt": "trt", "tensorrt_rtx": "rtx"}
"""Module that runs engines, and the extra of gft-edge that brings it."""


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
        batch: smallest and largest number of images it takes.
        input, outputs: its tensors.
        objects: that must outlive the context: logger, runtime and engine.
    """

    context: tensorrt.IExecutionContext
    cuda: Cuda
    batch: tuple[int, int]
    input: EngineTensor
    outputs: tuple[EngineTensor, ...]
    objects: tuple[Any, ...]
    messages: list[str]

    def run(self, names: None, feed: Mapping[str, npt.NDArray[Any]]) -> list[npt.NDArray[Any]]:
        """All outputs, called as ONNX Runtime's sessions are; more images than it takes are run in parts.

        Raises:
            DataError: the array does not fit the engine.
            ArtifactError: execution failed, with what TensorRT said.
        """
        images = np.ascontiguousarray(feed[self.input.name])
        if images.dtype != self.input.dtype:
            raise DataError(
                f"input {images.shape} {images.dtype} does not fit the engine, which takes {self.input.dtype}"
            )
        low, high = self.batch
        parts = []
        for start in range(0, len(images), high):
            part = images[start : start + high]
            missing = max(low - len(part), 0)
            padded = np.concatenate([part, np.repeat(part[-1:], missing, axis=0)]) if missing else part
            parts.append([value[: len(part)] for value in run_once(self.context, self, padded)])
        return [np.concatenate(values) for values in zip(*parts)]


def load_module(name: str) -> ModuleType:
    """Imports what runs engines.

    Raises:
        MissingExtraError: it is not installed, or its libraries are not.
        ConfigError: there is no driver.
    """
    try:
        module = importlib.import_module(name)
    except (ImportError, OSError):
        raise missing_extra(name, EXTRAS[name]) from None
    if not has_nvidia_driver():
        raise ConfigError(
            f"backend {name}: engines run on an NVIDIA GPU, and there is no NVIDIA driver here; run it on the device, or "
            "with --backend onnxruntime"
        )
    return module


def engine_host(trt: ModuleType) -> EngineHost:
    """What an engine would be loaded by here.

    Raises:
        ConfigError: no GPU is found.
    """
    from gft_edge.hardware.this_device import device_here
    from gft_edge.runtime.engine_files import EngineHost

    device = device_here().profile
    name = None if trt.__name__ == "tensorrt_rtx" else device.name
    return EngineHost(trt.__name__, trt.__version__, device.compute_capability, name)


def fitting_engine(artifact: Artifact, host: EngineHost, key: str = "") -> tuple[Path, dict[str, Any]]:
    """The artefact's own engine that fits: the one named, else the only one.

    Args:
        artifact: with engines in its manifest.
        host: what will load it.
        key: of the engine, empty for any.

    Returns:
        path of the engine, and its record.

    Raises:
        ArtifactError: none fits, with the reason and the command that builds one.
        ConfigError: several fit.
    """
    from gft_edge.runtime.engine_files import check_engine

    flavour = "rtx" if host.module == "tensorrt_rtx" else "trt"
    there = [Path(name).stem for name in artifact.manifest.files if name.endswith(".engine")]
    keys = [key] if key else sorted(name for name in there if name.startswith(flavour))
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


def open_engine(artifact: Artifact, module: str, key: str = "") -> tuple[Engine, dict[str, Any]]:
    """Loads an engine after every check on it; returns it with the options for the record.

    Raises:
        MissingExtraError: ``module``, or what allocates memory, is not installed.
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
    """Deserialises an engine, which executes code of it: only after :func:`gft_edge.runtime.engine_files.check_engine`.

    Args:
        trt: TensorRT or TensorRT-RTX.
        blob: the engine.
        where: it comes from, for messages.
        batch: smallest and largest number of images it takes.
        cuda: its memory; by default opened after the engine was accepted.

    Raises:
        ArtifactError: TensorRT refuses it, with what it said.
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
    """Outputs of one execution.

    Raises:
        DataError: the engine does not take such a shape.
        ArtifactError: execution failed, with what TensorRT said.
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
