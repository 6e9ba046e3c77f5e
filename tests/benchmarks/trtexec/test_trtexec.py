from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gft_edge.benchmarks.measuring.bench_files import SCHEMA
from gft_edge.benchmarks.trtexec import ingest as trtexec
from gft_edge.benchmarks.trtexec.ingest import EngineRun, RecordedRun, ingest, run_engine
from gft_edge.benchmarks.trtexec.output import parse_runs, parse_version
from gft_edge.benchmarks.trtexec.program import (
    Timing,
    find_trtexec,
    profile_arguments,
    run_trtexec,
    timing_arguments,
)
from gft_edge.benchmarks.trtexec.settings import timing_of
from gft_edge.errors import ArtifactError, ConfigError, GFTEdgeError
from gft_edge.files import sha256
from gft_edge.hardware.devices import DEVICES
from gft_edge.manifest import register_files

DATA = Path(__file__).parents[2] / "recorded/trtexec"
NANO = DEVICES["orin-nano-8gb"]
OLD, NEW = [(8, 5), (8, 6), (10, 3), (10, 16)], [(11, 0), (11, 4)]


def text(name):
    return (DATA / name).read_text()


# Commands


@pytest.mark.parametrize("version", [*OLD, *NEW])
@pytest.mark.parametrize("cuda_graph", [True, False])
@pytest.mark.parametrize("spin_wait", [True, False])
@pytest.mark.parametrize("transfers", [True, False])
def test_every_generation_is_told_to_time_alike(version, cuda_graph, spin_wait, transfers):
    wanted = {"cuda_graph": cuda_graph, "spin_wait": spin_wait, "transfers": transfers}
    arguments = timing_arguments(Path("m.plan"), version, Timing(**wanted))
    assert timing_of(" ".join(arguments), version) == wanted


@pytest.mark.parametrize("version", OLD)
def test_older_generations_need_the_switches(version):
    assert timing_arguments(Path("m.plan"), version, times=Path("t.json")) == [
        "--loadEngine=m.plan",
        "--useCudaGraph",
        "--useSpinWait",
        "--noDataTransfers",
        "--warmUp=1000",
        "--duration=10",
        "--percentile=50,90,95,99",
        "--exportTimes=t.json",
    ]


@pytest.mark.parametrize("version", NEW)
def test_11_has_them_on_by_itself(version):
    arguments = timing_arguments(Path("m.plan"), version)
    assert arguments == ["--loadEngine=m.plan", "--warmUp=1000", "--duration=10", "--percentile=50,90,95,99"]


def test_defaults_of_the_generations_differ():
    assert timing_of("trtexec --loadEngine=m", (10, 3)) == {"cuda_graph": False, "spin_wait": False, "transfers": True}
    assert timing_of("trtexec --loadEngine=m", (11, 0)) == {"cuda_graph": True, "spin_wait": True, "transfers": False}
    assert timing_of("trtexec 'unclosed --useCudaGraph", (8, 6))["cuda_graph"]
    assert timing_of("trtexec", None) is None


def test_streams_and_shapes_are_passed_on():
    arguments = timing_arguments(Path("m"), (10, 3), Timing(streams=2, shapes="image:8x3x224x224"))
    assert {"--infStreams=2", "--shapes=image:8x3x224x224"} <= set(arguments)


def test_layer_times_are_taken_in_a_run_of_their_own():
    old, new = (profile_arguments(Path("m"), v, Path("p"), Path("l")) for v in ((8, 6), (11, 0)))
    assert "--separateProfileRun" in old
    assert "--separateProfileRun" not in new
    assert {"--dumpProfile", "--exportProfile=p", "--exportLayerInfo=l"} <= set(old) & set(new)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("8502", (8, 5)),
        ("8601", (8, 6)),
        ("100300", (10, 3)),
        ("101100", (10, 11)),
        ("110401", (11, 4)),
        ("10.3.0", (10, 3)),
    ],
)
def test_versions(written, meant):
    assert parse_version(written) == meant


