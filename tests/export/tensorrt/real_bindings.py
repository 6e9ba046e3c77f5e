"""The real Python bindings of each TensorRT version, asked for the attributes they have.

The bindings come from PyPI without the libraries they link to; empty stand-ins satisfy the linker, and each version is imported
in its own process.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from .attribute_uses import Surface

WHEELS = {
    "8.6": ("tensorrt-bindings==8.6.1", "8"),
    "10.3": ("tensorrt-cu12-bindings==10.3.0", "10"),
    "10.7": ("tensorrt-cu12-bindings==10.7.0", "10"),
    "10.13": ("tensorrt-cu12-bindings==10.13.3.9", "10"),
    "10.16": ("tensorrt-cu13-bindings==10.16.1.11", "10"),
    "11.0": ("tensorrt-cu13-bindings==11.4.0.106", "11"),
}
"""Generation: distribution with its bindings, and the number its libraries end with."""

LIBRARIES = ("nvinfer", "nvinfer_plugin", "nvonnxparser", "nvparsers")
SYMBOLS = (
    "createInferBuilder_INTERNAL",
    "createInferRuntime_INTERNAL",
    "createInferRefitter_INTERNAL",
    "createNvOnnxParser_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL",
    "getBuilderPluginRegistry",
    "getPluginRegistry",
    "getNvOnnxParserVersion",
    "initLibNvInferPlugins",
    "_ZN11nvuffparser15createUffParserEv",
    "_ZN11nvuffparser8FieldMapC1EPKcPKvNS_9FieldTypeEi",
    "_ZN14nvcaffeparser117createCaffeParserEv",
    "_ZN14nvcaffeparser123shutdownProtobufLibraryEv",
)

LIST_ATTRIBUTES = """
import importlib, json, re, sys, warnings
warnings.simplefilter("ignore")
module = importlib.import_module(sys.argv[1])

def surface(owner):
    found = {}
    for name in dir(owner):
        if name.startswith("__"):
            continue
        try:
            member = getattr(owner, name)
        except Exception:
            continue
        text = getattr(member, "__doc__", None) or ""
        returned = re.search(r"\\) -> (?:[\\w.]*\\.)?(\\w+)", text.split("\\n\\n")[0])
        found[name] = returned.group(1) if returned and not isinstance(member, type) else ""
    return found

classes = {n: surface(m) for n, m in vars(module).items() if isinstance(m, type)}
nested = {f"{n}.{i}": surface(m) for n, o in vars(module).items() if isinstance(o, type)
          for i, m in vars(o).items() if isinstance(m, type)}
print(json.dumps({"": {n: "" for n in dir(module)}, **classes, **nested}))
"""


def download(requirement: str) -> Path:
    """The wheel, from the user's cache or from PyPI."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gft-edge" / "wheels" / requirement
    if not list(folder.glob("*.whl")):
        python = f"{sys.version_info.major}.{sys.version_info.minor}"
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        command += ["--python-version", python, "--timeout", "20", "--retries", "1", "--dest", str(folder), requirement]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        if done.returncode:
            pytest.skip(
                f"{requirement} cannot be downloaded for Python {python}: {done.stderr.strip().splitlines()[-1:]}"
            )
    return next(folder.glob("*.whl"))


def surface_of(generation: str, folder: Path) -> Surface:
    """Attributes of the bindings of a generation, which are unpacked into a folder; those of TensorRT-RTX are installed."""
    if generation == "rtx":
        pytest.importorskip("tensorrt_rtx")
        return list_attributes("tensorrt_rtx", {})
    requirement, number = WHEELS[generation]
    with zipfile.ZipFile(download(requirement)) as wheel:
        wheel.extractall(folder)
    make_libraries(folder, number)
    return list_attributes("tensorrt_bindings", {"LD_LIBRARY_PATH": str(folder), "PYTHONPATH": str(folder)})


def make_libraries(folder: Path, number: str) -> None:
    """Compiles empty stand-ins for TensorRT's libraries."""
    compiler = shutil.which("gcc") or pytest.skip("gcc, which makes the stand-in libraries, is not installed")
    source = folder / "empty.c"
    source.write_text("".join(f"void* {name}() {{ return 0; }}\n" for name in SYMBOLS))
    for library in LIBRARIES:
        name = f"lib{library}.so.{number}"
        command = [compiler, "-shared", "-fPIC", f"-Wl,-soname,{name}", "-o", folder / name, source]
        subprocess.run(command, check=True)


def list_attributes(module: str, environment: dict[str, str]) -> Surface:
    """Imports a module in another process and returns its attributes."""
    command = [sys.executable, "-c", LIST_ATTRIBUTES, module]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment}, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)
