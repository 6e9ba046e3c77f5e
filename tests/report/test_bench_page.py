from __future__ import annotations

import pytest

from gft_edge.benchmarks.measuring.bench_files import SCHEMA
from gft_edge.benchmarks.measuring.tables import columns
from gft_edge.errors import ArtifactError
from gft_edge.report.pages.bench import labels, series, write_bench_page
from gft_edge.report.pages.tables import bench_table
from gft_edge.storage.seals import write_sealed

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


def test_columns_that_no_row_fills_are_left_out():
    full = {"process": {"load_ms": 12.4, "peak_rss_bytes": 3e6}, "speedup": 2.0, "speedup_interval": [1.5, 2.5]}
    found = {
        column.title: column.cells for column in columns(rows({}, {"baseline": "b", "verdict": "unstable", **full}))
    }
    assert found == {
        "artefact": ("a", "a"),
        "precision": ("fp32", "fp32"),
        "p50 ms": ("2.00", "2.00"),
        "load ms": ("", "12"),
        "peak MB": ("", "3"),
        "against a": ("", "2.00x [1.50, 2.50]"),
    }


def test_unstable_figures_say_so():
    found = columns(rows({"variation": 0.031, "verdict": "unstable"}, {"variation": 0.01, "verdict": "stable"}))
    assert next(column.cells for column in found if column.title == "variation") == ("3.1% unstable", "1.0%")


def _bench(*changes):
    results = [{k: v for k, v in row.items() if k not in ("machine", "file")} for row in rows(*changes)]
    return {"schema": SCHEMA, "source": "x", "machine": {"board": "Orin"}, "results": results}


def test_energy_is_drawn_or_the_reason_given(tmp_path):
    file = tmp_path / "b.json"
    write_sealed(file, _bench({"energy": {"refused": "no power source"}}))
    page, _ = write_bench_page([file], tmp_path)
    assert "Not measured. no power source." in page.read_text()
    write_sealed(file, _bench({"energy": {"mj_per_image": 42.5, "net_mj_per_image": 21.0, "refused": None}}))
    page, _ = write_bench_page([file], tmp_path)
    assert "42.5" in page.read_text()
    assert "Not measured" not in page.read_text()


def test_text_of_a_file_is_text_on_the_page(tmp_path):
    file = tmp_path / "b.json"
    write_sealed(file, _bench({"name": "<script>alert(1)</script>", "implausible": "<b>"}))
    page, _ = write_bench_page([file], tmp_path)
    assert page.read_text().count("<script") == 1  # the page's own
    assert "<script>alert" not in page.read_text()
    assert "Implausible:" in page.read_text()


@pytest.mark.parametrize("count", [1, 2])
def test_same_files_same_page(tmp_path, count):
    files = [tmp_path / f"{i}.json" for i in range(count)]
    for file in files:
        write_sealed(file, _bench({}, {"batch": 2}))
    first = write_bench_page(files, tmp_path)[0].read_bytes()
    assert write_bench_page(files, tmp_path)[0].read_bytes() == first


def test_a_bench_file_with_parts_of_another_kind_is_one_line(tmp_path):
    data = _bench({})
    data["machine"]["cpu"] = ["x"]
    file = tmp_path / "b.json"
    write_sealed(file, data)
    with pytest.raises(ArtifactError, match=r"bench file .*b\.json: machine\.cpu: expected an object"):
        write_bench_page([file], tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["b.json"]


def test_what_matters_most_stands_in_the_first_columns():
    fast = {"name": "b", "speedup": 2.0, "speedup_interval": [1.5, 2.5], "baseline": "a", "verdict": "unstable"}
    full = {"p90_ms": 3.0, "variation": 0.05, "throughput": {"images_per_s": 300.0, "in_flight": 4}}
    found = bench_table(rows({"baseline": "a", **full}, {**fast, **full}))
    titles = [head.title for head in found.heads]
    assert titles[:4] == ["artefact", "precision", "p50 ms", "against a"]
    assert "images/s, 4 in flight" in titles
    cells = [cell.text for cell in found.rows[1]]
    assert cells[2:4] == ["2.00 unstable", "2.00x [1.50, 2.50] unstable"]
    assert {cell.tone for cell in found.rows[1] if "unstable" in cell.text} == {"warn"}
    assert found.rows[0][3].text == "baseline"


def test_a_row_of_a_log_has_few_entries(tmp_path):
    log = {"backend": "trtexec", "rounds_ms": [], "threads": None, "options": {"version": "10.3", "timing": {}}}
    log |= {"stages": {"inference": {"p50_ms": 1.5}}, "throughput": {"images_per_s": 600.0, "in_flight": None}}
    file = tmp_path / "orin.json"
    write_sealed(file, _bench(log))
    text = write_bench_page([file], tmp_path)[0].read_text()
    assert "trtexec 10.3." in text
    assert "Each dot is a request" not in text
    assert "Inference only" not in text
