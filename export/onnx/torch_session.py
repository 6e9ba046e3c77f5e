"""PyTorch as a backend of an artefact: its checkpoint runs the function that was exported; eager, compiled, or as a CUDA graph.

An artefact holds no weights of PyTorch, so the checkpoint is named: ``--backend torch:CKPT``. CUDA graphs are not verified on
hardware.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from gft_edge.checkpoint import load_checkpoint, require_parent
from gft_edge.errors import ConfigError, DataError
from gft_edge.export.onnx.options import GraphOptions
from gft_edge.export.onnx.tracing import graph_module
from gft_edge.manifest import Artifact
from gft_edge.runtime.backends.sessions import Session, SessionOptions
from gft_edge.runtime.backends.table import require_settings

Mode = Literal["torch", "torch-compiled", "torch-cuda-graph"]
Call = Callable[[Tensor], tuple[Tensor, ...]]


def open_eager(artifact: Artifact, options: SessionOptions, module: str) -> Session:
    """Opens the checkpoint of an artefact in eager PyTorch; see :func:`open_torch`."""
    return open_torch("torch", artifact, options)


def open_compiled(artifact: Artifact, options: SessionOptions, module: str) -> Session:
    """Opens it through ``torch.compile``; see :func:`open_torch`."""
    return open_torch("torch-compiled", artifact, options)


def open_cuda_graph(artifact: Artifact, options: SessionOptions, module: str) -> Session:
    """Opens it as CUDA graphs; see :func:`open_torch`."""
    return open_torch("torch-cuda-graph", artifact, options)


def open_torch(mode: Mode, artifact: Artifact, options: SessionOptions) -> Session:
    """Opens the checkpoint that an artefact was made from, with the artefact's budget, precision, input and outputs.

    Raises:
        ConfigError: no checkpoint is named, a setting, or CUDA graphs without a GPU.
        ArtifactError: the artefact was made from another checkpoint.
    """
    require_settings(mode, options.settings, ())
    if not options.key:
        raise ConfigError(
            f"backend {mode}: an artefact holds no weights of PyTorch; name the checkpoint that it was made from, as "
            f"--backend {mode}:CKPT"
        )
    on_gpu = torch.cuda.is_available()
    if mode == "torch-cuda-graph" and not on_gpu:
        raise ConfigError(
            f"backend {mode}: CUDA graphs run on an NVIDIA GPU, and PyTorch sees none here; take --backend torch"
        )
    checkpoint, manifest = load_checkpoint(options.key), artifact.manifest
    require_parent(artifact, checkpoint)
    device = torch.device("cuda" if on_gpu else "cpu")
    module = graph_module(checkpoint.model, manifest.preprocess, manifest.budget, GraphOptions.of(manifest)).to(device)
    image = manifest.inputs[0]
    runs = TorchSession(module, image.name, tuple(image.shape[1:]), np.dtype(image.dtype), device, mode)
    record = {
        "version": str(torch.__version__),
        "mode": mode,
        "device": str(device),
        "checkpoint": str(options.key),
        "threads": torch.get_num_threads(),
    }
    return Session(mode, record, tuple(output.name for output in manifest.outputs), runs, image.name)


class TorchSession:
    """Has the ``run`` of ONNX Runtime's sessions. Thread-safe: requests wait for each other.

    Args:
        module: from the input to the outputs, on the device.
        name: of the input.
        shape: of an image.
        dtype: of it.
        device: where the module is.
        mode: how it is called.
    """

    def __init__(
        self,
        module: nn.Module,
        name: str,
        shape: tuple[Any, ...],
        dtype: np.dtype[Any],
        device: torch.device,
        mode: Mode,
    ) -> None:
        self.name, self.shape, self.dtype, self.device = name, shape, dtype, device
        self._lock = threading.Lock()
        call: Call = torch.compile(module, dynamic=False) if mode == "torch-compiled" else module
        self._call = CudaGraphs(call) if mode == "torch-cuda-graph" else call

    def run(self, names: None, feed: Mapping[str, npt.NDArray[Any]]) -> list[npt.NDArray[Any]]:
        """Returns all outputs.

        Raises:
            DataError: the array does not fit the graph.
        """
        images = np.ascontiguousarray(feed[self.name])
        if images.shape[1:] != self.shape or images.dtype != self.dtype:
            raise DataError(
                f"input {images.shape} {images.dtype} does not fit the graph, which takes (batch, "
                f"{', '.join(map(str, self.shape))}) {self.dtype}"
            )
        with self._lock, torch.no_grad(), self.device:
            return [output.cpu().numpy() for output in self._call(torch.from_numpy(images).to(self.device))]


class CudaGraphs:
    """A function of one tensor, captured once for each shape of it.

    Args:
        call: capturable: no transfers, no shapes that depend on values.
    """

    def __init__(self, call: Call) -> None:
        self._call = call
        self._captured: dict[torch.Size, tuple[Any, Tensor, tuple[Tensor, ...]]] = {}

    def __call__(self, image: Tensor) -> tuple[Tensor, ...]:
        """Returns the outputs; the next call overwrites them."""
        if image.shape not in self._captured:
            self._captured[image.shape] = self._capture(image)
        graph, held, outputs = self._captured[image.shape]
        held.copy_(image)
        graph.replay()
        return outputs

    def _capture(self, image: Tensor) -> tuple[Any, Tensor, tuple[Tensor, ...]]:
        held = image.clone()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # libraries allocate and choose kernels outside of the capture
            for _ in range(3):
                self._call(held)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                outputs = self._call(held)
        except RuntimeError as error:
            first = str(error).splitlines()[0]
            raise ConfigError(f"backend torch-cuda-graph: cannot be captured ({first}); take --backend torch") from None
        return graph, held, outputs
