from __future__ import annotations

import os
from pathlib import Path

import pytest

from gft_edge.benchmarks.torture import full, jobs
from gft_edge.benchmarks.torture.forks import Ended
from gft_edge.benchmarks.torture.full import FullResult


@pytest.mark.parametrize("trouble", ["full disk", "full standard output", "no permission"])
def test_predict_without_room_or_permission_says_so_in_one_line(made, tmp_path, trouble):
    every = full.measure(made, tmp_path, seed=0, sizes=2, verbs=["predict"]) if trouble == "full disk" else []
    every += full._full_output(made, tmp_path, ["predict"]) if trouble == "full standard output" else []
    every += full._denied(made, ["predict"]) if trouble == "no permission" else []
    notes = [result.note for result in every if result.note]
    if notes and trouble == "full disk":
        pytest.skip(notes[0])
    assert trouble in [result.trouble for result in every]
    for result in every:
        assert result.failed == 0, result


def test_a_file_system_that_cannot_be_mounted_is_a_note(made, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    (result,) = full._full_disks(made, tmp_path / "full", 0, 2, float("inf"), ["predict"])
    assert result.tried == result.failed == 0 and "mount" in result.note
    assert not os.path.ismount(tmp_path / "full")


@pytest.fixture
def stage(tmp_path):
    def prepare(folder: Path) -> None:
        (folder / "out.json").write_text("1")

    job = jobs.Job("predict", prepare, (), lambda folder: (folder / "out.json").read_text())
    stage = object.__new__(jobs.Stage)
    stage.job, stage.folder, stage.old, stage.new, stage.between = job, tmp_path, '"1"', '"2"', []
    stage.names = {"out.json"}
    return stage


LINE = "gft-edge predict: cannot write out.json: No space left on device\n"


@pytest.mark.parametrize(
    ("content", "code", "said", "kind"),
    [
        ("2", 0, "", "whole"),
        ("1", 2, LINE, "refused"),
        ("1", 0, "", "failed"),
        ("1", 1, f"Traceback\n{LINE}", "failed"),
        ("1", 2, "", "failed"),
        ("3", 2, LINE, "failed"),
    ],
)
def test_ends_are_judged_by_code_line_and_what_stands(stage, content, code, said, kind):
    (stage.folder / "out.json").write_text(content)
    assert full.judge(stage, Ended(code, said, 0.1))[0] == kind


def test_files_that_are_left_count_as_failed(stage):
    (stage.folder / "out.json").write_text("1")
    (stage.folder / ".out.json.tmp").touch()
    assert full.judge(stage, Ended(2, LINE, 0.1))[0] == "failed"


def test_what_is_neither_whole_nor_refused_failed():
    assert FullResult("train", "full disk", 5, 1, 3).failed == 1
