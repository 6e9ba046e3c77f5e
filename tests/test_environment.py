from __future__ import annotations

import importlib.metadata
import json
import platform
import sys

import pytest

from gft_edge import __version__, environment
from gft_edge.environment import PACKAGES, abilities, board, cpu, has_nvidia_driver, machine, versions


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


@pytest.fixture
def installed(monkeypatch):
    """Pretends that everything is installed but some distributions, on a processor with the features given."""

    def pretend(*missing, features=(), driver=False):
        found = dict.fromkeys(versions(), "1.2") | dict.fromkeys(missing)
        monkeypatch.setattr(environment, "versions", lambda: found)
        monkeypatch.setattr(environment, "cpu", lambda: {"model": "x", "features": list(features), "cores": 1})
        monkeypatch.setattr(environment, "has_nvidia_driver", lambda: driver)
        return {ability.name: ability for ability in abilities()}

    return pretend


RUN = "run engines (--backend tensorrt, tensorrt_rtx)"
WITHOUT_A_DRIVER = {RUN, "build --target this-gpu"}
NEEDS_ONNXRUNTIME = {"verify against PyTorch", "bench, predict and evaluate artefacts"}


def test_everything_installed_works(installed):
    found = installed(features=["asimddp"])
    assert {name for name, ability in found.items() if not ability.works} == WITHOUT_A_DRIVER
    assert found["export to ONNX"].reason.startswith("torch 1.2, timm 1.2, onnx 1.2")


@pytest.mark.parametrize(
    ("missing", "lost", "extra"),
    [
        ("onnxruntime", NEEDS_ONNXRUNTIME, "onnx"),
        ("onnxscript", {"export to ONNX"}, "onnx"),
        ("tensorrt-rtx-cu13", {"build --target rtx (no GPU needed)"}, "rtx"),
        ("jinja2", {"report, demo"}, "report"),
        ("safetensors", {"train, evaluate, quantize checkpoints"}, "train"),
        (
            "torch",
            {"train, evaluate, quantize checkpoints", "export to ONNX", "verify against PyTorch"},
            "train",
        ),
        ("rich", set(), None),
    ],
)
def test_missing_package_takes_its_abilities_and_names_the_extra(installed, missing, lost, extra):
    found = installed(missing, features=["avx_vnni"])
    assert {name for name, ability in found.items() if not ability.works} == lost | WITHOUT_A_DRIVER
    for name in lost:
        assert found[name].reason == f"needs {missing}: pip install 'gft-edge[{extra}]'"


def test_several_missing_packages_are_named_together(installed):
    reason = installed("torch", "onnxruntime")["verify against PyTorch"].reason
    assert reason == "needs torch, onnxruntime: pip install 'gft-edge[onnx,train]'"


@pytest.mark.parametrize(
    ("features", "works"), [(["avx2", "avx512f"], False), ([], False), (["avx512_vnni"], True), (["amx_int8"], True)]
)
def test_fast_int8_needs_a_dot_product_instruction(installed, features, works):
    ability = installed(features=features)["fast INT8 on this processor"]
    assert ability.works is works
    assert (", ".join(features) in ability.reason) if works else ("slow" in ability.reason)


@pytest.mark.parametrize(
    ("missing", "driver", "works", "words"),
    [
        (("tensorrt", "tensorrt-rtx-cu13"), True, False, "gft-edge[trt]"),
        ((), False, False, "is here, an NVIDIA driver is not"),
        ((), True, True, "not yet seen to work on hardware"),
        (("tensorrt",), True, True, "tensorrt-rtx-cu13 1.2"),
    ],
)
def test_running_engines_needs_a_module_and_a_driver(installed, missing, driver, works, words):
    ability = installed(*missing, driver=driver)[RUN]
    assert ability.works is works
    assert words in ability.reason


@pytest.mark.parametrize(
    ("missing", "driver", "works", "words"),
    [
        (("tensorrt",), True, False, r"gft-edge[trt]"),
        ((), False, False, "an NVIDIA driver is not; --plan works"),
        ((), True, True, "tensorrt 1.2, not yet seen to work on hardware"),
    ],
)
def test_building_for_this_gpu_needs_tensorrt_and_a_driver(installed, missing, driver, works, words):
    ability = installed(*missing, driver=driver)["build --target this-gpu"]
    assert ability.works is works
    assert words in ability.reason
