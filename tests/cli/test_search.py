"""The verb search as a user runs it, its files, its commands, and every message."""

from __future__ import annotations

import dataclasses
import json
import shlex
import shutil

import numpy as np
import pytest

from gft_edge.benchmarks.measuring.artifact_facts import architecture
from gft_edge.benchmarks.measuring.bench_files import SCHEMA
from gft_edge.budget import TokenBudget
from gft_edge.checkpoint import load_checkpoint, read_info, save_checkpoint
from gft_edge.config.model import preset
from gft_edge.data.datasets import match_labels, open_images
from gft_edge.data.sets import Subset, spread
from gft_edge.model.build import build_model, logits_function
from gft_edge.model.macs import count_macs
from gft_edge.runtime.accuracy import measure_accuracy
from gft_edge.storage.seals import write_sealed

COMMON = ("--subset", 12, "--calibration-images", 8, "--threads", 1)


@pytest.fixture(scope="session")
def searched(gft_edge, tiny_checkpoint, animals, tmp_path_factory):
    """A search of the tiny model at two precisions: folder, and what it printed."""
    out = tmp_path_factory.mktemp("searched") / "front.json"
    done = gft_edge(
        *("search", tiny_checkpoint, "--data", animals, "--precision", "fp32,int8", "--align", 2, "--points", 60),
        *(*COMMON, "--out", out),
    )
    assert done.code == 0, done.err
    return out, done


@pytest.fixture
def refused(gft_edge, tiny_checkpoint, animals, tmp_path):
    """Runs a search that fails; returns its line."""

    def run(*arguments, code=2, checkpoint=tiny_checkpoint):
        names = checkpoint if isinstance(checkpoint, tuple) else (checkpoint,)
        done = gft_edge("search", *names, "--data", animals, *COMMON, *arguments, "--out", tmp_path / "f.json")
        assert done.code == code, done.err or done.out
        lines = [line for line in done.err.splitlines() if line.startswith("gft-edge search:")]
        assert len(lines) == 1, done.err
        return lines[0]

    return run


def test_points_are_measured_as_evaluate_measures_them(searched, animals, tiny_checkpoint):
    out, done = searched
    data = json.loads(out.read_text(encoding="utf-8"))
    checkpoint = load_checkpoint(tiny_checkpoint)
    info = checkpoint.info
    assert len(data["points"]) >= 60 and {p["precision"] for p in data["points"]} == {"fp32", "int8"}
    images = match_labels(open_images(str(animals), "val", 1000, 32), info.labels, "")
    sets = {False: Subset(images, spread(len(images), 12)), True: images}
    for full, chosen in sets.items():
        points = [p for p in data["points"] if p["precision"] == "fp32" and p["is_full_set"] == full]
        budgets = [TokenBudget.parse(p["budget"], 16) for p in points]
        found = measure_accuracy(
            [(b.id, logits_function(checkpoint.model, b)) for b in budgets], chosen, info.labels, info.preprocess
        )
        assert [p["right"] for p in points] == [f.right for f in found]
        assert [tuple(p["interval"]) for p in points] == [f.interval for f in found]
        assert [p["gmac"] for p in points] == [count_macs(info.model, b) / 1e9 for b in budgets]
    assert sum(p["is_reference"] for p in data["points"]) == 1
    front = [p for p in data["points"] if p["is_front"]]
    assert all(np.diff([p["top1"] for p in front]) > 0) and all(np.diff([p["gmac"] for p in front]) > 0)
    assert data["recommended"]["why"] in done.out


def test_page_and_plot_show_the_front(searched):
    out, _ = searched
    data = json.loads(out.read_text(encoding="utf-8"))
    page = out.with_suffix(".html").read_text(encoding="utf-8")
    figure = out.with_suffix(".svg").read_text(encoding="utf-8")
    chosen = data["points"][data["recommended"]["point"]]
    for text in ("dominated", "top-1, per cent", f"recommended, {chosen['budget']}"):
        assert text in figure and text in page
    assert shlex.split(data["recommended"]["commands"][-1])[2] in page
    for point in data["points"]:
        assert point["budget"] in page or not point["is_front"]


