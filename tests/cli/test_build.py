"""gft-edge build --plan and the builds that this machine cannot do."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from gft_edge.calibration.cache import CalibrationCache, write_cache
from gft_edge.calibration.ranges import Ranges
from gft_edge.export.tensorrt import build as building
from gft_edge.export.tensorrt import torch_tensorrt
from gft_edge.hardware import this_device
from gft_edge.hardware.devices import device
from gft_edge.hardware.this_device import Recognized

CACHES = Path(__file__).parents[1] / "calibration/data"


@pytest.mark.parametrize(
    ("target", "version", "words"),
    [
        ("orin-nano", "10.3", "trtexec --onnx={int8}/model.onnx --saveEngine={int8}.engine --stronglyTyped"),
        ("agx-orin", "11.4.1", "generation 11.0"),
        ("thor", None, "compute capability 11.0"),
        ("h100", None, "TensorRT       11.4"),
        ("rtx", None, "--computeCapabilities=80,86,89,120"),
    ],
)
def test_plan_is_printed_without_a_gpu(gft_edge, made, target, version, words):
    more = [] if version is None else ["--tensorrt", version]
    done = gft_edge("build", made["int8"], "--target", target, "--plan", *more)
    assert done.code == 0, done.err
    assert words.format(**made) in done.out
    assert done.out.count("the rest of this graph is FP32") == done.out.count("GE029") == 1
    assert not (made["int8"] / "engines").exists()


@pytest.mark.parametrize(("below", "folder"), [(".", "."), ("reports", "..")])
def test_plan_from_inside_the_folder_writes_the_engine_beside_it(gft_edge, copied, monkeypatch, below, folder):
    artifact = copied("int8")
    (artifact / below).mkdir(exist_ok=True)
    monkeypatch.chdir(artifact / below)
    done = gft_edge("build", folder, "--target", "orin-nano", "--tensorrt", "10.3", "--plan")
    assert f"trtexec --onnx={Path(folder, 'model.onnx')} --saveEngine={artifact}.engine " in done.out


def test_plan_as_json_has_the_command_and_what_lint_says(gft_edge, made):
    found = gft_edge("build", made["fp32"], "--target", "orin-nano", "--tensorrt", "10.3", "--plan", "--json").json
    assert found["plan"]["trtexec"].startswith("trtexec ")
    assert [finding["rule"] for finding in found["lint"]] == ["GE029"]


def test_plan_for_a_graph_that_does_not_fit_fails(gft_edge, made):
    done = gft_edge("build", made["fp32"], "--target", "orin-nano", "--tensorrt", "8.6", "--plan")
    assert done.code == 2
    assert done.err.count("\n") == 1
    assert (
        "needs dialect trt8 (opset 7 to 17), this graph is of trt10 (opset 20); export it again: gft-edge export"
        in done.err
    )


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--target", "xavier-nx", "--plan"], 2, "the last for Xavier"),
        (["--target", "orin-nano", "--plan", "--dla", 0], 2, "has no DLA"),
        (["--target", "rtx", "--weak"], 2, "has no precision flags"),
        (["--target", "h100", "--plan", "--compute-capability", "9.0"], 2, "for --target rtx only"),
        (["--target", "tardis"], 2, "unknown device 'tardis'"),
        (["--target", "h100", "--plan", "--calibration-cache", "/none"], 2, "No such file"),
        (["--target", "this-gpu"], 3, "tensorrt is not installed; run: pip install 'gft-edge[trt]'"),
        (
            ["--target", "orin-nano"],
            2,
            "is built on it, by its own TensorRT, and this machine has no NVIDIA GPU: copy the",
        ),
        (["--target", "h100"], 2, "here --plan prints the build"),
    ],
)
def test_an_impossible_build_is_one_line(gft_edge, made, monkeypatch, options, code, words):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.setattr(this_device, "board", lambda root: None)
    monkeypatch.setattr(this_device.shutil, "which", lambda name: None)
    done = gft_edge("build", made["fp32"], *options)
    assert (done.code, done.out) == (code, "")
    assert words in done.err
    assert done.err.count("\n") == 1


@pytest.mark.parametrize(
    ("here", "code", "words"),
    [
        ("orin-nano-8gb", 3, "tensorrt is not installed"),
        ("agx-orin-64gb", 2, "this machine has Jetson AGX Orin 64GB (test)"),
    ],
)
def test_tensorrt_is_asked_for_on_the_device_itself_only(gft_edge, made, monkeypatch, here, code, words):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.setattr(building, "device_here", lambda: Recognized(device(here), "test"))
    done = gft_edge("build", made["fp32"], "--target", "orin-nano")
    assert (done.code, done.out, done.err.count("\n")) == (code, "", 1)
    assert words in done.err


class TestTorchTensorRT:
    @pytest.fixture(autouse=True)
    def elsewhere(self, monkeypatch):
        monkeypatch.setattr(this_device, "board", lambda root: None)
        monkeypatch.setattr(this_device.shutil, "which", lambda name: None)
        monkeypatch.setitem(sys.modules, "tensorrt", None)

    def test_plan_needs_no_gpu(self, gft_edge, made):
        done = gft_edge("build", made["ckpt"], "--target", "torch-tensorrt", "--precision", "fp16", "--plan")
        assert (done.code, done.err) == (0, "")
        assert "PyTorch program, FP16" in done.out and "not verified on hardware" in done.out
        found = gft_edge("build", made["ckpt"], "--target", "torch-tensorrt", "--plan", "--json").json
        assert found["plan"]["module"] == "torch_tensorrt"
        assert found["torch_tensorrt"]["disable_tf32"] is True

    @pytest.mark.parametrize(("driver", "code", "word"), [(False, 2, "no NVIDIA driver"), (True, 3, "[torch-trt]")])
    def test_missing_driver_or_package_is_one_line(self, gft_edge, made, monkeypatch, driver, code, word):
        monkeypatch.setattr(torch_tensorrt, "has_nvidia_driver", lambda: driver)
        monkeypatch.setitem(sys.modules, "torch_tensorrt", None)
        done = gft_edge("build", made["ckpt"], "--target", "torch-tensorrt")
        assert (done.code, done.out, done.err.count("\n")) == (code, "", 1)
        assert word in done.err

    @pytest.mark.parametrize(
        ("name", "options", "word"),
        [("fp32", ["--target", "torch-tensorrt"], "artefact, not a checkpoint"), ("ckpt8", ["--target", "torch-tensorrt"], "INT8"),
         ("fp32", ["--target", "rtx", "--precision", "fp16"], "--precision")],
    )  # fmt: skip
    def test_other_inputs_are_refused_in_one_line(self, gft_edge, made, name, options, word):
        done = gft_edge("build", made[name], *options)
        assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
        assert word in done.err


def test_calibration_cache_is_read_by_its_first_line(gft_edge, made, tmp_path):
    cache = tmp_path / "ranges.cache"
    cache.write_bytes(b"\xef\xbb\xbfTRT-100300-MinMaxCalibration\r\nimage: 3c010a14\r\n")
    more = ["--tensorrt", "10.3", "--weak", "--calibration-cache", cache]
    done = gft_edge("build", made["fp32"], "--target", "orin-nano", "--plan", *more)
    assert done.code == 0, done.err
    assert "IInt8MinMaxCalibrator reading" in done.out
    assert "no trtexec command does the same" in done.out
    assert "scales for 1 of " in done.err


@pytest.mark.parametrize("name", ["infinity", "zeros", "foreign", "garbage", "trt10_for_8"])
def test_a_cache_that_cannot_be_of_this_graph_is_refused(gft_edge, made, name):
    more = ["--tensorrt", "8.6", "--calibration-cache", CACHES / f"{name}.cache"]
    done = gft_edge("build", made["fp32"], "--target", "orin-nano", "--weak", "--plan", *more)
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
    assert f"{name}.cache: line {1 if name == 'trt10_for_8' else 2}" in done.err


def test_a_cache_calibrated_on_another_graph_is_refused(gft_edge, made, tmp_path):
    cache = tmp_path / "ranges.cache"
    ranges = Ranges({"image": 1.0}, "graph tensors", "max", 1, "0" * 64, None, None)
    write_cache(cache, CalibrationCache.of_ranges(ranges, "8.6.1"), ranges)
    more = ["--tensorrt", "10.3", "--weak", "--calibration-cache", cache]
    done = gft_edge("build", made["fp32"], "--target", "orin-nano", "--plan", *more)
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
    assert "its origin differs: graph_sha256 is 000000" in done.err


class TestOnAMachineWithTensorRT:
    """The module stands in by its version alone: nothing of it may be called before the refusals here."""

    @pytest.fixture(autouse=True)
    def here(self, monkeypatch):
        module = type(sys)("tensorrt")
        module.__version__ = "10.3.0"
        monkeypatch.setitem(sys.modules, "tensorrt", module)
        monkeypatch.setattr(building, "device_here", lambda: Recognized(device("orin-nano-8gb"), "test"))

    def test_engine_for_another_gpu_is_refused(self, gft_edge, made):
        done = gft_edge("build", made["fp32"], "--target", "agx-orin")
        assert done.code == 2
        assert "this is Jetson Orin Nano 8GB (test); build on Jetson AGX Orin 64GB, or --plan" in done.err

    @pytest.mark.parametrize("target", ["this-gpu", "orin-nano"])
    def test_the_installed_version_is_planned_for(self, gft_edge, made, target):
        done = gft_edge("build", made["fp32"], "--target", target, "--plan", "--tensorrt", "10.3.0")
        assert "10.3.0 (generation 10.3" in done.out
        assert gft_edge("build", made["fp32"], "--target", "this-gpu", "--plan").out == done.out or target != "this-gpu"

    def test_missing_driver_is_named(self, gft_edge, made):
        done = gft_edge("build", made["fp32"], "--target", "this-gpu")
        assert done.code == 2
        assert "there is no NVIDIA driver here" in done.err
