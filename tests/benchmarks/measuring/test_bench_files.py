from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gft_edge.benchmarks.measuring.bench_files import SCHEMA, merge, read_bench, unpaired_interval
from gft_edge.errors import ArtifactError, GFTEdgeError
from gft_edge.files import canonical_json
from gft_edge.storage.seals import sealed

ROW = {
    "name": "a",
    "backend": "onnxruntime",
    "batch": 1,
    "threads": 1,
    "model_sha256": "1" * 64,
    "rounds_ms": [[2.0, 2.1], [2.0, 1.9]],
    "p50_ms": 2.0,
    "p90_ms": 2.1,
    "p95_ms": 2.1,
    "p99_ms": 2.1,
    "variation": 0.01,
    "verdict": "stable",
    "speedup": 1.0,
    "speedup_interval": [1.0, 1.0],
}


def bench(machine, *rows):
    return {"schema": SCHEMA, "source": "x", "machine": machine, "results": [{**ROW, **row} for row in rows or ({},)]}


@pytest.fixture
def write(tmp_path):
    def sealed_text(data):
        try:
            return canonical_json(sealed(data))
        except (TypeError, ValueError):  # no object, or numbers that no writer leaves
            return json.dumps(data)

    def to(name, data) -> Path:
        (tmp_path / name).write_text(sealed_text(data))
        return tmp_path / name

    return to


HOST, BOARD = {"cpu": {"model": "Host CPU"}}, {"board": "Orin Nano", "cpu": {"model": "A78"}}


def test_a_board_stands_beside_the_host(write):
    found = merge(
        [
            write("host.json", bench(HOST)),
            write("board.json", bench(BOARD, {"p50_ms": 4.0, "rounds_ms": [[4.0], [4.0]]})),
        ]
    )
    assert [row["machine"] for row in found["results"]] == ["Host CPU", "Orin Nano"]
    assert [machine["label"] for machine in found["machines"].values()] == ["Host CPU", "Orin Nano"]
    (pair,) = found["comparisons"]
    assert (pair["of"], pair["against"]) == (
        "Host CPU, onnxruntime, 1 thread(s)",
        "Orin Nano, onnxruntime, 1 thread(s)",
    )
    assert pair["speedup"] == 0.5
    low, high = pair["speedup_interval"]
    assert low <= 0.5 <= high
    assert found["warnings"] == []


def test_other_graphs_of_the_same_name_are_told_and_not_compared(write):
    found = merge([write("x.json", bench(HOST)), write("y.json", bench(BOARD, {"model_sha256": "2" * 64}))])
    assert found["comparisons"] == []
    assert found["warnings"] == ["a: different graphs have this name; they are not compared"]


def test_what_makes_figures_incomparable_is_told(write):
    timing = [{"timing": {"cuda_graph": graph}} for graph in (True, False)]
    rows = [{"backend": "trtexec", "options": options, "threads": None} for options in timing]
    unstable = {"verdict": "unstable", "variation": 0.07}
    files = [write("x.json", bench(BOARD, rows[0])), write("y.json", bench(BOARD, rows[1], unstable))]
    said = "\n".join(merge(files)["warnings"])
    assert "different timing settings" in said
    assert "hide host work" in said
    assert "a, batch 1 on Orin Nano, onnxruntime, 1 thread(s): unstable, rounds vary by 7.0 %" in said


@pytest.mark.parametrize(("int8_ms", "pays"), [(1.0, "yes"), (3.0, "no"), (2.0, "unclear")])
def test_int8_is_held_against_its_twin(write, int8_ms, pays):
    samples = (int8_ms * np.random.default_rng(0).lognormal(0, 0.1, (20, 3))).tolist()
    twin = (2.0 * np.random.default_rng(1).lognormal(0, 0.1, (20, 3))).tolist()
    engine = {"backend": "trtexec", "budget": "12-6", "threads": None}
    rows = [
        {**engine, "name": "fp16", "precision": "fp32", "rounds_ms": twin, "p50_ms": 2.0},
        {
            **engine,
            "name": "int8",
            "precision": "int8",
            "rounds_ms": samples,
            "p50_ms": int8_ms,
            "layers": {"int8": "Why."},
        },
        {**engine, "name": "other budget", "precision": "fp32", "budget": "9-3"},
        {**engine, "name": "other model", "precision": "fp32", "model": {"backbone": "vit_base_patch16_224"}},
    ]
    (found,) = merge([write("x.json", bench(BOARD, *rows))])["int8"]
    assert (found["name"], found["twin"], found["why"], found["pays"]) == ("int8", "fp16", "Why.", pays)
    assert found["speedup"] == pytest.approx(2.0 / int8_ms)