@pytest.mark.parametrize("written", ["", "x", "7.2", "12", "1.7.1", "²", "8.6\n9"])
def test_other_versions_are_refused(written):
    with pytest.raises(ConfigError, match="TensorRT version"):
        parse_version(written)


def test_the_binary_is_looked_for_where_jetpack_has_it(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    with pytest.raises(ConfigError, match=r"trtexec is not in PATH, .*--trtexec-log"):
        find_trtexec(places=[tmp_path / "bin"])
    binary = tmp_path / "bin/trtexec"
    binary.parent.mkdir()
    binary.write_text("#!/bin/sh\n")
    assert find_trtexec(places=[tmp_path / "bin"]) == binary
    assert find_trtexec(binary) == binary
    with pytest.raises(ConfigError, match="no such file"):
        find_trtexec(tmp_path / "nothing")


def test_a_run_that_fails_is_told_with_its_first_error(tmp_path):
    program = tmp_path / "trtexec"
    program.write_text("#!/bin/sh\necho '[E] Unknown option: '$1\necho '[E] more'\nexit 1\n")
    program.chmod(0o755)
    with pytest.raises(ArtifactError, match="ended with code 1: Unknown option: --fp16"):
        run_trtexec(program, ["--fp16"])


# Logs


@pytest.mark.parametrize("name", ["ptlflow-65.log", "tensorrt-4177.log", "yolov7-329.log"])
def test_recorded_logs_are_read_to_the_last_figure(name):
    (log,) = parse_runs(text(name))
    for metric, figures in log.metrics.items():
        line = next(line for line in text(name).splitlines() if f"[I] {metric}: " in line)
        assert line.count(" ms") == len(figures)
        for key, value in figures.items():
            written = f"percentile({key}%)" if key.isdigit() else key
            assert float(line.split(f"{written} = ")[1].split(" ms")[0]) == value
    assert len(log.metrics) == 5
    assert log.warnings[-1] == "the log ends before trtexec's own verdict (PASSED)"


def test_recorded_figures():
    (log,) = parse_runs(text("ptlflow-65.log"))
    assert log.metrics["Latency"]["median"] == 30.7585
    assert log.metrics["GPU Compute Time"]["99"] == 30.4204
    assert log.numbers == {"throughput_qps": 32.7261, "host_walltime_s": 3.08622, "gpu_time_s": 3.0635}
    assert (log.version, log.timing, log.variance) == (None, None, None)


def test_warnings_are_surfaced():
    assert parse_runs(text("tensorrt-4177.log"))[0].warnings[0].startswith("Throughput may be bound by Enqueue Time")
    (log,) = parse_runs(text("yolov7-329.log"))
    assert log.variance == pytest.approx(0.0210486)
    assert log.warnings[0].startswith("GPU compute time is unstable")


def test_a_whole_log():
    (log,) = parse_runs(text("orin-10.3.log"))
    assert (log.version, log.warnings) == ((10, 3), ())
    assert log.device == {"device": "Orin", "compute_capability": "8.7", "sms": "16"}
    assert log.timing == {"cuda_graph": True, "spin_wait": True, "transfers": False}
    assert log.numbers["queries"] == 2342
    assert log.numbers["engine_mib"] == 88.25
    assert log.numbers["warmup_ms"] == 1000


def test_lines_of_windows_and_of_a_coloured_terminal_are_read_alike():
    assert parse_runs(text("ptlflow-65.log").replace("\n", "\r\n")) == parse_runs(text("ptlflow-65.log"))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda t: "", "this is not output of trtexec"),
        (lambda t: "hello\nworld\n", "this is not output of trtexec; save what it prints: trtexec "),
        (lambda t: t[: t.index("=== Performance")], "cut off: its performance summary has no complete line 'Latency'"),
        (lambda t: t[: t.index("Latency: min") + 40], "cut off"),
        (lambda t: t[: t.index("[I] GPU Compute Time")], "no complete line 'GPU Compute Time'"),
        (lambda t: t.replace("Throughput", "Thr"), "cut off: its performance summary has no Throughput"),
        (lambda t: t.replace("min = 4.2 ms", "min = -4.2 ms"), "the clock went backwards"),
        (lambda t: t.replace("median = 4.25 ms", "median = 0 ms"), "a run of zero length"),
        (lambda t: t.replace("Throughput: 234.19", "Throughput: 23e9e9"), "'23e9e9' is not"),
        (lambda t: text("failed-11.log"), "the run failed: Unknown option: --fp16"),
    ],
)
def test_a_log_that_cannot_be_used_is_refused(damage, message):
    with pytest.raises(ArtifactError) as refused:
        parse_runs(damage(text("orin-10.3.log")), "trtexec log x.log")
    assert str(refused.value).startswith("trtexec log x.log: ")
    assert message in str(refused.value)


