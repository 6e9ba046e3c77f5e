from __future__ import annotations

import json
from itertools import pairwise

import pytest

from gft_edge.benchmarks.torture import __main__ as command
from gft_edge.benchmarks.torture.flips import FlipResult
from gft_edge.benchmarks.torture.mutants import Find, MutantResult
from gft_edge.benchmarks.torture.page import ROWS, markdown


def measured(**parts):
    return {"seed": 3, "seconds": 5.0, "machine": "a board", "versions": {"numpy": "2"}, "commit": "abc", **parts}


def test_page_says_how_it_was_measured_and_what_failed():
    flips = [
        {
            "kind": "policy",
            "tried": 10,
            "counts": {"refused": 7, "accepted": 3},
            "failed": 3,
            "examples": ["accepted: x"],
        }
    ]
    page = markdown(measured(flips=flips))
    assert "Seed 3" in page and "a board" in page and "abc" in page
    assert "| Damaged files | 10 | 3 |" in page
    assert "| policy | 10 | 7 | 0 | 0 | 3 | 0 |" in page
    assert "accepted: x" in page and "Hostile input" not in page


def test_page_has_every_part_and_well_formed_tables():
    find = {"reader": "graph", "kind": "hang", "detail": "a | b", "file": "graph/hang-1.onnx", "times": 2}
    flips = {"kind": "policy", "tried": 1, "counts": {"refused": 1}}
    parts = {
        "flips": [flips],
        "kills": [
            {"verb": "train", "how": "event", "tried": 2, "standing": {"old": 2}, "dead_ends": 0, "with_leftovers": 0}
        ],
        "signals": [
            {
                "verb": "train",
                "signal": "SIGINT",
                "tried": 1,
                "right_code": 1,
                "one_line": 1,
                "clean": 1,
                "slowest_s": 0.1,
                "finished": 2,
            }
        ],
        "mutants": [
            {"reader": "graph", "tried": 5, "counts": {"ok": 3, "hang": 2}, "most_megabytes": 3.0, "finds": [find]}
        ],
        "soak": [
            {"what": "threads", "tried": 9, "target": 10, "wrong": 0, "grown_mb": 0.0, "descriptors": 0, "seconds": 1.0}
        ],
        "writers": [{"pair": "train twice", "tried": 3, "both": 1, "one": 2, "examples": []}],
        "full": [
            {"verb": "train", "trouble": "full disk", "tried": 1, "whole": 0, "refused": 1, "examples": [], "note": ""},
            {"verb": "all", "trouble": "x", "tried": 0, "whole": 0, "refused": 0, "examples": [], "note": "No mount."},
        ],
        "repeat": [{"command": "export", "surroundings": "2 threads", "files": 3, "differing": ["golden.npz"]}],
    }
    for results in parts.values():
        for result in results:
            result["failed"] = 0
    page = markdown(measured(**parts))
    assert "9 of 10" in page and "No mount." in page
    for title in ROWS.values():
        assert f"## {title}" in page
    lines = page.splitlines()
    for above, below in pairwise(lines):
        if above.startswith("|") and below.startswith("|"):
            assert above.count("|") == below.count("|"), above


@pytest.mark.parametrize(("counts", "code"), [({"refused": 2}, 0), ({"refused": 1, "accepted": 1}, 1)])
def test_command_writes_figures_and_page_and_fails_where_something_failed(made, tmp_path, monkeypatch, counts, code):
    monkeypatch.setattr(command.flips, "measure", lambda *arguments: [FlipResult("policy", 2, counts)])
    files = [str(tmp_path / "out.json"), str(tmp_path / "page.md")]
    kept = ["--materials", str(made.root.parent), "--part", "flips"]
    assert command.main([*files, *kept, "--seed", "9"]) == code
    assert json.loads((tmp_path / "out.json").read_text())["flips"][0]["counts"] == counts
    assert "Seed 9" in (tmp_path / "page.md").read_text()


def test_results_know_what_failed():
    find = Find("graph", "hang", "x", "graph/hang.onnx", 2)
    assert MutantResult("graph", 5, {"ok": 3, "hang": 2}, 1.0, 3.0, (find,)).failed == 2
    assert FlipResult("x", 4, {"refused": 1, "harmless": 1, "edited": 1, "accepted": 1}).failed == 1


def test_a_part_that_breaks_off_is_named_and_the_others_are_measured(made, tmp_path, monkeypatch, capfd):
    def broken(*arguments):
        raise RuntimeError("no way")

    monkeypatch.setattr(command.flips, "measure", lambda *arguments: [FlipResult("policy", 2, {"refused": 2})])
    monkeypatch.setattr(command.writers, "measure", broken)
    files = [str(tmp_path / "out.json"), str(tmp_path / "page.md")]
    assert command.main([*files, "--materials", str(made.root.parent), "--part", "flips", "writers"]) == 1
    page = (tmp_path / "page.md").read_text()
    assert "Two writers: not measured (RuntimeError: no way)" in page and "| policy | 2 |" in page


def test_parts_are_spread_over_lanes_of_about_the_same_length():
    spread = command.lanes(tuple(command.PARTS), 2)
    lengths = [sum(command.PARTS[name] for name in lane) for lane in spread]
    assert sorted(name for lane in spread for name in lane) == sorted(command.PARTS)
    assert max(lengths) < 1.2 * min(lengths)
    assert command.lanes(["soak"], 2) == [["soak"]]
