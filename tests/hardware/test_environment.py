from __future__ import annotations

import importlib
import importlib.metadata
import json
import platform
import sys

import pytest

from gft_edge import __version__
from gft_edge.hardware import environment
from gft_edge.hardware.environment import PACKAGES, board, cpu, has_nvidia_driver, machine, versions


@pytest.fixture
def root(tmp_path):
    """Makes a root folder of some files."""

    def make(**files):
        for name, data in files.items():
            path = tmp_path / name.replace("__", "/").replace("_DASH_", "-")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        return tmp_path

    return make


MODEL = "proc__device_DASH_tree__model"


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b"NVIDIA Jetson Orin Nano Developer Kit\0", "NVIDIA Jetson Orin Nano Developer Kit"),
        (b"NVIDIA JETSON AGX Thor", "NVIDIA JETSON AGX Thor"),
        (b"Raspberry Pi 5 Model B Rev 1.0\0", None),
        (b"", None),
    ],
)
def test_board_is_known_by_the_device_tree(root, data, name):
    assert board(root(**{MODEL: data})) == name


def test_board_of_another_maker_is_known_by_the_jetson_system(root):
    files = {MODEL: b"Acme Carrier \xff\0", "etc__nv_tegra_release": b"# R36"}
    assert board(root(**files)) == "Acme Carrier \ufffd"


def test_machine_without_device_tree_is_no_board(root):
    assert board(root(etc__nv_tegra_release=b"# R36")) is None


@pytest.mark.parametrize("file", ["proc__driver__nvidia__version", "dev__nvhost_DASH_gpu"])
def test_driver_is_known_by_its_files(root, file):
    assert has_nvidia_driver(root(**{file: b""}))


def test_no_driver_files_mean_no_driver(root):
    assert not has_nvidia_driver(root())


CPUINFO = {
    "x86": (
        "model name\t: Fast CPU @ 3 GHz: 4\nflags\t\t: fpu avx2 avx512_vnni avx512f\n",
        ["avx2", "avx512f", "avx512_vnni"],
    ),
    "arm": ("BogoMIPS : 1\nFeatures : fp asimd asimddp\n", ["asimddp"]),
    "none": ("processor : 0\n", []),
}


@pytest.mark.parametrize("name", CPUINFO)
def test_processor_features_come_from_cpuinfo(monkeypatch, root, name):
    text, features = CPUINFO[name]
    file = root(proc__cpuinfo=text.encode()) / "proc/cpuinfo"
    monkeypatch.setattr(environment, "Path", lambda _: file)
    found = cpu()
    assert found["features"] == features
    assert (found["model"] == "Fast CPU @ 3 GHz: 4") == (name == "x86")
    assert found["cores"] >= 1


def test_machine_is_plain_json():
    where = json.loads(json.dumps(machine()))
    assert set(where) == {"cpu", "system", "board", "nvidia_driver", "trtexec"}


def test_versions_are_those_of_the_installed_packages():
    found = versions()
    assert found["gft_edge"] == __version__
    assert found["python"] == platform.python_version()
    assert found["numpy"] == importlib.metadata.version("numpy")
    assert set(found) == {"gft_edge", "python", "numpy", *(name for name, _ in PACKAGES.values())}


def test_missing_package_has_no_version_and_one_without_metadata_an_unknown_one(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    monkeypatch.setitem(environment.PACKAGES, "wave", ("no-such-distribution", "train"))
    found = versions()
    assert found["timm"] is None
    assert found["no-such-distribution"] == "unknown"


@pytest.mark.parametrize(
    ("package", "extra", "named"), [("tensorrt", "trt", "JetPack"), ("cuda-python", "trt", "nvcc")]
)
def test_a_jetson_gets_its_own_packages(monkeypatch, package, extra, named):
    monkeypatch.setattr(environment, "board", lambda: "NVIDIA Jetson Orin Nano")
    there = environment.missing_extra(package, extra)
    assert (there.package, there.exit_code) == (package, 3)
    assert named in str(there)
    assert "gft-edge[" not in str(there)
    assert "gft-edge[rtx]" in str(environment.missing_extra("tensorrt_rtx", "rtx"))
    monkeypatch.setattr(environment, "board", lambda: None)
    assert f"gft-edge[{extra}]" in str(environment.missing_extra(package, extra))


def test_empty_folders_and_companions_are_no_package(monkeypatch, tmp_path):
    """An uninstallation leaves folders; ``cuda`` is shared by cuda-python and packages that allocate no memory."""
    (tmp_path / "tensorrt").mkdir()
    (tmp_path / "cuda/pathfinder").mkdir(parents=True)
    (tmp_path / "cuda/pathfinder/__init__.py").write_text("")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    for name in [name for name in sys.modules if name.partition(".")[0] in ("cuda", "tensorrt")]:
        monkeypatch.delitem(sys.modules, name)
    assert not environment.is_installed("tensorrt")
    assert not environment.is_installed("cuda")
    (tmp_path / "cuda/bindings").mkdir()
    (tmp_path / "cuda/bindings/__init__.py").write_text("")
    importlib.invalidate_caches()
    assert environment.is_installed("cuda")
    assert not environment.is_installed("no_such_module")
