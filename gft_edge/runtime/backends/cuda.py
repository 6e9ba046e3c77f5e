"""Memory, a stream, graphs and times of an NVIDIA GPU, as raw pointers for TensorRT.

Uses cuda-python, NVIDIA's bindings: a few megabytes from PyPI, for x86-64 and for a Jetson; else PyTorch. A board that only runs
engines needs no PyTorch. Not verified on hardware.
"""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from gft_edge.errors import ConfigError
from gft_edge.hardware.environment import missing_extra

RUNTIMES = ("cuda.bindings.runtime", "cuda.cudart")
"""Module of cuda-python from 12.8, and before."""


class CudaPython:
    """GPU memory and a stream from cuda-python.

    Args:
        runtime: one of ``RUNTIMES``.

    Raises:
        ConfigError: no GPU, or a call fails; with CUDA's name of the error.
    """

    name = "cuda-python"

    def __init__(self, runtime: ModuleType) -> None:
        self.runtime = runtime
        self.stream = int(self._call("cudaStreamCreate"))

    def allocate(self, size: int) -> int:
        """Allocates bytes that stay until the process ends; returns their pointer."""
        return int(self._call("cudaMalloc", max(size, 1)))

    def pinned(self, size: int) -> npt.NDArray[np.uint8]:
        """Allocates bytes of the host that copies read directly; they stay until the process ends."""
        pointer = int(self._call("cudaMallocHost", max(size, 1)))
        return np.ctypeslib.as_array((ctypes.c_uint8 * max(size, 1)).from_address(pointer))

    def upload(self, pointer: int, array: npt.NDArray[Any]) -> None:
        """Copies a contiguous array to the GPU, in the stream."""
        self._copy(pointer, array.ctypes.data, array.nbytes, "cudaMemcpyHostToDevice")

    def download(self, array: npt.NDArray[Any], pointer: int) -> None:
        """Copies from the GPU into a contiguous array, in the stream."""
        self._copy(array.ctypes.data, pointer, array.nbytes, "cudaMemcpyDeviceToHost")

    def synchronize(self) -> None:
        """Waits for the stream."""
        self._call("cudaStreamSynchronize", self.stream)

    def capture(self, launch: Callable[[], None]) -> Callable[[], None]:
        """Captures what ``launch`` puts into the stream; returns a function that puts it there again.

        Raises:
            ConfigError: it cannot be captured.
        """
        mode = self.runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call("cudaStreamBeginCapture", self.stream, mode)
        try:
            launch()
        finally:
            graph = self._call("cudaStreamEndCapture", self.stream)
        executable = self._call("cudaGraphInstantiate", graph, 0)

        def replay() -> None:
            self._call("cudaGraphLaunch", executable, self.stream)

        return replay

    def mark(self) -> Any:
        """Returns an event in the stream, for :meth:`elapsed_ms`."""
        event = self._call("cudaEventCreate")
        self._call("cudaEventRecord", event, self.stream)
        return event

    def elapsed_ms(self, first: Any, second: Any) -> float:
        """Returns the milliseconds between two events of a stream that was waited for."""
        return float(self._call("cudaEventElapsedTime", first, second))

    def _copy(self, to: int, source: int, size: int, kind: str) -> None:
        self._call("cudaMemcpyAsync", to, source, size, getattr(self.runtime.cudaMemcpyKind, kind), self.stream)

    def _call(self, function: str, *arguments: Any) -> Any:
        error, *values = getattr(self.runtime, function)(*arguments)
        if int(error):
            raise ConfigError(f"CUDA: {function} failed with {error.name}; check GPU and driver with nvidia-smi")
        return values[0] if values else None


class TorchCuda:
    """GPU memory and a stream from PyTorch.

    Raises:
        ConfigError: this PyTorch sees no GPU.
    """

    name = "torch"

    def __init__(self, torch: ModuleType) -> None:
        if not torch.cuda.is_available():
            raise ConfigError("CUDA: PyTorch sees no GPU here; check GPU and driver with nvidia-smi")
        self.torch = torch
        self._stream = torch.cuda.Stream()
        self.stream = int(self._stream.cuda_stream)
        self._buffers: dict[int, Any] = {}

    def allocate(self, size: int) -> int:
        """Allocates bytes that stay as long as this object; returns their pointer."""
        buffer = self.torch.empty(max(size, 1), dtype=self.torch.uint8, device="cuda")
        self._buffers[buffer.data_ptr()] = buffer
        return int(buffer.data_ptr())

    def pinned(self, size: int) -> npt.NDArray[np.uint8]:
        """Allocates bytes of the host that copies read directly."""
        array: npt.NDArray[np.uint8] = self.torch.empty(max(size, 1), dtype=self.torch.uint8, pin_memory=True).numpy()
        return array

    def upload(self, pointer: int, array: npt.NDArray[Any]) -> None:
        """Copies a contiguous array to the GPU, in the stream."""
        with self.torch.cuda.stream(self._stream):
            self._buffers[pointer][: array.nbytes].copy_(self._bytes(array), non_blocking=True)

    def download(self, array: npt.NDArray[Any], pointer: int) -> None:
        """Copies from the GPU into a contiguous array, in the stream."""
        with self.torch.cuda.stream(self._stream):
            self._bytes(array).copy_(self._buffers[pointer][: array.nbytes], non_blocking=True)

    def synchronize(self) -> None:
        """Waits for the stream."""
        self._stream.synchronize()

    def capture(self, launch: Callable[[], None]) -> Callable[[], None]:
        """Captures what ``launch`` puts into the stream; returns a function that puts it there again.

        Raises:
            ConfigError: it cannot be captured.
        """
        graph = self.torch.cuda.CUDAGraph()
        try:
            with self.torch.cuda.graph(graph, stream=self._stream):
                launch()
        except RuntimeError as error:
            raise ConfigError(f"CUDA: capture failed ({str(error).splitlines()[0]})") from None

        def replay() -> None:
            with self.torch.cuda.stream(self._stream):
                graph.replay()

        return replay

    def mark(self) -> Any:
        """Returns an event in the stream, for :meth:`elapsed_ms`."""
        event = self.torch.cuda.Event(enable_timing=True)
        event.record(self._stream)
        return event

    def elapsed_ms(self, first: Any, second: Any) -> float:
        """Returns the milliseconds between two events of a stream that was waited for."""
        return float(first.elapsed_time(second))

    def _bytes(self, array: npt.NDArray[Any]) -> Any:
        return self.torch.from_numpy(array.reshape(-1).view(np.uint8))


Cuda = CudaPython | TorchCuda


def open_cuda() -> Cuda:
    """Opens the GPU with cuda-python, else with PyTorch.

    Raises:
        MissingExtraError: neither is installed.
        ConfigError: there is no GPU.
    """
    for name in RUNTIMES:
        try:
            runtime = importlib.import_module(name)
        except (ImportError, OSError):
            continue
        return CudaPython(runtime)
    try:
        return TorchCuda(importlib.import_module("torch"))
    except ImportError:
        raise missing_extra("cuda-python", "trt") from None
