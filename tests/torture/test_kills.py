from __future__ import annotations

import signal
from pathlib import Path

import pytest

from gft_edge.benchmarks.torture import jobs, kills
from gft_edge.benchmarks.torture.forks import Ended, run_verb
from gft_edge.benchmarks.torture.kills import Killed


@pytest.mark.parametrize("verb", ["calibrate", "predict"])
def test_a_kill_leaves_old_or_new_and_one_can_go_on(made, tmp_path, verb):
    results = kills.measure(made, tmp_path, seed=0, events=2, moments=1, verbs=[verb])
    assert [result.how for result in results] == ["event", "moment"]
    for result in results:
        assert result.tried >= 1
        assert result.failed == 0, result


def test_a_verb_kills_itself_before_the_event_asked_for(made, tmp_path):
    argv = ("predict", made.plain, made.image, "--out", "out.json")
    whole = run_verb(argv, tmp_path)
    assert whole.code == 0 and whole.events >= 3, whole
    (tmp_path / "out.json").unlink()
    killed = run_verb(argv, tmp_path, kill_at=1)
    assert killed.code == -signal.SIGKILL
    assert not (tmp_path / "out.json").exists()
    assert run_verb(argv, tmp_path, kill_at=whole.events + 1).code == 0


def test_torn_results_dead_ends_and_leftovers_count_as_failed():
    found = [
        Killed(1, "old", True, ()),
        Killed(2, "torn", True, ()),
        Killed(3, "absent", False, (), "no way on"),
        Killed(4, "new", True, (".x",)),
    ]
    result = kills._summary("train", "event", found)
    assert (result.tried, result.failed, result.dead_ends, result.with_leftovers) == (4, 3, 1, 1)
    assert len(result.examples) == 3


def test_a_signal_without_its_code_or_line_or_with_leftovers_counts_as_failed():
    def judged(code: int, said: str, *left: str) -> int:
        return kills._signals("train", signal.SIGTERM, [(Ended(code, said, 0.1, 0, True), left)]).failed

    assert judged(143, "step 1\ngft-edge train: terminated\n") == 0
    assert judged(-15, "gft-edge train: terminated\n") == 1
    assert judged(143, "") == 1
    assert judged(143, "Traceback ...\ngft-edge train: terminated\n") == 1
    assert judged(143, "gft-edge train: terminated\n", ".out.abc") == 1


def test_a_torn_result_is_told_from_old_and_new(tmp_path):
    def prepare(folder: Path) -> None:
        (folder / "out.json").write_text("1")

    job = jobs.Job("predict", prepare, (), lambda folder: (folder / "out.json").read_text())
    stage = object.__new__(jobs.Stage)
    stage.job, stage.folder, stage.old, stage.new, stage.between = job, tmp_path, '"1"', '"2"', []
    for content, standing in (("1", "old"), ("2", "new"), ("3", "torn")):
        (tmp_path / "out.json").write_text(content)
        assert stage.standing()[0] == standing
    (tmp_path / "out.json").unlink()
    assert stage.standing()[0] == "absent"
