"""Runs a program that Torch-TensorRT compiled ahead of time and ``gft-edge build`` saved in the artefact.

Not verified on hardware.
"""

from __future__ import annotations

import importlib
import io
import threading
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from gft_edge.errors import ConfigError, DataError
from gft_edge.hardware.environment import has_nvidia_driver, is_installed, missing_extra
from gft_edge.manifest import Artifact, DeploymentManifest
from gft_edge.runtime.backends.batching import run_in_batches
from gft_edge.runtime.backends.engine import engine_host, fitting_engine, record_batch
from gft_edge.runtime.backends.sessions import Session, SessionOptions
from gft_edge.runtime.backends.table import require_settings

NAME = "torch-tensorrt"


def open_program(artifact: Artifact, options: SessionOptions, module: str) -> Session:
    """Opens a compiled program of an artefact, after the checks of an engine.

    Raises:
        MissingExtraError: torch-tensorrt is not installed.
        ConfigError: a setting, no driver, or an artefact whose interface a program does not have.
        ArtifactError: no program, or one that does not fit.
    """
    require_settings(NAME, options.settings, ())
    require_plain(artifact.manifest, artifact)
    if not is_installed(module):
        raise missing_extra(NAME, "torch-trt")
    if not has_nvidia_driver():  # its import asks the GPU for its compute capability
        raise ConfigError(
            f"backend {NAME}: programs run on an NVIDIA GPU, and there is no NVIDIA driver here; run it on the device, or with "
            "--backend onnxruntime"
        )
    library = importlib.import_module(module)
    path, record = fitting_engine(artifact, engine_host(library), options.key)
    torch = importlib.import_module("torch")
    program = torch.export.load(io.BytesIO(path.read_bytes())).module()
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(str(record.get("precision")), torch.float32)
    image = artifact.manifest.inputs[0]
    runs = TorchProgram(torch, program, image.name, dtype, record_batch(record, str(path)))
    told = {
        "version": library.__version__,
        "engine": record["key"],
        "engine_sha256": record["engine_sha256"],
        "memory": "torch",
        "transfers": "input and outputs are copied in every request",
    }
    return Session(NAME, told, ("logits",), runs, image.name)


def require_plain(manifest: DeploymentManifest, artifact: Artifact) -> None:
    """Refuses an artefact with another interface than a program: normalised images in, logits out.

    Raises:
        ConfigError: naming the difference.
    """
    outputs = [output.name for output in manifest.outputs]
    if manifest.inputs[0].dtype != "float32" or outputs != ["logits"]:
        raise ConfigError(
            f"backend {NAME}: a program takes normalised images and gives logits alone; artefact {artifact.path} takes "
            f"{manifest.inputs[0].dtype} and gives {', '.join(outputs)}: export one with --input float --maps none"
        )


class TorchProgram:
    """Has the ``run`` of ONNX Runtime's sessions. Thread-safe: requests wait for each other.

    Args:
        torch: the module.
        program: compiled, on the GPU.
        name: of the input.
        dtype: that the program takes.
        batch: smallest and largest number of images that it takes.
    """

    def __init__(self, torch: Any, program: Any, name: str, dtype: Any, batch: tuple[int, int]) -> None:
        self.torch, self.program, self.name, self.dtype, self.batch = torch, program, name, dtype, batch
        self._lock = threading.Lock()

    def run(self, names: None, feed: Mapping[str, npt.NDArray[Any]]) -> list[npt.NDArray[Any]]:
        """Returns the logits.

        Raises:
            DataError: no images of 32-bit floats.
        """
        images = np.ascontiguousarray(feed[self.name])
        if images.dtype != np.float32:
            raise DataError(f"input {images.shape} {images.dtype} does not fit the program, which takes float32")
        with self._lock, self.torch.no_grad():
            return run_in_batches(self._once, images, *self.batch)

    def _once(self, images: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
        out = self.program(self.torch.from_numpy(images).cuda().to(self.dtype))
        out = out[0] if isinstance(out, (tuple, list)) else out
        return [out.float().cpu().numpy()]