@given(st.integers(0, 2233))
def test_a_log_cut_off_anywhere_is_whole_or_refused(length):
    try:
        (log,) = parse_runs(text("orin-10.3.log")[:length])
    except ArtifactError as error:
        assert "\n" not in str(error)
    else:
        assert log.metrics["Latency"]["median"] == 4.25
        assert log.numbers["throughput_qps"] == 234.19


LINES = [line for name in ("orin-10.3.log", "yolov7-329.log", "failed-11.log") for line in text(name).splitlines()]


@given(st.lists(st.one_of(st.sampled_from(LINES), st.text(max_size=30)), max_size=30), st.text(max_size=5))
def test_no_log_is_more_than_an_error(lines, joint):
    with_errors(parse_runs, joint.join(["", *lines]))
    with_errors(parse_runs, "\n".join(lines))


def with_errors(function, *arguments):
    try:
        return function(*arguments)
    except GFTEdgeError as error:
        assert "\n" not in str(error)


# As a bench file


def test_a_log_alone_has_figures_and_no_interval():
    data = ingest(RecordedRun(DATA / "ptlflow-65.log"))
    row = data["results"][0]
    assert (data["schema"], data["source"], row["backend"], row["name"]) == (SCHEMA, "trtexec", "trtexec", "ptlflow-65")
    assert (row["p50_ms"], row["p95_ms"], row["rounds_ms"]) == (30.7585, 30.8396, [])
    assert row["speedup_interval"] is None
    assert row["stages"] == {"h2d": {"p50_ms": 0.247559}, "d2h": {"p50_ms": 0.177734}, "inference": {"p50_ms": 30.333}}
    assert json.loads(json.dumps(data, allow_nan=False)) == data


def test_transfers_that_were_off_are_absent_and_not_zero():
    row = ingest(RecordedRun(DATA / "yolov7-329.log"))["results"][0]
    assert set(row["stages"]) == {"inference"}
    assert row["p90_ms"] is None  # older trtexec prints one percentile
    assert (row["variation"], row["verdict"]) == (pytest.approx(0.0210486), "stable")


def test_images_per_second_are_queries_times_batch():
    row = ingest(RecordedRun(DATA / "orin-10.3.log", batch=8))["results"][0]
    assert row["throughput"]["images_per_s"] == pytest.approx(8 * 234.19)


def test_everything_that_was_exported_is_taken_in():
    files = [DATA / name for name in ("orin-10.3.log", "times.json", "layers-10.3.json", "profile.json")]
    row = ingest(RecordedRun(*files))["results"][0]
    assert len(row["rounds_ms"]) == 12
    assert row["layers"]["fused_attention"] == 2
    assert row["layers"]["timed"]
    assert row["options"]["timing"]["cuda_graph"]


@pytest.mark.parametrize("content", [None, "", "{", "[" * 100_000])
def test_files_that_are_no_json_are_refused(tmp_path, content):
    file = tmp_path / "times.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ArtifactError, match=r"times.json: cannot be read as JSON"):
        ingest(RecordedRun(DATA / "orin-10.3.log", times=file))


