from __future__ import annotations

from gft_edge.benchmarks.torture import soak


def test_threads_long_use_and_reopening_give_the_same_answers_and_lose_nothing(made):
    for result in soak.measure(made.artifact, threads=4, requests=40, predictions=120, loads=12):
        assert result.tried >= 12
        assert result.failed == 0, result


def test_wrong_answers_lost_memory_and_files_count_as_failed():
    assert soak.SoakResult("x", 10, 10, 0, 0.1, 0, 1.0).failed == 0
    assert soak.SoakResult("x", 10, 10, 2, 100.0, 3, 1.0).failed == 4


def test_uses_end_when_their_time_is_up_and_say_how_much_they_did(made):
    results = soak.measure(made.artifact, threads=2, requests=10**6, predictions=10**6, loads=10**6, seconds=0.5)
    for result in results:
        assert 1 <= result.tried < result.target and result.wrong == 0, result