def test_a_report_shows_the_front(gft_edge, searched, tmp_path):
    shutil.copy(searched[0], tmp_path / "front.json")
    assert gft_edge("report", tmp_path).code == 0
    assert "The smallest model that is still right" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_commands_run_as_printed(gft_edge, tiny_checkpoint, animals, tmp_path):
    """INT8 alone, so that the recommended point has both commands; the artefact is of its budget and as right as measured."""
    out = tmp_path / "front.json"
    done = gft_edge(
        *("search", tiny_checkpoint, "--data", animals, "--precision", "int8", "--points", 4, *COMMON),
        *("--max-gmac", 0.001, "--out", out, "--json"),
    )
    assert done.code == 0, done.err
    data = json.loads(out.read_text(encoding="utf-8"))
    chosen = data["points"][data["recommended"]["point"]]
    for line in data["recommended"]["commands"]:
        program, *arguments = shlex.split(line)
        assert program == "gft-edge"
        ran = gft_edge(*arguments)
        assert ran.code == 0, ran.err
    manifest = json.loads((tmp_path / "chosen" / "manifest.json").read_text(encoding="utf-8"))
    assert TokenBudget.from_json(manifest["budget"]).id == chosen["budget"] and manifest["precision"] == "int8"
    quantized = load_checkpoint(tmp_path / "chosen-int8")
    images = match_labels(open_images(str(animals), "val", 1000, 32), quantized.info.labels, "")
    budget = TokenBudget.parse(chosen["budget"], 16)
    (found,) = measure_accuracy(
        [("int8", logits_function(quantized.model, budget))], images, quantized.info.labels, quantized.info.preprocess
    )
    assert found.right == chosen["right"]


def test_several_resolutions(gft_edge, tiny_checkpoint, tiny_config, tiny_info, make_model, animals, tmp_path):
    config = dataclasses.replace(tiny_config, image_size=64, budget=TokenBudget((32, 16), 64), depth=tiny_config.depth)
    info = dataclasses.replace(
        tiny_info, model=config, preprocess=dataclasses.replace(tiny_info.preprocess, height=64, width=64)
    )
    save_checkpoint(tmp_path / "large", info, make_model(config))
    out = tmp_path / "front.json"
    done = gft_edge(
        "search", tiny_checkpoint, tmp_path / "large", "--data", animals, "--points", 4, *COMMON, "--out", out
    )
    assert done.code == 0, done.err
    data = json.loads(out.read_text(encoding="utf-8"))
    assert [c["image_size"] for c in data["checkpoints"]] == [32, 64]
    assert {p["checkpoint"] for p in data["points"]} == {0, 1}


def test_unreachable_limit_names_the_nearest(refused, tiny_config):
    line = refused("--max-gmac", 1e-6, code=1)
    cheapest = count_macs(tiny_config, TokenBudget((7, 7), 16)) / 1e9
    assert "1e-06 billion MACs" in line and f"7-7 in fp32, {cheapest:.4g}" in line


def test_unreachable_accuracy_writes_the_front(refused, tmp_path):
    line = refused("--min-accuracy", "100%", "--points", 3, code=1)
    assert "100.00%" in line and "nearest" in line
    data = json.loads((tmp_path / "f.json").read_text(encoding="utf-8"))
    assert data["recommended"] is None and any(p["is_front"] for p in data["points"])
    assert "No point reaches" in (tmp_path / "f.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--target", "orin-nan"), ("orin-nan", "did you mean")),
        (("--backend", "onnxruntim"), ("onnxruntim", "onnxruntime")),
        (("--precision", "int9"), ("int9", "did you mean 'int8'")),
        (("--max-ms", 3), ("--max-ms", "--backend", "--costs")),
        (("--max-mj", 3), ("--max-mj", "--costs")),
        (("--max-gmac", -1), ("--max-gmac", "-1")),
        (("--min-accuracy", 94), ("--min-accuracy", "94%")),
        (("--min-accuracy", "high"), ("--min-accuracy", "'high'")),
        (("--target", "orin", "--backend", "onnxruntime"), ("--target and --backend",)),
        (("--precision", "fp32,fp32"), ("twice",)),
        (("--costs", "none.json"), ("none.json", "no such file")),
    ],
)
def test_refused_options(refused, arguments, words):
    line = refused(*arguments)
    assert all(word in line for word in words), line


