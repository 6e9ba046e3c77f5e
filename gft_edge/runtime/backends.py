"""The table of backends: one row for each way to run an artefact.

A new backend is a row here and a module with its opener. Nothing here imports a backend, or NumPy.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from gft_edge.errors import ConfigError


@dataclass(frozen=True)
class Backend:
    """A way to run an artefact.

    Attributes:
        name: of ``--backend``, and in reports.
        module: Python module that computes.
        extra: extra of gft-edge that installs it.
        opener: ``"module:function"``; the function takes an artefact, a
            :class:`gft_edge.runtime.sessions.SessionOptions` and ``module``, and returns a session.
        runs_engines: it runs an engine of the artefact, and ``NAME:KEY`` names one of several.
        on_gpu: it computes on a GPU.
        concurrent: several threads may call one session at a time.
    """

    name: str
    module: str
    extra: str
    opener: str
    runs_engines: bool = False
    on_gpu: bool = False
    concurrent: bool = False

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
        """Calls the opener; :func:`gft_edge.runtime.sessions.open_session` has the types."""
        module, _, function = self.opener.partition(":")
        return getattr(importlib.import_module(module), function)(artifact, options, self.module)


BACKENDS = (
    Backend("onnxruntime", "onnxruntime", "onnx", "gft_edge.runtime.sessions:open_onnxruntime", concurrent=True),
    Backend("tensorrt", "tensorrt", "trt", "gft_edge.runtime.engine:open_tensorrt", runs_engines=True, on_gpu=True),
    Backend(
        "tensorrt_rtx", "tensorrt_rtx", "rtx", "gft_edge.runtime.engine:open_tensorrt", runs_engines=True, on_gpu=True
    ),
)
NAMES = tuple(backend.name for backend in BACKENDS)
DEFAULT = NAMES[0]


def find_backend(text: str) -> tuple[Backend, str]:
    """Returns the backend of a ``--backend`` argument, and the key of the engine that it names, or ``""``.

    Raises:
        ConfigError: there is no such backend, or it runs no engines.
    """
    name, _, key = text.partition(":")
    for backend in BACKENDS:
        if backend.name == name and (backend.runs_engines or not key):
            return backend, key
    raise ConfigError(f"unknown backend {text!r}; there are: {', '.join(NAMES)}")


def backend_of_module(module: str) -> Backend:
    """Returns the backend that computes with a Python module of this name."""
    return next(backend for backend in BACKENDS if backend.module == module)


def names_text() -> str:
    """Returns the names and the default for a help text: ``"a, b or c (a)"``."""
    return f"{', '.join(NAMES[:-1])} or {NAMES[-1]} ({DEFAULT})"
