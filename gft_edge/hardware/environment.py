"""Reads what this machine has: packages, processor, GPU or board."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
from pathlib import Path
from typing import Any

from gft_edge import __version__
from gft_edge.errors import MissingExtraError

PACKAGES = {
    "torch": ("torch", "train"),
    "torchvision": ("torchvision", "train"),
    "timm": ("timm", "train"),
    "safetensors": ("safetensors", "train"),
    "onnx": ("onnx", "onnx"),
    "onnxruntime": ("onnxruntime", "onnx"),
    "onnxruntime-gpu": ("onnxruntime-gpu", "onnx"),
    "onnxruntime_ep_nv_tensorrt_rtx": ("onnxruntime-ep-nv-tensorrt-rtx", "onnx"),
    "onnxscript": ("onnxscript", "onnx"),
    "onnxslim": ("onnxslim", "onnx"),
    "tensorrt_rtx": ("tensorrt-rtx-cu13", "rtx"),
    "tensorrt": ("tensorrt", "trt"),
    "cuda": ("cuda-python", "trt"),
    "torch_tensorrt": ("torch-tensorrt", "torch-trt"),
    "matplotlib": ("matplotlib", "report"),
    "jinja2": ("jinja2", "report"),
    "PIL": ("pillow", "report"),
    "rich": ("rich", "cli"),
    "pynvml": ("nvidia-ml-py", "power"),
    "tensorboard": ("tensorboard", "tensorboard"),
    "cryptography": ("cryptography", "sign"),
}
"""Importable module: its distribution, and the extra of gft-edge that installs it."""

ON_A_JETSON = {
    "tensorrt": "it is part of JetPack: sudo apt install python3-libnvinfer, and make the virtual environment with "
    "--system-site-packages",
    "cuda-python": "run: pip install cuda-python, in the version of the board's CUDA (nvcc --version)",
}
"""Remedy on a Jetson, where the extra of gft-edge would install a distribution that does not work there."""

REMEDIES = {
    "onnxruntime-gpu": "run: pip uninstall onnxruntime, then pip install onnxruntime-gpu, which replaces it; on a Jetson the wheel "
    "for its JetPack",
    "onnxruntime-ep-nv-tensorrt-rtx": "run: pip install onnxruntime-ep-nv-tensorrt-rtx, beside onnxruntime 1.24 or newer",
}
"""How to install a distribution that no extra of gft-edge brings."""

_PARTS = {"cuda": ("cuda.bindings", "cuda.cudart"), "onnxruntime-gpu": ("onnxruntime",)}
"""Modules to search, where other packages install the one of the table too, or where it is no module's name."""
_REPLACES = {"onnxruntime-gpu"}
"""Distributions whose module another one installs too: only their own record shows them."""


def missing_extra(distribution: str, extra: str) -> MissingExtraError:
    """Returns the error for a package that is not installed, with the remedy for this machine."""
    remedy = (ON_A_JETSON.get(distribution, "") if board() else "") or REMEDIES.get(distribution, "")
    return MissingExtraError(distribution, extra, remedy=remedy)


def is_installed(module: str) -> bool:
    """Returns True if a module can be found; an empty folder, left by an uninstallation, is none. Only parents are imported."""
    for name in _PARTS.get(module, (module,)):
        try:
            spec = importlib.util.find_spec(name)
        except (ImportError, ValueError):
            continue
        if spec is not None and spec.origin is not None:
            return True
    return False


def versions() -> dict[str, str | None]:
    """Returns the version of each package, None where it is not installed; nothing is imported."""
    found: dict[str, str | None] = {"gft_edge": __version__, "python": platform.python_version()}
    distributions = {"numpy": "numpy", **{module: name for module, (name, _) in PACKAGES.items()}}
    for module, distribution in distributions.items():
        found[distribution] = None
        if is_installed(module):
            try:
                found[distribution] = importlib.metadata.version(distribution)
            except importlib.metadata.PackageNotFoundError:
                found[distribution] = None if distribution in _REPLACES else "unknown"
    return found


def cpu() -> dict[str, Any]:
    """Returns the processor model, the features that INT8 speed depends on, and the cores of this process."""
    model, features = platform.processor() or platform.machine(), []
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        pairs = (line.partition(":") for line in cpuinfo.read_text(encoding="utf-8").splitlines())
        lines = {key.strip(): value.strip() for key, _, value in pairs}
        model = lines.get("model name", model)
        flags = (lines.get("flags") or lines.get("Features") or "").split()
        features = [
            name for name in ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimddp") if name in flags
        ]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"model": model, "features": features, "cores": cores}


def board(root: Path = Path("/")) -> str | None:
    """Returns the name of the Jetson board, from the device tree; None on other machines."""
    file = root / "proc/device-tree/model"
    try:
        name = file.read_bytes().rstrip(b"\0").decode(errors="replace")
    except OSError:
        return None
    return name if "jetson" in name.lower() or (root / "etc/nv_tegra_release").exists() else None


def has_nvidia_driver(root: Path = Path("/")) -> bool:
    """Returns True if an NVIDIA kernel driver is loaded (data-centre GPU or Jetson)."""
    return (root / "proc/driver/nvidia/version").exists() or (root / "dev/nvhost-gpu").exists()


def machine() -> dict[str, Any]:
    """Returns the machine in a few entries, for reports."""
    return {
        "cpu": cpu(),
        "system": platform.platform(),
        "board": board(),
        "nvidia_driver": has_nvidia_driver(),
        "trtexec": shutil.which("trtexec"),
    }
