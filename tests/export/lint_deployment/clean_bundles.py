"""Clean bundles of every target, around small graphs."""

from __future__ import annotations

import functools
import tempfile
import zipfile
from pathlib import Path

from onnx import TensorProto

from gft_edge import __version__
from gft_edge.export.deploy.bundling import make_bundle
from gft_edge.export.deploy.options import BundleOptions
from gft_edge.manifest import load_artifact

from .served import classifier, write_artifact

CLEAN = {
    "deepstream": ({}, {}, {"target": "deepstream"}),
    "deepstream-secondary": ({}, {}, {"target": "deepstream", "secondary": True}),
    "deepstream-maps": ({"maps": True}, {}, {"target": "deepstream"}),
    "deepstream-int8": ({"quantized": True}, {"precision": "int8"}, {"target": "deepstream"}),
    "triton": ({"pixels": False, "probabilities": False}, {}, {"target": "triton"}),
    "triton-tensorrt": ({}, {}, {"target": "triton", "accelerator": "tensorrt"}),
    "triton-static": ({"batch": 1}, {"batch": (1, 1, 1)}, {"target": "triton"}),
    "triton-uint8": ({"dtype": TensorProto.UINT8, "layout": "NHWC"}, {}, {"target": "triton"}),
    "onnxruntime": ({"pixels": False, "probabilities": False}, {}, {"target": "onnxruntime"}),
    "jetson": ({"pixels": False, "probabilities": False}, {}, {"target": "jetson", "device": "orin-nano"}),
}
"""Options of the graph, changes of the manifest and options of the bundle, by name."""

MADE: list[tempfile.TemporaryDirectory[str]] = []
"""Folders, removed when the process ends."""


@functools.cache
def clean_bundle(name: str) -> Path:
    """Returns a bundle, made once in a process; not to be changed."""
    graph, manifest, options = CLEAN[name]
    MADE.append(tempfile.TemporaryDirectory(prefix=f"clean-{name}-"))
    folder = Path(MADE[-1].name)
    artifact = write_artifact(folder / "artifact", classifier(**graph), **manifest)
    if options["target"] == "jetson":
        options = {**options, "wheel": folder / f"gft_edge-{__version__}-py3-none-any.whl"}
        with zipfile.ZipFile(options["wheel"], "w") as wheel:
            wheel.writestr("gft_edge/__init__.py", "")
    return make_bundle(load_artifact(artifact), folder / "bundle", BundleOptions(**options)).path