def test_output_that_is_no_json_file(gft_edge, tiny_checkpoint, animals, tmp_path):
    done = gft_edge("search", tiny_checkpoint, "--data", animals, "--out", tmp_path / "front")
    assert done.code == 2 and ".json" in done.err


def test_checkpoints_that_cannot_be_searched(
    refused, quantized, tiny_checkpoint, tiny_info, tiny_model, tmp_path, make_model
):
    assert "quantized" in refused(checkpoint=quantized)
    config = preset("vit_tiny", image_size=32, num_classes=4)
    plain = dataclasses.replace(tiny_info, model=config)
    save_checkpoint(tmp_path / "plain", plain, build_model(config))
    assert "without stages" in refused(checkpoint=tmp_path / "plain")
    renamed = dataclasses.replace(read_info(tiny_checkpoint), labels=("ant", "bee", "cow", "dog"))
    save_checkpoint(tmp_path / "other", renamed, tiny_model)
    line = refused(checkpoint=(tiny_checkpoint, tmp_path / "other"))
    assert "label 2" in line and "'cow'" in line and "'cat'" in line


@pytest.fixture
def bench_file(tiny_config, tmp_path):
    """Writes what gft-edge bench writes of FP32 artefacts at these budgets, with energies."""

    def write(config, figures):
        rows = [
            {
                "name": f"b{number}",
                "backend": "onnxruntime",
                "batch": 1,
                "threads": 1,
                "precision": "fp32",
                "budget": budget,
                "model": architecture(config),
                "p50_ms": ms,
                "rounds_ms": [[ms]],
                "energy": {"mj_per_image": 10 * ms},
            }
            for number, (budget, ms) in enumerate(figures.items())
        ]
        file = tmp_path / "bench.json"
        write_sealed(file, {"schema": SCHEMA, "machine": {}, "results": rows})
        return file

    return write


def test_costs_of_a_board(gft_edge, tiny_checkpoint, tiny_config, animals, bench_file, refused, tmp_path):
    """Three measured budgets: these alone are candidates, with their own figures; of another model they are refused."""
    figures = {"16-16": 4.0, "12-6": 2.0, "9-3": 1.0}
    file, out = bench_file(tiny_config, figures), tmp_path / "front.json"
    done = gft_edge(
        *("search", tiny_checkpoint, "--data", animals, "--costs", file, "--max-ms", 3, "--max-mj", 25, *COMMON),
        *("--out", out),
    )
    assert done.code == 0, done.err
    data = json.loads(out.read_text(encoding="utf-8"))
    assert {p["budget"]: p["ms"] for p in data["points"]} == figures
    assert [p["is_within"] for p in data["points"]] == [True, True, False]
    assert data["cost"]["axis"] == "mj" and data["cost"]["kind"] == "measured"
    line = refused("--costs", file, "--max-ms", 0.5, code=1)
    assert "0.5 ms" in line and "9-3 in fp32, 1 ms" in line
    assert "another model: num_heads 4" in refused(
        "--costs", bench_file(dataclasses.replace(tiny_config, num_heads=4), figures)
    )
    assert "precision 'int8' is not measured" in refused(
        "--costs", bench_file(tiny_config, figures), "--precision", "int8"
    )


def test_a_bound_is_called_one(gft_edge, tiny_checkpoint, animals, tmp_path):
    out = tmp_path / "front.json"
    done = gft_edge(
        *("search", tiny_checkpoint, "--data", animals, "--target", "orin-nano", "--points", 3, *COMMON, "--out", out)
    )
    assert done.code == 0, done.err
    assert "roofline of Jetson Orin Nano" in done.out
    assert "a bound and no latency" in out.with_suffix(".html").read_text(encoding="utf-8")
