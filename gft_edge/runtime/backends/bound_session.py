"""A session of ONNX Runtime whose input and outputs are bound to memory of a device, which is kept from request to request."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from gft_edge.errors import ConfigError
from gft_edge.runtime.backends.sessions import DTYPES


class BoundSession:
    """Has the ``run`` of ONNX Runtime's sessions; one set of buffers for each shape of the input.

    Thread-safe: requests wait for each other, since they share buffers.

    Args:
        ort: the module.
        session: ``onnxruntime.InferenceSession`` with one input.
        device: ONNX Runtime's name of the memory, ``"cuda"`` or ``"cpu"``.
        cuda_graph: the provider captures a CUDA graph per shape; its addresses then stay the same.
    """

    def __init__(self, ort: ModuleType, session: Any, device: str, cuda_graph: bool = False) -> None:
        self._ort, self.session, self._device, self._graphs = ort, session, device, cuda_graph
        (self._input,) = session.get_inputs()
        self._buffers: dict[tuple[int, ...], tuple[Any, Any, Any]] = {}
        self._lock = threading.Lock()

    def get_inputs(self) -> Any:
        """Returns what the session tells of its input."""
        return self.session.get_inputs()

    def get_outputs(self) -> Any:
        """Returns what the session tells of its outputs."""
        return self.session.get_outputs()

    def run(self, names: None, feed: Mapping[str, npt.NDArray[Any]]) -> list[npt.NDArray[Any]]:
        """Returns all outputs for an array of the host."""
        images = np.ascontiguousarray(feed[self._input.name])
        dtype = DTYPES.get(self._input.type, images.dtype.name)
        if images.shape[1:] != tuple(self._input.shape[1:]) or images.dtype.name != dtype:
            # ONNX Runtime's own message; no buffer is made, which later requests of this shape would find
            return list(self.session.run(None, {self._input.name: images}))
        with self._lock:
            value, binding, options = self._buffers.get(images.shape) or self._bind(images)
            value.update_inplace(images)
            self.session.run_with_iobinding(binding, options)
            return list(binding.copy_outputs_to_cpu())

    def run_pointer(self, pointer: int, shape: tuple[int, ...], dtype: npt.DTypeLike) -> list[Any]:
        """Returns the outputs as ``OrtValue`` on the device, for an input that is there already.

        Args:
            pointer: of a contiguous tensor, for example ``tensor.data_ptr()`` of PyTorch; its writer has finished.
            shape: of it.
            dtype: of it.

        Raises:
            ConfigError: with a CUDA graph, whose addresses are its own.
        """
        if self._graphs:
            raise ConfigError(
                "a tensor of the device cannot be given to a CUDA graph, which reads its own memory; leave cuda_graph out"
            )
        with self._lock:
            binding = self.session.io_binding()
            binding.bind_input(self._input.name, self._device, 0, np.dtype(dtype).type, list(shape), pointer)
            for output in self.session.get_outputs():
                binding.bind_output(output.name, self._device)
            self.session.run_with_iobinding(binding)
            return list(binding.get_outputs())

    def _bind(self, images: npt.NDArray[Any]) -> tuple[Any, Any, Any]:
        value = self._ort.OrtValue.ortvalue_from_numpy(np.array(images), self._device, 0)
        binding, options = self.session.io_binding(), self._ort.RunOptions()
        binding.bind_ortvalue_input(self._input.name, value)
        for output in self.session.get_outputs():
            shape = [axis if isinstance(axis, int) else len(images) for axis in output.shape]
            kept = self._ort.OrtValue.ortvalue_from_shape_and_type(
                shape, np.dtype(DTYPES[output.type]), self._device, 0
            )
            binding.bind_ortvalue_output(output.name, kept)
        if self._graphs:
            options.add_run_config_entry("gpu_graph_id", str(len(self._buffers) + 1))
        self._buffers[images.shape] = value, binding, options
        return value, binding, options