def test_an_engine_that_is_not_in_the_manifest_is_not_run(with_engine, monkeypatch):
    monkeypatch.setattr(trtexec, "run_trtexec", lambda *_: pytest.fail("must not run"))
    program = with_engine.path.parent / "trtexec"
    program.write_text("")
    for key, device, reason in (
        ("other", NANO, r"engine other: engines/other\.engine is not in the artefact's manifest; not loaded"),
        ("rtx", NANO, "built by tensorrt_rtx, not tensorrt; not loaded"),
        ("trt", DEVICES["agx-orin-64gb"], "built on orin-nano-8gb, this is agx-orin-64gb; not loaded"),
        ("trt", DEVICES["l4"], "for compute capability 8.7, this GPU has 8.9; not loaded"),
        ("odd", NANO, "made by TensorRT dev, which is not a known version"),
    ):
        with pytest.raises(ArtifactError, match=reason):
            run_engine(EngineRun(with_engine, key, program, 1, device=device))
    (with_engine.path / "engines/trt.engine").write_bytes(b"changed")
    with pytest.raises(ArtifactError, match=r"trt\.engine was changed since it was written.*not loaded"):
        run_engine(EngineRun(with_engine, "trt", program, 1, device=NANO))
    with pytest.raises(ConfigError, match="no NVIDIA GPU found here"):
        run_engine(EngineRun(with_engine, "trt", program, 1))


def test_an_engine_is_run_for_its_latency_and_for_its_layers(with_engine):
    """A program that prints and exports what was recorded stands in for trtexec; what it is told is checked."""
    program = with_engine.path.parent / "trtexec"
    program.write_text(
        f"""#!/bin/sh
echo "$@" >> {with_engine.path.parent}/told
for argument in "$@"; do case $argument in
    --exportTimes=*) cp {DATA}/times.json "${{argument#*=}}";;
    --exportLayerInfo=*) cp {DATA}/layers-10.3.json "${{argument#*=}}";;
    --exportProfile=*) cp {DATA}/profile.json "${{argument#*=}}";;
esac; done
cat {DATA}/orin-10.3.log
"""
    )
    program.chmod(0o755)
    row = run_engine(EngineRun(with_engine, "trt", program, 1, device=NANO))["results"][0]
    assert (row["name"], row["budget"]) == (with_engine.name, "12-6")
    assert len(row["rounds_ms"]) == 12
    assert row["layers"]["count"] == 11
    first, second = (with_engine.path.parent / "told").read_text().splitlines()
    assert "--useCudaGraph --useSpinWait --noDataTransfers" in first
    assert "--dumpProfile" not in first
    assert "--dumpProfile --separateProfileRun" in second
    with pytest.raises(ConfigError, match="jetson_clocks is not on PATH"):
        run_engine(EngineRun(with_engine, "trt", program, 1, device=NANO, lock_clocks=True))


@pytest.fixture
def with_engine(copied):
    """An artefact with engine files in its manifest."""
    artifact = copied("a")
    (artifact.path / "engines").mkdir()
    records = {"trt": ("tensorrt", "10.3.0"), "rtx": ("tensorrt_rtx", "1.7.1"), "odd": ("tensorrt", "dev")}
    for key, (module, version) in records.items():
        engine = artifact.path / f"engines/{key}.engine"
        engine.write_bytes(b"engine")
        record = {
            "key": key,
            "module": module,
            "version": version,
            "device": NANO.name,
            "compute_capabilities": [NANO.compute_capability],
            "engine_sha256": sha256(engine),
            "model_sha256": artifact.manifest.files["model.onnx"].sha256,
        }
        engine.with_suffix(".json").write_text(json.dumps(record))
    return register_files(artifact, [f"engines/{key}.{end}" for key in records for end in ("engine", "json")])
