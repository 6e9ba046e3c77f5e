from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from gft_edge.errors import ConfigError, GFTEdgeError
from gft_edge.hardware.clocks import locked_clocks


@pytest.fixture
def calls(tmp_path, monkeypatch):
    """A jetson_clocks on PATH that notes its calls, stores a file, and fails for the calls in the file ``fail``."""
    folder = tmp_path / "bin"
    folder.mkdir()
    log = tmp_path / "calls"
    script = folder / "jetson_clocks"
    script.write_text(
        f"""#!/bin/sh
echo "${{1:-lock}}" >> {log}
if grep -qx -e "${{1:-lock}}" {tmp_path}/fail 2>/dev/null; then echo "Error! no way" >&2; exit 1; fi
case "$1" in
  --store) test ! -e "$2" && echo state > "$2" ;;
  --restore) grep -q state "$2" ;;
esac
"""
    )
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", None)
    return lambda: log.read_text().split() if log.exists() else []


ALL = ["--store", "lock", "--restore"]


def test_stores_locks_and_restores(calls, tmp_path):
    with locked_clocks():
        assert calls() == ["--store", "lock"]
    assert calls() == ALL
    assert not list((tmp_path / "tmp").iterdir())


@pytest.mark.parametrize("error", [ValueError("body"), KeyboardInterrupt(), SystemExit(3)])
def test_restores_after_any_failure_of_the_body(calls, tmp_path, error):
    with pytest.raises(type(error)), locked_clocks():
        raise error
    assert calls() == ALL
    assert not list((tmp_path / "tmp").iterdir())


def test_nothing_is_changed_when_the_state_cannot_be_stored(calls, tmp_path):
    (tmp_path / "fail").write_text("--store\n")
    with (
        pytest.raises(ConfigError, match=r"clocks: jetson_clocks --store failed \(Error! no way\); run with sudo"),
        locked_clocks(),
    ):
        raise AssertionError
    assert calls() == ["--store"]
    assert not list((tmp_path / "tmp").iterdir())


def test_half_a_lock_is_given_back(calls, tmp_path):
    (tmp_path / "fail").write_text("lock\n")
    with pytest.raises(ConfigError, match=r"clocks: jetson_clocks failed \(Error! no way\)"), locked_clocks():
        raise AssertionError
    assert calls() == ALL


def test_failed_restore_says_what_to_do_and_keeps_the_state(calls, tmp_path):
    (tmp_path / "fail").write_text("--restore\n")
    with (
        pytest.raises(GFTEdgeError, match="still locked, .* run: sudo jetson_clocks --restore ") as caught,
        locked_clocks(),
    ):
        raise ValueError("body")
    stored = Path(str(caught.value).split()[-1])
    assert stored.read_text() == "state\n"
    assert isinstance(caught.value.__context__, ValueError)


def test_without_the_program(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with (
        pytest.raises(ConfigError, match="jetson_clocks is not on PATH"),
        locked_clocks(),
    ):
        raise AssertionError


def test_termination_restores(calls, tmp_path):
    code = (
        "import time\nfrom gft_edge.hardware.clocks import locked_clocks\n"
        "with locked_clocks():\n    print('locked', flush=True)\n    time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "locked\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == 128 + signal.SIGTERM
    assert calls() == ALL


def test_handler_of_termination_is_put_back(calls):
    before = signal.getsignal(signal.SIGTERM)
    with locked_clocks():
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before


def test_works_outside_the_main_thread(calls):
    def lock():
        with locked_clocks():
            time.sleep(0)

    thread = threading.Thread(target=lock)
    thread.start()
    thread.join()
    assert calls() == ALL
