"""Memory and a stream of an NVIDIA GPU, as raw pointers for TensorRT.

Uses cuda-python, NVIDIA's bindings: a few megabytes from PyPI, for x86-64 and for a Jetson; else PyTorch. A board that only runs
engines needs no PyTorch. Not verified on hardware.
"""

from __future__ import annotations

import importlib
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

    def upload(self, pointer: int, array: npt.NDArray[Any]) -> None:
        """Copies a contiguous array to the GPU, in the stream."""
        self._copy(pointer, array.ctypes.data, array.nbytes, "cudaMemcpyHostToDevice")

    def download(self, array: npt.NDArray[Any], pointer: int) -> None:
        """Copies from the GPU into a contiguous array, in the stream."""
        self._copy(array.ctypes.data, pointer, array.nbytes, "cudaMemcpyDeviceToHost")

    def synchronize(self) -> None:
        """Waits for the stream."""
        self._call("cudaStreamSynchronize", self.stream)

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

    def upload(self, pointer: int, array: npt.NDArray[Any]) -> None:
        """Copies a contiguous array to the GPU, in the stream."""
        with self.torch.cuda.stream(self._stream):
            self._buffers[pointer][: array.nbytes].copy_(self._bytes(array))

    def download(self, array: npt.NDArray[Any], pointer: int) -> None:
        """Copies from the GPU into a contiguous array, in the stream."""
        with self.torch.cuda.stream(self._stream):
            self._bytes(array).copy_(self._buffers[pointer][: array.nbytes])

    def synchronize(self) -> None:
        """Waits for the stream."""
        self._stream.synchronize()

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
