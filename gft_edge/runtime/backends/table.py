"""The table of backends: one row for each way to run an artefact.

A new backend is a row here and a module with its opener. Nothing here imports a backend, or NumPy. Verbs, ``doctor`` and
docs/backends.md read this table.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, Literal

from gft_edge.errors import ConfigError, did_you_mean

Evidence = Literal["run", "compiled", "bound", "not verified on hardware"]
"""What shows that a backend works; see docs/backends.md."""
Key = Literal["", "engine", "checkpoint"]
"""What ``NAME:KEY`` names."""

CUDA_GRAPH = "cuda_graph"
ALLOW_CPU = "allow_cpu"


@dataclass(frozen=True)
class Backend:
    """A way to run an artefact.

    Attributes:
        name: of ``--backend``, and in reports.
        module: Python module that computes.
        extra: extra of gft-edge that installs it.
        opener: ``"module:function"``; the function takes an artefact, a
            :class:`gft_edge.runtime.backends.sessions.SessionOptions` and ``module``, and returns a session.
        summary: one line for the documentation.
        evidence: what shows that it works.
        takes: what ``NAME:KEY`` names, empty where there is no key.
        packages: keys of :data:`gft_edge.hardware.environment.PACKAGES` that it imports; alternatives in a tuple.
        settings: names of its own ``NAME=VALUE`` settings; ONNX Runtime's providers take their options too.
        on_gpu: it computes on a GPU, always.
        concurrent: requests of several threads on one session run side by side. On other backends they wait for each other.
        measures_budgets: ``sweep`` and ``search`` measure on it, from graphs that are no artefacts.
    """

    name: str
    module: str
    extra: str
    opener: str
    summary: str
    evidence: Evidence
    takes: Key = ""
    packages: tuple[str | tuple[str, ...], ...] = ()
    settings: tuple[str, ...] = ()
    on_gpu: bool = False
    concurrent: bool = False
    measures_budgets: bool = False

    @property
    def runs_engines(self) -> bool:
        """True if it runs an engine of the artefact, and ``NAME:KEY`` names one of several."""
        return self.takes == "engine"

    @property
    def needs(self) -> str:
        """What it needs besides its packages, in words."""
        key = {"": "", "engine": "an engine of the artefact", "checkpoint": "the artefact's checkpoint"}[self.takes]
        return ", ".join(filter(None, ["an NVIDIA GPU" if self.on_gpu else "", key])) or "nothing more"

    def import_module(self) -> ModuleType:
        """Imports the module that computes.

        Raises:
            MissingExtraError: it is not installed, or its libraries are not.
        """
        try:
            return importlib.import_module(self.module)
        except (ImportError, OSError):
            from gft_edge.hardware.environment import missing_extra

            raise missing_extra(self.module, self.extra) from None

    def open(self, artifact: Any, options: Any) -> Any:
        """Calls the opener; :func:`gft_edge.runtime.backends.sessions.open_session` has the types."""
        module, _, function = self.opener.partition(":")
        return getattr(importlib.import_module(module), function)(artifact, options, self.module)


_ENGINE_MEMORY = ("cuda", "torch")
_PROVIDERS = "gft_edge.runtime.backends.providers"
_TORCH = "gft_edge.export.onnx.torch_session"
_CHECKPOINT: tuple[str | tuple[str, ...], ...] = ("torch", "timm", "safetensors", "onnx", "onnxscript", "onnxslim")

BACKENDS = (
    Backend(
        "onnxruntime",
        "onnxruntime",
        "onnx",
        "gft_edge.runtime.backends.sessions:open_onnxruntime",
        "model.onnx in ONNX Runtime on the processor; INT8 products where the graph has them",
        "run",
        packages=("onnxruntime",),
        concurrent=True,
        measures_budgets=True,
    ),
    Backend(
        "onnxruntime-cuda",
        "onnxruntime",
        "onnx",
        f"{_PROVIDERS}:open_cuda_provider",
        "model.onnx in ONNX Runtime's CUDA provider",
        "not verified on hardware",
        packages=("onnxruntime-gpu",),
        settings=(CUDA_GRAPH, ALLOW_CPU),
        on_gpu=True,
    ),
    Backend(
        "onnxruntime-tensorrt",
        "onnxruntime",
        "onnx",
        f"{_PROVIDERS}:open_tensorrt_provider",
        "model.onnx in ONNX Runtime's TensorRT provider, which builds engines into caches/",
        "not verified on hardware",
        packages=("onnxruntime-gpu", "tensorrt"),
        settings=(CUDA_GRAPH, ALLOW_CPU),
        on_gpu=True,
    ),
    Backend(
        "onnxruntime-rtx",
        "onnxruntime",
        "onnx",
        f"{_PROVIDERS}:open_rtx_provider",
        "model.onnx in NVIDIA's TensorRT-RTX plugin for ONNX Runtime, which compiles kernels into caches/",
        "not verified on hardware",
        packages=("onnxruntime", "onnxruntime_ep_nv_tensorrt_rtx"),
        settings=(CUDA_GRAPH, ALLOW_CPU),
        on_gpu=True,
    ),
    Backend(
        "tensorrt",
        "tensorrt",
        "trt",
        "gft_edge.runtime.backends.engine:open_tensorrt",
        "an engine that gft-edge build made on this GPU or board, TensorRT 8.6 to 11",
        "bound",
        takes="engine",
        packages=("tensorrt", _ENGINE_MEMORY),
        settings=(CUDA_GRAPH,),
        on_gpu=True,
    ),
    Backend(
        "tensorrt_rtx",
        "tensorrt_rtx",
        "rtx",
        "gft_edge.runtime.backends.engine:open_tensorrt",
        "an engine that gft-edge build --target rtx compiled ahead of time, without a GPU",
        "compiled",
        takes="engine",
        packages=("tensorrt_rtx", _ENGINE_MEMORY),
        settings=(CUDA_GRAPH,),
        on_gpu=True,
    ),
    Backend(
        "torch-tensorrt",
        "torch_tensorrt",
        "torch-trt",
        "gft_edge.runtime.backends.torch_program:open_program",
        "a program that gft-edge build CKPT --target torch-tensorrt --out ARTIFACT compiled and saved",
        "not verified on hardware",
        takes="engine",
        packages=("torch", "torch_tensorrt"),
        on_gpu=True,
    ),
    Backend(
        "torch",
        "torch",
        "train",
        f"{_TORCH}:open_eager",
        "the artefact's checkpoint in PyTorch, the function that was exported; on the GPU if there is one",
        "run",
        takes="checkpoint",
        packages=_CHECKPOINT,
    ),
    Backend(
        "torch-compiled",
        "torch",
        "train",
        f"{_TORCH}:open_compiled",
        "the same through torch.compile; each new batch size compiles again",
        "run",
        takes="checkpoint",
        packages=_CHECKPOINT,
    ),
    Backend(
        "torch-cuda-graph",
        "torch",
        "train",
        f"{_TORCH}:open_cuda_graph",
        "the same as a CUDA graph, captured once per batch size",
        "not verified on hardware",
        takes="checkpoint",
        packages=_CHECKPOINT,
        on_gpu=True,
    ),
)
NAMES = tuple(backend.name for backend in BACKENDS)
DEFAULT = NAMES[0]


@dataclass(frozen=True)
class BackendRequest:
    """A ``--backend`` argument, ``NAME[:KEY][,SETTING=VALUE...]``.

    Attributes:
        backend: row of the table.
        key: engine or checkpoint, or empty.
        settings: by name.
    """

    backend: Backend
    key: str = ""
    settings: Mapping[str, str] = field(default_factory=dict)

    def switch(self, name: str) -> bool:
        """Returns a setting that is on or off; see :func:`switch`."""
        return switch(self.settings, name)


def parse_backend(text: str) -> BackendRequest:
    """Reads a ``--backend`` argument: a name, then the key of an engine or a checkpoint, then settings.

    Raises:
        ConfigError: there is no such backend, it has no key, or a setting is not written as ``NAME=VALUE``.
    """
    head, *parts = text.split(",")
    name, _, key = head.partition(":")
    backend = next((backend for backend in BACKENDS if backend.name == name), None)
    if backend is None:
        raise ConfigError(f"unknown backend {text!r}{did_you_mean(name, NAMES)}; there are: {', '.join(NAMES)}")
    if key and not backend.takes:
        keyed = [other.name for other in BACKENDS if other.takes]
        raise ConfigError(f"backend {text!r}: {name} takes no key after a colon; these do: {', '.join(keyed)}")
    settings = {}
    for part in parts:
        setting, sign, value = part.partition("=")
        if not (setting and sign and value):
            raise ConfigError(f"backend {text!r}: setting {part!r} must be NAME=VALUE, as {name},{CUDA_GRAPH}=on")
        settings[setting] = value
    return BackendRequest(backend, key, settings)


def require_settings(backend: str, settings: Mapping[str, str], known: tuple[str, ...]) -> None:
    """Refuses a setting that a backend does not have.

    Raises:
        ConfigError: naming it, and the nearest or all known ones.
    """
    for name in settings:
        if name not in known:
            there = did_you_mean(name, known) or f"; it has {', '.join(known) or 'none'}"
            raise ConfigError(f"backend {backend}: has no setting {name!r}{there}")


def switch(settings: Mapping[str, str], name: str) -> bool:
    """Returns a setting that is on or off, off by default.

    Raises:
        ConfigError: neither.
    """
    values = {"on": True, "1": True, "off": False, "0": False}
    value = settings.get(name, "off")
    if value not in values:
        raise ConfigError(f"setting {name}={value}: expected on or off")
    return values[value]


def find_backend(text: str) -> tuple[Backend, str]:
    """Returns the backend of a ``--backend`` argument, and the key that it names, or ``""``.

    Raises:
        ConfigError: see :func:`parse_backend`.
    """
    request = parse_backend(text)
    return request.backend, request.key


def backend_of_module(module: str) -> Backend:
    """Returns the first backend that computes with a Python module of this name."""
    return next(backend for backend in BACKENDS if backend.module == module)


def names_text() -> str:
    """Returns the names and the default for a help text: ``"a, b or c (a)"``."""
    return f"{', '.join(NAMES[:-1])} or {NAMES[-1]} ({DEFAULT})"


def markdown_table() -> str:
    """Returns the table of docs/backends.md; a test compares the two."""
    rows = ["| backend | runs | needs | evidence |", "|---|---|---|---|"]
    rows += [f"| `{b.name}` | {b.summary} | {b.needs} | {b.evidence} |" for b in BACKENDS]
    return "\n".join(rows)
