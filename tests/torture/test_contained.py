"""The measurement itself: what must not happen is noticed, named and does not end it."""

from __future__ import annotations

import os
import signal
import socket
import time

import numpy as np
import pytest

from gft_edge.benchmarks.torture.contained import Limits, run_contained
from gft_edge.errors import ConfigError


def refused():
    raise ConfigError("no\nline")


def broken():
    raise KeyError("a")


def crashed():
    os.kill(os.getpid(), signal.SIGABRT)


def hanging():
    while True:
        time.sleep(0.1)


def hungry():
    np.ones(300 << 20, np.uint8)
    return "ok"


HELD = []


def hoarding():
    HELD.append(np.ones(300 << 20, np.uint8))
    return "ok"


def starving():
    return np.ones(1 << 45, np.uint8)


def reaching():
    try:
        socket.create_connection(("192.0.2.1", 80), 0.1)
    except OSError:
        return "ok"


def shell():
    os.system("true")
    return "ok"


def fine():
    return "ok"


@pytest.mark.parametrize(
    ("attack", "kind", "said"),
    [
        (refused, "refused", "no line"),
        (broken, "traceback", "KeyError"),
        (crashed, "crash", "SIGABRT"),
        (hanging, "hang", "no answer"),
        (hungry, "memory", "MB"),
        (hoarding, "memory", "MB"),
        (starving, "memory", "MemoryError"),
        (reaching, "reached out", "socket"),
        (shell, "reached out", "os.system"),
    ],
)
def test_what_happens_is_named_and_the_next_attack_runs(attack, kind, said, monkeypatch):
    import gft_edge.benchmarks.torture.contained as contained

    monkeypatch.setattr(contained, "PATIENCE_S", 0.2)
    found = list(run_contained([fine, attack, fine], Limits(seconds=0.3 if kind == "hang" else 10, megabytes=200)))
    assert [outcome.kind for outcome in found] == ["ok", kind, "ok"]
    assert [outcome.number for outcome in found] == [0, 1, 2]
    assert said in found[1].detail


def test_nothing_begins_after_the_time_is_up():
    assert list(run_contained([fine] * 3, until=time.monotonic() - 1)) == []


def test_memory_that_the_process_had_freed_counts_again():
    np.ones(31 << 20, np.uint8)  # from its release on, glibc takes blocks of this size from the heap
    blocks = [np.ones(20 << 20, np.uint8) for _ in range(20)]
    above = [bytes(200_000) for _ in range(10)]  # keeps the heap from shrinking
    del blocks
    found = list(run_contained([hungry], Limits(megabytes=200)))
    assert [outcome.kind for outcome in found] == ["memory"] and above
