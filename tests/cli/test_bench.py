"""bench, and report of bench files, as a user runs them."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from gft_edge.storage.seals import write_sealed

DATA = Path(__file__).parents[1] / "recorded/trtexec"
QUICK = ["--rounds", 2, "--runs", 1, "--warmup", 0]
BARE = ["--skip", "stages", "throughput", "process", "--power", "none"]


@pytest.fixture(scope="module")
def host(gft_edge, made, tmp_path_factory):
    """A bench file of two artefacts at two batches, and what the command said."""
    out = tmp_path_factory.mktemp("bench") / "deep/host.json"
    command = ["bench", made["fp32"], made["int8"], *QUICK, "--batch", 1, 2, "--skip", "throughput", "process"]
    return out, gft_edge(*command, "--out", out)


def refused(done, message):
    assert (done.code, done.out) == (2, "")
    assert done.err.count("\n") == 1
    assert message in done.err


def test_bench_in_words(gft_edge, made):
    done = gft_edge("bench", made["fp32"], made["int8"], *QUICK, *BARE, "--batch", 2)
    assert done.code == 0
    head, names, _, first, second = done.out.splitlines()
    assert head.startswith("onnxruntime, batch 2, 1 thread(s), ")
    assert names.endswith("against fp32")
    assert first.endswith("1.00x")  # against itself, which is no measurement
    assert re.search(r"\d\.\d\dx \[\d+\.\d\d, \d+\.\d\d\]$", second)
    assert second.startswith("int8")


def test_a_sweep_has_a_table_for_each_point_and_says_why_there_is_no_energy(host):
    out, done = host
    assert done.code == 0
    heads = [line for line in done.out.splitlines() if line.startswith("onnxruntime, batch")]
    assert [head.split(", ")[1] for head in heads] == ["batch 1", "batch 2"]
    assert "end to end ms" in done.out
    assert "images/s" not in done.out  # skipped
    assert "energy: none, no power source (" in done.out
    data = json.loads(out.read_text())
    assert [(row["name"], row["batch"]) for row in data["results"]] == [
        ("fp32", 1),
        ("int8", 1),
        ("fp32", 2),
        ("int8", 2),
    ]
    assert all("no power source" in row["energy"]["refused"] for row in data["results"])
    assert data["machine"]["clocks_locked"] is False


def test_everything_is_measured_by_default(gft_edge, made):
    row = gft_edge("bench", made["fp32"], *QUICK, "--json").json["results"][0]
    assert {"stages", "throughput", "process", "energy"} <= set(row)
    assert row["process"]["peak_rss_bytes"] > 20e6
    assert row["throughput"]["in_flight"] == 2


def test_what_trtexec_measured_is_taken_in(gft_edge, made, tmp_path):
    files = ["--times", DATA / "times.json", "--layers", DATA / "layers-10.3.json", "--profile", DATA / "profile.json"]
    command = ["bench", made["int8"], "--trtexec-log", DATA / "orin-10.3.log", *files, "--target", "orin-nano-8gb"]
    done = gft_edge(*command, "--out", tmp_path / "orin.json")
    assert done.code == 0, done.err
    assert done.out.startswith("trtexec, batch 1, Orin\n")
    assert "INT8 has room to be faster here" in done.out
    row = json.loads((tmp_path / "orin.json").read_text())["results"][0]
    assert (row["name"], row["precision"], row["budget"]) == ("int8", "int8", "12-6")
    assert row["roofline"]["device"] == "orin-nano-8gb"
    assert row["implausible"] is None


def recorded(name):
    return (DATA.parent / f"tegrastats/{name}.txt").read_text(encoding="utf-8").strip()


def test_a_recorded_log_gives_the_energy_and_an_unknown_accuracy_none_per_correct_image(gft_edge, made, tmp_path):
    (tmp_path / "tegra.log").write_text("\n".join([recorded("orin-nano-jp6")] * 40))
    command = ["bench", made["fp32"], "--trtexec-log", DATA / "orin-10.3.log", "--power", tmp_path / "tegra.log"]
    done = gft_edge(*command, "--json")
    row = done.json["results"][0]
    assert row["energy"]["mj_per_image"] == pytest.approx(12479 / row["throughput"]["images_per_s"], rel=0.01)
    assert row["energy"]["mj_per_correct_image"] is None
    assert "energy per correct image: none, accuracy of fp32 on tensorrt is not known" in gft_edge(*command).out


def test_logs_of_power_that_cannot_be_used_are_one_line(gft_edge, made, tmp_path):
    file, late = tmp_path / "tegra.log", recorded("agx-orin-jp72")
    command = ["bench", "--trtexec-log", DATA / "orin-10.3.log", "--power", file]
    refused(gft_edge(*command), "cannot be read (No such file or directory)")
    file.write_text(late + "\n" + late.replace("09:08:28", "09:08:27"))
    refused(gft_edge(*command), "the clock goes backwards")
    refused(gft_edge("bench", made["fp32"], "--power", file), "it goes with --trtexec-log")
    file.write_text(late[:17])
    refused(gft_edge(*command), "holds no line of tegrastats")
    file.write_text(late)
    assert "energy: none, the timed window lasts 0 s" in gft_edge(*command).out
    refused(gft_edge(*command, "--power-interval", 0), "interval must be above 0 s")


def test_warnings_of_trtexec_are_shown(gft_edge):
    done = gft_edge("bench", "--trtexec-log", DATA / "tensorrt-4177.log")
    assert "tensorrt-4177: Throughput may be bound by Enqueue Time" in done.out


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["bench"], "give at least one ARTIFACT, or --trtexec-log FILE; see gft-edge bench --help"),
        (["bench", "{fp32}", "--times", "t.json"], "--times goes with --trtexec-log"),
        (["bench", "{fp32}", "{int8}", "--trtexec-log", "{log}"], "a run of trtexec is of one ARTIFACT"),
        (["bench", "--trtexec-log", "{log}", "--batch", "1", "2"], "a run of trtexec has one batch"),
        (["bench", "--trtexec-log", "{log}", "--trtexec-engine", "x"], "give --trtexec-log or --trtexec-engine"),
        (["bench", "--trtexec-engine", "x"], "--trtexec-engine needs the ARTIFACT"),
        (["bench", "{fp32}", "--trtexec-engine", "x"], "trtexec is not in PATH"),
        (["bench", "--trtexec-log", "{tmp}/none.log"], "none.log: cannot be read (No such file or directory)"),
        (["bench", "--trtexec-log", "{tmp}"], "cannot be read (Is a directory)"),
        (["bench", "--trtexec-log", "{log}", "--target", "orin-nano-8gb"], "--target needs the ARTIFACT"),
        (["bench", "{fp32}", "--target", "orin-nano-8gb"], "leave --target out"),
        (["bench", "{fp32}", "--target", "orin-nan"], "orin-nan"),
        (["bench", "{fp32}", "--power", "coal"], "unknown power source 'coal'"),
        (["bench", "{fp32}", "--skip", "lunch"], "invalid choice: 'lunch'"),
        (["bench", "{fp32}", "--lock-clocks"], "jetson_clocks is not on PATH"),
        (["bench", "{fp32}", "--backend", "tpu"], "unknown backend 'tpu'"),
        (["bench", "{fp32}", "--warmup", "nan"], "warm-up must not be negative"),
        (["bench", "{fp32}", "--in-flight", "0"], "argument --in-flight: must be at least 1"),
        (["report", "{tmp}", "{fp32}"], "is a folder; give one run folder, or only bench files"),
        (["report", "{tmp}", "--out", "{tmp}/x"], "--out is for bench files"),
        (["report", "{tmp}/none.json"], "no such file"),
    ],
)
def test_mistakes_are_one_line(gft_edge, made, tmp_path, command, message, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    places = {"tmp": tmp_path, "log": DATA / "orin-10.3.log", **made}
    refused(gft_edge(*(part.format(**places) for part in command)), message)
    assert not list(tmp_path.iterdir())


def test_a_log_cut_off_is_one_line_and_leaves_nothing(gft_edge, tmp_path):
    text = (DATA / "orin-10.3.log").read_text()
    (tmp_path / "half.log").write_text(text[: text.index("GPU Compute Time")])
    refused(gft_edge("bench", "--trtexec-log", tmp_path / "half.log", "--out", tmp_path / "o.json"), "cut off")
    assert [path.name for path in tmp_path.iterdir()] == ["half.log"]


@pytest.mark.parametrize("name", ["bench.json", "bench-orin.json"])
def test_a_file_of_another_schema_is_one_line(gft_edge, made, tmp_path, name):
    run = tmp_path / "run"
    shutil.copytree(made["fp32"], run / "fp32")
    write_sealed(run / name, {"results": [], "machine": {}})
    message = "schema None, this version reads 2; measure again with gft-edge bench"
    done = gft_edge("report", run)
    assert done.code == 0, done.err
    assert f"not used: {name}: " in done.out and message in done.out
    assert message in (run / "report.html").read_text()
    refused(gft_edge("report", run / name), message)


def test_host_and_board_on_one_page(gft_edge, made, host, tmp_path):
    board = tmp_path / "orin.json"
    log = ["--trtexec-log", DATA / "orin-10.3.log", "--times", DATA / "times.json", "--layers", DATA / "layers-11.json"]
    assert gft_edge("bench", made["int8"], *log, "--out", board).code == 0
    done = gft_edge("report", host[0], board, "--out", tmp_path / "page", "--json")
    assert done.code == 0, done.err
    page, merged = Path(done.json["page"]).read_text(), json.loads(Path(done.json["merged"]).read_text())
    assert [row["name"] for row in merged["results"]] == ["fp32", "int8", "fp32", "int8", "int8"]
    for row in merged["results"]:
        assert f"{row['p50_ms']:.2f}" in page
    (pair,) = merged["comparisons"]
    assert pair["against"] == "Orin, trtexec"
    assert f"{pair['speedup']:.2f}x" in page
    assert "hide host work" in page
    assert merged["results"][-1]["layers"]["int8"] in page
    for title in ("Side by side", "Latency over tokens", "Stages of a request", "Energy", "Layers of int8"):
        assert (title in page) == (title != "Latency over tokens")  # one budget
    assert page.count('<div class="wide"><svg') == page.count('<div class="narrow"><svg') == 3
    refused(gft_edge("report", done.json["merged"]), "holds merged figures")


def test_a_boards_file_laid_into_a_run_appears_beside_the_hosts(gft_edge, made, host, tmp_path):
    run = tmp_path / "run"
    for name in ("fp32", "int8"):
        shutil.copytree(made[name], run / name)
    shutil.copy(host[0], run / "bench.json")
    log = ["--trtexec-log", DATA / "ptlflow-65.log"]
    assert gft_edge("bench", made["int8"], *log, "--out", run / "bench-orin.json").code == 0
    assert gft_edge("report", run).code == 0
    page = (run / "report.html").read_text()
    assert "30.76" in page
    assert "Measured by trtexec" in page
    for row in json.loads(host[0].read_text())["results"]:
        assert f"{row['p50_ms']:.2f}" in page


def test_one_round_has_no_spread(gft_edge, made, tmp_path):
    sizes = ("--rounds", 1, "--runs", 2, "--warmup", 0, *BARE)
    done = gft_edge("bench", made["fp32"], made["int8"], *sizes, "--out", tmp_path / "b.json")
    assert done.code == 0
    assert done.out.count("one round") == 3  # in both rows, and said once below
    assert "[" not in done.out.splitlines()[-2]
    for row in json.loads((tmp_path / "b.json").read_text())["results"]:
        assert (row["variation"], row["verdict"], row["speedup_interval"]) == (None, "one round", None)
    assert gft_edge("report", tmp_path / "b.json", "--out", tmp_path / "page").code == 0


@pytest.mark.parametrize("batches", [("9",), ("1", "16")])
def test_batch_that_an_artefact_was_not_exported_for_is_refused_before_anything_runs(
    gft_edge, made, monkeypatch, batches
):
    monkeypatch.setattr("gft_edge.benchmarks.measuring.subjects.open_session", None)
    done = gft_edge("bench", made["fp32"], "--batch", *batches)
    assert (done.code, done.out) == (2, "")
    assert f"exported for requests of 1 to 8 images, not {batches[-1]}" in done.err
