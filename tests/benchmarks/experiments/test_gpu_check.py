"""What `make gpu-check` leaves out, and why."""

from __future__ import annotations

from gft_edge.benchmarks.experiments import gpu_check
from gft_edge.benchmarks.experiments.gpu_check import main, plan
from gft_edge.hardware.environment import versions
from gft_edge.runtime.backends.table import BACKENDS

ALL = dict.fromkeys(versions(), "1")


def reasons(*planned):
    return {check.name: check.skipped for check in plan(*planned)}


def test_every_gpu_backend_is_planned():
    assert set(reasons(ALL, True, "8.9")) == {backend.name for backend in BACKENDS if backend.on_gpu}
    assert set(reasons(ALL, True, "8.9").values()) == {""}


def test_what_is_left_out_has_a_reason():
    assert set(reasons(ALL, False, None).values()) == {"no NVIDIA driver is loaded"}
    hopper = reasons(ALL, True, "9.0")
    assert {name for name, reason in hopper.items() if reason} == {"tensorrt_rtx", "onnxruntime-rtx"}
    assert "does not support compute capability 9.0" in hopper["tensorrt_rtx"]
    bare = reasons({**ALL, "onnxruntime-gpu": None, "tensorrt": None}, True, "8.9")
    assert "needs onnxruntime-gpu: pip uninstall onnxruntime" in bare["onnxruntime-cuda"]
    assert "gft-edge[trt]" in bare["tensorrt"]


def test_without_a_gpu_it_says_that_nothing_ran(monkeypatch, capsys):
    monkeypatch.setattr(gpu_check, "has_nvidia_driver", lambda: False)
    assert main([]) == 0
    out = capsys.readouterr().out
    assert "skipped  onnxruntime-cuda: no NVIDIA driver is loaded" in out
    assert out.splitlines()[-1] == "nothing ran: every check needs an NVIDIA GPU or a Jetson board"
