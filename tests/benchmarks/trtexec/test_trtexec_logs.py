"""Logs as people bring them: other encodings, several runs, settings that did not hold, builds that failed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gft_edge.benchmarks.trtexec.failure import cause_of_failure
from gft_edge.benchmarks.trtexec.ingest import RecordedRun, ingest
from gft_edge.benchmarks.trtexec.output import parse_runs
from gft_edge.benchmarks.trtexec.settings import settings_of, shapes_of, timing_of
from gft_edge.config.model import preset
from gft_edge.errors import ArtifactError, ConfigError
from gft_edge.hardware.devices import DEVICES, device
from gft_edge.hardware.gpu_names import other_gpu
from gft_edge.manifest import Artifact, DeploymentManifest, FileInfo, TensorInfo
from gft_edge.preprocess import PreprocessSpec

DATA = Path(__file__).parents[2] / "recorded/trtexec"
WHOLE = (DATA / "orin-10.3.log").read_text()


def text(name):
    return (DATA / f"{name}.log").read_text()


def row(path, **options):
    return ingest(RecordedRun(path, **options))["results"][0]


# Encodings and prefixes


def test_a_log_of_powershell_is_read():
    assert (row(DATA / "utf16.log")["p50_ms"], row(DATA / "utf16.log")["throughput"]["images_per_s"]) == (2.31, 431.2)


@pytest.mark.parametrize(
    "encoded",
    [
        lambda t: t.encode("utf-8-sig"),
        lambda t: t.encode("utf-16"),
        lambda t: b"\xfe\xff" + t.encode("utf-16-be"),
        lambda t: t.encode("utf-16-le"),
        lambda t: t.encode("utf-16-be"),
        lambda t: t.encode("utf-16")[:-1] + b"",
        lambda t: t.replace("\n", "\r\n").encode(),
        lambda t: "".join(f"\x1b[32m{line}\x1b[0m\n" for line in t.splitlines()).encode(),
        lambda t: "".join(f"trt-1  | {line}\n" for line in t.splitlines()).encode(),
        lambda t: "".join(f"Jun 12 09:10:11 orin trtexec[812]: {line}\n" for line in t.splitlines()).encode(),
        lambda t: t.replace("[06/12/2026-09:10:23] ", "").encode(),
    ],
)
def test_every_encoding_and_prefix_gives_the_same_figures(tmp_path, encoded):
    file = tmp_path / "orin-10.3.log"
    file.write_bytes(encoded(WHOLE))
    found, plain = row(file), row(DATA / "orin-10.3.log")
    assert {**found, "warnings": 0} == {**plain, "warnings": 0}
    assert found["options"]["timing"] == {"cuda_graph": True, "spin_wait": True, "transfers": False}


# Batch


def test_the_batch_is_the_one_of_the_shapes():
    found = row(DATA / "shapes8.log")
    assert found["batch"] == 8
    assert found["throughput"]["images_per_s"] == pytest.approx(60.37, abs=0.01)
    with pytest.raises(ConfigError, match=r"was measured at batch 8, --batch says 4"):
        ingest(RecordedRun(DATA / "shapes8.log", batch=4))
    assert row(DATA / "shapes8.log", batch=8)["batch"] == 8


def test_a_log_that_does_not_tell_its_batch_says_so():
    found = row(DATA / "orin-10.3.log")
    assert (found["batch"], "does not contain the batch" in found["warnings"][-1]) == (1, True)
    assert row(DATA / "orin-10.3.log", batch=8)["warnings"] == []


@pytest.mark.parametrize(
    ("command", "shapes"),
    [
        ("trtexec --shapes=input:8x3x224x224 --fp16", {"input": (8, 3, 224, 224)}),
        ("trtexec --shapes=image:4x3x32x32,mask:4x17", {"image": (4, 3, 32, 32), "mask": (4, 17)}),
        ("trtexec --shapes=image: 4x3x32x32, mask:4x17 --fp16", {"image": (4, 3, 32, 32), "mask": (4, 17)}),
        ("trtexec --shapes=input:0:2x3x8x8,scale:scalar", {"input:0": (2, 3, 8, 8)}),
        ("trtexec --shapes='my image':2x3x8x8", {"my image": (2, 3, 8, 8)}),
        ("trtexec --minShapes=i:1x3x8x8 --optShapes=i:4x3x8x8 --maxShapes=i:8x3x8x8", {"i": (4, 3, 8, 8)}),
        ("trtexec --optShapes=i:4x3x8x8 --shapes=i:2x3x8x8", {"i": (2, 3, 8, 8)}),
        ("trtexec --onnx=m.onnx", {}),
        ("trtexec --shapes=", {}),
    ],
)
def test_shapes_of_a_command(command, shapes):
    assert shapes_of(command) == shapes


OVERRIDDEN = (
    "Dynamic dimensions required for input: input, but no shapes were provided. Automatically overriding shape to"
)


@pytest.mark.parametrize(
    ("lines", "command", "batch"),
    [
        (["[I] Input inference shape : input=3x3x640x640"], "", 3),
        (["[I] Input binding for input with dimensions 5x3x64x64 is created."], "trtexec --shapes=input:2x3x64x64", 5),
        (["[I] Created input binding for input with dimensions 5x3x64x64"], "", 5),
        (["[I] Input binding for i with dimensions 5x3x8x8 is created.", "[I] Input inference shape : i=2x3x8x8"], "", 5),
        ([f"[W] {OVERRIDDEN}: 1x3x9x9"], "trtexec", 1),
        ([], "trtexec --shapes=image:4x3x32x32,mask:17x17", 4),
        ([], "trtexec --shapes=a:4x3x32x32,b:2x3x32x32", None),
        ([], "trtexec --shapes=scale:7", None),
        (["[I] Batch: Explicit"], "trtexec --onnx=m.onnx", None),
        (["[I] Batch: 16"], "trtexec --uff=m.uff --batch=16", 16),
    ],
)  # fmt: skip
def test_the_batch_in_force(lines, command, batch):
    assert settings_of(lines, command, (8, 6)).batch() == batch


def test_the_artefacts_own_input_tells_the_batch_among_several():
    settings = settings_of([], "trtexec --shapes=a:4x3x32x32,b:2x3x32x32", (10, 3))
    assert (settings.batch("b"), settings.batch("a")) == (2, 4)


def test_an_implicit_batch_is_in_the_throughput_already(tmp_path):
    file = tmp_path / "x.log"
    file.write_text(WHOLE.replace("[I] SMs: 16", "[I] SMs: 16\n[I] Batch: 4").replace("v100300", "v8401"))
    assert (row(file)["batch"], row(file)["throughput"]["images_per_s"]) == (4, 234.19)


@pytest.fixture(scope="module")
def artifacts():
    """Of images of 32 pixels, with a static batch of 2 and with a dynamic one."""
    model = preset("gft_tiny", image_size=32, patch_size=8, num_classes=3)
    found = {}
    for name, batch, axis in (("static", (2, 2, 2), 2), ("dynamic", (1, 1, 8), "batch")):
        manifest = DeploymentManifest(
            model=model,
            labels=("a", "b", "c"),
            preprocess=PreprocessSpec(32, 32),
            budget=model.budget,
            precision="fp32",
            rest="fp32",
            maps="none",
            batch=batch,
            opset=18,
            inputs=(TensorInfo("image", "float32", (axis, 3, 32, 32), "image"),),
            outputs=(TensorInfo("logits", "float32", (axis, 3), "logits"),),
            checkpoint_sha256="0" * 64,
            files={"model.onnx": FileInfo("0" * 64, 1)},
        )
        found[name] = Artifact(Path(name), manifest)
    return found


def test_the_artefacts_batch_and_the_logs_must_agree(artifacts, tmp_path):
    with pytest.raises(ArtifactError, match=r"was measured at batch 8, artefact .*static takes batch 2 only"):
        ingest(RecordedRun(DATA / "shapes8.log", artifact=artifacts["static"]))
    assert row(DATA / "orin-10.3.log", artifact=artifacts["static"])["batch"] == 2  # the log does not tell
    with pytest.raises(ArtifactError, match=r"--batch says 4, artefact .*takes batch 2 only"):
        ingest(RecordedRun(DATA / "orin-10.3.log", artifact=artifacts["static"], batch=4))
    found = row(DATA / "shapes8.log", artifact=artifacts["dynamic"])
    assert (found["batch"], found["warnings"]) == (
        8,
        ["an image of the log is 3x224x224, of the artefact 3x32x32: the log is of another model"],
    )


# Several runs


def test_each_run_has_its_own_command():
    data = ingest(RecordedRun(DATA / "two.log"))
    commands = [found["options"]["command"] for found in data["results"]]
    assert commands == ["trtexec --onnx=vit.onnx --fp16", "trtexec --onnx=vit.onnx --fp16 --int8"]
    assert [found["p50_ms"] for found in data["results"]] == [4.02, 3.11]
    assert data["results"][1]["speedup"] == pytest.approx(4.02 / 3.11)
    assert len({found["name"] for found in data["results"]}) == 2
    assert json.loads(json.dumps(data)) == data


def test_of_a_second_run_that_is_cut_off_the_first_is_taken_and_it_is_said():
    found = row(DATA / "second-cut.log")
    assert (found["options"]["command"], found["p50_ms"]) == ("trtexec --onnx=vit.onnx --fp16", 4.02)
    assert "run 2 of 2: cut off" in found["warnings"][0]
    assert "--int8" in found["warnings"][0]


def test_a_failed_run_beside_a_complete_one_is_said():
    (found,) = parse_runs(text("foreign-node") + WHOLE)
    assert found.metrics["Latency"]["median"] == 4.25
    assert "run 1 of 2: the run failed: Could not find any implementation for node" in found.warnings[0]


def test_runs_that_cannot_be_told_apart_are_refused(artifacts):
    two = text("two")
    with pytest.raises(ConfigError, match=r"holds 2 runs \(1: trtexec .*; 2: trtexec .*\)"):
        ingest(RecordedRun(DATA / "two.log", artifact=artifacts["dynamic"]))
    with pytest.raises(ConfigError, match="holds 2 runs"):
        ingest(RecordedRun(DATA / "two.log", times=DATA / "times.json"))
    with pytest.raises(ArtifactError, match="2 performance summaries under one command"):
        parse_runs(two.replace("&&&& ", "&&&& was "))
    summary = two[: two.index("&&&& PASSED")]
    second = two[two.rindex("&&&& PASSED") :]
    with pytest.raises(ArtifactError, match=r"begins as '.* --fp16' and ends as '.* --int8'"):
        parse_runs(summary + second)
    with pytest.raises(ArtifactError, match=r"run 1 of 2: the run failed.*; run 2 of 2: the run failed"):
        parse_runs(text("foreign-node") + text("failed-11"))


def test_runs_of_several_gpus_are_refused(tmp_path):
    file = tmp_path / "x.log"
    file.write_text(WHOLE + text("shapes8"))
    with pytest.raises(ArtifactError, match=r"runs of several GPUs \(Orin, Tesla T4\)"):
        ingest(RecordedRun(file))


# Settings in force


def test_a_setting_that_was_ignored_did_not_hold():
    (log,) = parse_runs(text("graph-ignored"))
    assert log.timing == {"cuda_graph": False, "spin_wait": True, "transfers": False}
    assert any("disabled CUDA graph" in warning for warning in log.warnings)
    assert any("times are too long" in warning for warning in log.warnings)


@pytest.mark.parametrize(
    ("lines", "timing"),
    [
        ([], (True, True, False)),
        (["[I] CUDA Graph: Disabled"], (False, True, False)),
        (["[I] Spin-wait: Disabled", "[I] Data transfers: Enabled"], (True, False, True)),
        (["[I] CUDA Graph: Enabled", "[W] The specified --useCudaGraph flag has been ignored."], (False, True, False)),
        (["[W]   If not already in use, --useCudaGraph (utilize CUDA graphs) may increase it."], (True, True, False)),
        (["[W] --noDataTransfers has no effect here."], (True, True, True)),
    ],
)  # fmt: skip
def test_what_the_run_reports_comes_before_what_was_asked_for(lines, timing):
    settings = settings_of(lines, "trtexec --useCudaGraph --useSpinWait=true --noDataTransfers", (10, 3))
    assert tuple(settings.timing.values()) == timing


def test_trtexec_takes_a_switch_whatever_its_value():
    for value in ("", "=true", "=false", "=0"):
        assert timing_of(f"trtexec --useSpinWait{value}", (8, 6))["spin_wait"]
    assert not timing_of("trtexec --noSpinWait=true", (11, 0))["spin_wait"]


def test_settings_of_an_unknown_version_are_those_that_are_reported():
    assert settings_of([], "trtexec --useCudaGraph", None).timing is None
    lines = ["[I] CUDA Graph: Enabled", "[I] Spin-wait: Disabled", "[I] Data transfers: Enabled"]
    assert settings_of(lines, "", None).timing == {"cuda_graph": True, "spin_wait": False, "transfers": True}


def test_latency_of_several_streams_says_so():
    found = row(DATA / "streams4.log")
    assert (found["options"]["streams"], found["throughput"]["in_flight"]) == (4, 4)
    assert "while 4 streams run" in found["meaning"]
    assert found["warnings"][0].startswith("4 streams ran at a time")
    assert settings_of([], "trtexec --infStreams=3", (10, 3)).streams == 3
    assert settings_of([], "trtexec --streams=2", (8, 2)).streams == 2


# Logs without figures


def test_the_layout_of_old_versions_is_named():
    with pytest.raises(ArtifactError, match=r"layout of trtexec before TensorRT 8\.2"):
        ingest(RecordedRun(DATA / "trt72.log"))


def test_without_throughput_there_are_no_images_per_second():
    found = row(DATA / "qps0.log")
    assert (found["batch"], found["throughput"]["images_per_s"], found["p50_ms"]) == (16, None, 44.6)
    assert any("throughput of 0" in warning for warning in found["warnings"])
    assert any("0 queries" in warning for warning in found["warnings"])


@pytest.mark.parametrize(
    ("errors", "cause"),
    [
        (["Error[1]: [x.cpp::f::67] Error Code 1: Cuda Runtime (out of memory)", "Engine set up failed"], "Cuda Runtime (out"),
        (["unrelated", "x.cpp:1 In function f: [8] Assertion failed: \"Plugin not found\"", "Failed to parse"], "Plugin not found"),
        (["Engine could not be created from network", "the real one", "Engine set up failed"], "the real one"),
        (["Engine set up failed"], "Engine set up failed"),
        (["Unknown option: --fp16"], "Unknown option: --fp16"),
        (["Error[2]: [engine.cpp::g::1] Error Code 2: Internal Error (Assertion x failed. )"], "Assertion x failed."),
        ([], "it gives no reason"),
    ],
)  # fmt: skip
def test_the_cause_is_found_among_the_errors(errors, cause):
    assert cause in cause_of_failure("\n".join(f"[12/25/2023-10:00:00] [E] {error}" for error in errors))


def test_a_failed_build_names_the_node():
    with pytest.raises(ArtifactError) as refused:
        ingest(RecordedRun(DATA / "foreign-node.log"))
    assert str(refused.value).endswith(
        "the run failed: Could not find any implementation for node "
        "{ForeignNode[/layers.0/blocks.0/attn/Gather_2_output_0[Constant].../layers.0/blocks.0/attn/Reshape]}."
    )


def test_a_failed_run_without_its_verdict_is_no_cut_off_one():
    cut = text("foreign-node")
    with pytest.raises(ArtifactError, match="the run failed: Could not find any implementation"):
        parse_runs(cut[: cut.index("&&&& FAILED")])


# The GPU


@pytest.mark.parametrize(
    ("name", "capability", "target", "same"),
    [
        ("Tesla T4", "7.5", "t4", True),
        ("Tesla T4", "7.5", "l4", False),
        ("NVIDIA L4", "8.9", "l4", True),
        ("NVIDIA L40S", "8.9", "l4", False),
        ("NVIDIA A100-SXM4-40GB", "8.0", "a100-40gb", True),
        ("NVIDIA A100-SXM4-80GB", "8.0", "a100-40gb", False),
        ("NVIDIA H100 80GB HBM3", "9.0", "h100", True),
        ("NVIDIA H200", "9.0", "h100", False),
        ("Orin", "8.7", "orin-nano", True),
        ("Orin", "8.7", "agx-orin", True),
        ("Jetson Orin Nano", "8.7", "agx-orin", False),
        ("Orin", "8.7", "xavier-nx", False),
        ("Xavier", "7.2", "orin-nx", False),
        ("NVIDIA Thor", "11.0", "thor", True),
        ("Orin", "", "thor", False),
        ("", "8.7", "orin-nano", True),
        ("", "7.5", "l4", False),
        ("", "", "l4", True),
    ],
)
def test_the_gpu_of_a_log(name, capability, target, same):
    found = {key: value for key, value in (("device", name), ("compute_capability", capability)) if value}
    problem = other_gpu(found, device(target))
    assert (problem is None) == same
    if problem:
        assert device(target).title in problem
        assert name in problem


def test_every_profile_knows_itself():
    for profile in DEVICES.values():
        assert other_gpu({"device": profile.title, "compute_capability": profile.compute_capability}, profile) is None


def test_a_log_of_another_gpu_has_no_bound(artifacts):
    found = row(DATA / "shapes8.log", artifact=artifacts["dynamic"], target=device("l4"))
    assert "roofline" not in found
    assert any("Tesla T4" in warning and "L4" in warning for warning in found["warnings"])
    assert "roofline" in row(DATA / "shapes8.log", artifact=artifacts["dynamic"], target=device("t4"))


def test_a_run_that_only_built_is_no_cut_off_one():
    command = "TensorRT.trtexec [TensorRT v100300] # trtexec --onnx=m.onnx --saveEngine=e --skipInference"
    with pytest.raises(ArtifactError, match=r"timed nothing \(trtexec --onnx=m.onnx .*without --skipInference"):
        parse_runs(f"&&&& RUNNING {command}\n[I] Engine built in 3 sec.\n&&&& PASSED {command}\n", "log")
