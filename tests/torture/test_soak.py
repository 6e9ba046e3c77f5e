from __future__ import annotations

from gft_edge.benchmarks.torture import soak


def test_threads_long_use_and_reopening_give_the_same_answers_and_lose_nothing(made):
    for result in soak.measure(made.artifact, threads=4, requests=40, predictions=150, loads=12):
        assert result.tried >= 12
        assert result.failed == 0, result


def test_wrong_answers_lost_memory_and_files_count_as_failed():
    assert soak.SoakResult("x", 10, 0, 0.1, 0, 1.0).failed == 0
    assert soak.SoakResult("x", 10, 2, 100.0, 3, 1.0).failed == 4
