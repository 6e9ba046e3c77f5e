"""Ctrl-C while native code runs: held back, then raised."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import pytest

from gft_edge.export.tensorrt.interrupts import interrupts_held


def signalled(number, seen, error=None):
    """Gets a signal in the block, notes what is seen of it there, and ends the block with an error or without."""
    with interrupts_held() as interrupted:
        os.kill(os.getpid(), number)
        seen.append(bool(interrupted))
        if error is not None:
            raise error


def test_ctrl_c_is_raised_after_the_block_and_the_handler_is_back():
    before, seen = signal.getsignal(signal.SIGINT), []
    with pytest.raises(KeyboardInterrupt):
        signalled(signal.SIGINT, seen)
    assert seen == [True]
    assert signal.getsignal(signal.SIGINT) is before


def test_without_a_signal_nothing_happens():
    with interrupts_held() as interrupted:
        pass
    assert not interrupted


def test_an_error_of_the_block_gives_way_to_the_signal():
    with pytest.raises(KeyboardInterrupt):
        signalled(signal.SIGINT, [], ValueError("BuildCanceled"))


def test_sigterm_reaches_the_handler_that_was_there():
    got = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: got.append(number))
    try:
        with pytest.raises(KeyboardInterrupt):
            signalled(signal.SIGTERM, got)
        assert got == [True, signal.SIGTERM]  # first what the block saw
    finally:
        signal.signal(signal.SIGTERM, before)


def test_an_ignored_signal_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interrupts_held() as interrupted:
            os.kill(os.getpid(), signal.SIGINT)
        assert not interrupted
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_noted_interrupt_is_raised_in_other_threads_too():
    raised = []

    def work():
        try:
            with interrupts_held() as interrupted:
                interrupted.note()
        except KeyboardInterrupt:
            raised.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert raised == [True]


def test_a_second_ctrl_c_ends_the_process_at_once():
    code = (
        "import os, signal\nfrom gft_edge.export.tensorrt.interrupts import interrupts_held\n"
        "with interrupts_held():\n    [os.kill(os.getpid(), signal.SIGINT) for _ in range(2)]\n    print('went on')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (-signal.SIGINT, "")
