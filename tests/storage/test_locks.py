"""One writer at a time: a folder's lock is exclusive between processes and goes when its holder dies."""

import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from gft_edge.errors import ConfigError
from gft_edge.storage.locks import locked

HOLD = """
import sys, time
from pathlib import Path
from gft_edge.storage.locks import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_second_process_is_told_and_gets_the_lock_when_the_first_is_killed(tmp_path, holder):
    with pytest.raises(ConfigError, match="another process"), locked(tmp_path, wait=0):
        pass
    holder.send_signal(signal.SIGKILL)
    with locked(tmp_path, wait=30):
        assert list(tmp_path.iterdir()) == []


def take(folder, wait):
    with locked(folder, wait):
        return True


def test_the_holder_may_take_it_again(tmp_path):
    with locked(tmp_path), ThreadPoolExecutor(1) as other:
        assert take(tmp_path, 0)
        with pytest.raises(ConfigError):  # and still holds it afterwards
            other.submit(take, tmp_path, 0).result()


def test_waits_for_its_turn(tmp_path):
    started = time.monotonic()
    with locked(tmp_path), ThreadPoolExecutor(1) as other, pytest.raises(ConfigError):
        other.submit(take, tmp_path, 0.2).result()
    assert time.monotonic() - started >= 0.2
    with locked(tmp_path, wait=0):
        pass
