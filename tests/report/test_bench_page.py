from __future__ import annotations

import json

import pytest

from gft_edge.benchmarks.merge import SCHEMA
from gft_edge.report.bench import cells, labels, series, write_bench_page

BASE = {"backend": "onnxruntime", "precision": "fp32", "threads": 1, "batch": 1, "machine": "m", "file": "f"}


def rows(*changes):
    return [{**BASE, "name": "a", "p50_ms": 2.0, "rounds_ms": [[2.0]], **change} for change in changes]


def test_labels_tell_what_differs_and_nothing_else():
    assert labels(rows({"name": "a"}, {"name": "b"})) == ["a", "b"]
    assert labels(rows({"batch": 1}, {"batch": 8})) == ["a\nbatch 1", "a\nbatch 8"]
    assert labels(rows({"threads": 0}, {"threads": 2, "machine": "n"})) == ["a\nall thread(s), m", "a\n2 thread(s), n"]
    assert labels(rows({"file": "x"}, {"file": "y"})) == ["a\nx", "a\ny"]


def test_curves_hold_everything_else_equal():
    points = rows(
        {"mean_tokens": 91, "p50_ms": 8.0},
        {"mean_tokens": 145, "p50_ms": 10.0},
        {"mean_tokens": 91, "p50_ms": 5.0, "precision": "int8"},
        {"mean_tokens": 145, "p50_ms": 6.0, "precision": "int8"},
        {"mean_tokens": 145, "p50_ms": 1.0, "backend": "trtexec"},
    )
    assert series(points, "mean_tokens") == {"fp32": [(91, 8), (145, 10)], "int8": [(91, 5), (145, 6)]}
    assert series(points[:1], "mean_tokens") == {}


def test_cells_are_empty_where_a_row_has_nothing():
    (cell,) = cells(rows({}))
    assert (cell["p99_ms"], cell["load_ms"], cell["peak_mb"], cell["speedup_text"]) == (None, None, None, "")


def _bench(*changes):
    results = [{k: v for k, v in row.items() if k not in ("machine", "file")} for row in rows(*changes)]
    return {"schema": SCHEMA, "source": "x", "machine": {"board": "Orin"}, "results": results}


def test_energy_is_drawn_or_the_reason_given(tmp_path):
    file = tmp_path / "b.json"
    file.write_text(json.dumps(_bench({"energy": {"refused": "no power source"}})))
    page, _ = write_bench_page([file], tmp_path)
    assert "No figure. no power source." in page.read_text()
    file.write_text(json.dumps(_bench({"energy": {"mj_per_image": 42.5, "net_mj_per_image": 21.0, "refused": None}})))
    page, _ = write_bench_page([file], tmp_path)
    assert "42.5" in page.read_text()
    assert "No figure" not in page.read_text()


def test_text_of_a_file_is_text_on_the_page(tmp_path):
    file = tmp_path / "b.json"
    file.write_text(json.dumps(_bench({"name": "<script>alert(1)</script>", "implausible": "<b>"})))
    page, _ = write_bench_page([file], tmp_path)
    assert "<script" not in page.read_text()
    assert "Implausible:" in page.read_text()


@pytest.mark.parametrize("count", [1, 2])
def test_same_files_same_page(tmp_path, count):
    files = [tmp_path / f"{i}.json" for i in range(count)]
    for file in files:
        file.write_text(json.dumps(_bench({}, {"batch": 2})))
    first = write_bench_page(files, tmp_path)[0].read_bytes()
    assert write_bench_page(files, tmp_path)[0].read_bytes() == first
