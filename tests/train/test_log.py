"""log.jsonl has each step once after any interruption, and a training estimates its duration early."""

import json

import pytest

from gft_edge.train.log import LOG, Pace, cut_log, training_log


def _steps(folder):
    return [json.loads(line)["step"] for line in (folder / LOG).read_text().splitlines()]


@pytest.mark.parametrize(("step", "kept"), [(0, []), (2, [1, 2]), (9, [1, 2, 3])])
def test_rows_behind_a_step_are_dropped(tmp_path, step, kept):
    rows = "".join(json.dumps({"step": number}) + "\n" for number in (1, 2, 3))
    (tmp_path / LOG).write_text(
        rows + '[1]\n\n{"loss": 1}\n{"step": 4, "lo'
    )  # others' lines, and the last one cut off by a kill
    cut_log(tmp_path, step)
    assert _steps(tmp_path) == kept
    with training_log(tmp_path, True, False) as write:
        write({"step": step + 1})
    assert _steps(tmp_path) == [*kept, step + 1]


def test_no_log_is_no_problem(tmp_path):
    cut_log(tmp_path, 3)
    assert list(tmp_path.iterdir()) == []


def _lines(seconds, steps):
    """Lines reported by a training with steps of this duration, ten times that for the first."""
    times = iter([10 * seconds + seconds * step for step in range(steps)])
    pace = Pace(steps, lambda: next(times))
    return [(number, line) for number in range(1, steps + 1) if (line := pace.step())]


def test_time_left_is_said_once_after_half_a_minute():
    ((step, line),) = _lines(0.5, 2605)
    assert (step, line) == (61, "0.5 s a step: about 21 min left for 2544 steps")


def test_a_training_of_days_is_warned_of_after_three_steps():
    ((step, line),) = _lines(79, 2605)
    assert step == 3
    assert line.startswith("79 s a step: about 57 h left for 2602 steps; fewer train.steps")


def test_a_short_training_says_nothing():
    assert _lines(0.1, 50) == []