def test_without_raw_samples_there_is_no_interval(write):
    found = merge([write("x.json", bench(HOST)), write("y.json", bench(BOARD, {"rounds_ms": []}))])
    assert found["comparisons"][0]["speedup_interval"] is None


def test_unpaired_interval_covers_the_true_ratio():
    covered = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        slow, fast = (level * rng.lognormal(0, 0.1, (40, 5)) for level in (3, 2))
        low, high = unpaired_interval(slow.tolist(), fast.tolist())
        covered += low <= 1.5 <= high
    assert covered >= 51


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: d.pop("schema"), "schema None, this version reads 2; measure again with gft-edge bench"),
        (lambda d: d.update(schema=1), "schema 1, this version reads 2"),
        (lambda d: d.update(schema=3), "schema 3, this version reads 2"),
        (lambda d: d.update(source="merge"), "holds merged figures"),
        (lambda d: d.pop("machine"), "no machine or no results"),
        (lambda d: d.update(results=[]), "no machine or no results"),
        (lambda d: d.update(results=[3]), "result 1 is incomplete or malformed: expected an object"),
        (lambda d: d["results"][0].pop("name"), "result 1 is incomplete or malformed: name None is not"),
        (lambda d: d["results"][0].update(p50_ms="2"), "p50_ms '2' is not"),
        (lambda d: d["results"][0].update(p50_ms=-2), "p50_ms -2 is not"),
        (lambda d: d["results"][0].update(p50_ms=0), "p50_ms 0 is not"),
        (lambda d: d["results"][0].update(rounds_ms=[[1], [-1]]), "malformed: rounds_ms"),
        (lambda d: d["results"][0].update(rounds_ms=[[]]), "malformed: rounds_ms"),
        (lambda d: d["results"][0].update(speedup_interval=[1]), "malformed: speedup_interval [1]"),
    ],
)
def test_files_that_cannot_be_used_are_named(write, damage, message):
    data = copy.deepcopy(bench(HOST))
    damage(data)
    with pytest.raises(ArtifactError, match=r"^bench file .*x\.json: ") as refused:
        read_bench(write("x.json", data))
    assert message in str(refused.value)


def test_a_file_given_twice_is_refused(write):
    path = write("x.json", bench(HOST))
    with pytest.raises(ArtifactError, match="given twice"):
        merge([path, path])


def test_missing_and_cut_off_files_are_named(tmp_path):
    with pytest.raises(ArtifactError, match="no such file"):
        read_bench(tmp_path / "none.json")
    (tmp_path / "half.json").write_text(json.dumps(bench(HOST))[:90])
    with pytest.raises(ArtifactError, match="cannot be read as JSON"):
        read_bench(tmp_path / "half.json")


LEAVES = st.none() | st.booleans() | st.integers(-3, 3) | st.floats() | st.text(max_size=3)
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3), max_leaves=8)


@given(st.dictionaries(st.sampled_from([*ROW]), VALUES, max_size=4))
def test_what_passes_the_check_can_be_merged(tmp_path_factory, changes):
    folder = tmp_path_factory.mktemp("merge")
    files = [folder / "x.json", folder / "y.json"]
    files[0].write_text(json.dumps(bench(HOST, changes)))
    files[1].write_text(json.dumps(bench(BOARD)))
    try:
        found = merge(files)
    except GFTEdgeError as error:
        assert "\n" not in str(error)
    else:
        json.dumps(found, allow_nan=False)
