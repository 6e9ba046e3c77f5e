"""Temporaries of processes that are gone are removed, those of living ones and other people's files are not."""

import subprocess
import sys

import pytest

from gft_edge.files import new_folder, replacing, require_free
from gft_edge.storage import leftovers
from gft_edge.storage.leftovers import SUFFIX, is_temporary, remove_leftovers

WRITER = """
import os, signal, sys
from pathlib import Path
from gft_edge.files import new_folder, replacing
with (new_folder if sys.argv[2] == "folder" else replacing)(Path(sys.argv[1])) as temporary:
    (temporary / "half" if temporary.is_dir() else temporary).write_text("half")
    print("writing", flush=True)
    sys.stdin.read()
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_killed_process_leaves_what_the_next_one_removes(tmp_path, kind):
    command = [sys.executable, "-c", WRITER, tmp_path / "out", kind]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as writer:
        assert writer.stdout.readline() == b"writing\n"
        (temporary,) = tmp_path.iterdir()
        assert is_temporary(temporary.name)
        assert remove_leftovers(tmp_path) == []  # it lives
        assert temporary.exists()
        writer.stdin.close()
        assert writer.wait() == -9
    assert temporary.exists()
    with (replacing if kind == "file" else new_folder)(tmp_path / "other"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


def test_only_our_names_are_removed(tmp_path):
    names = [".out.abc", f"out.abcdefgh{SUFFIX}", f".out.abc{SUFFIX}", ".out.abcdefgh.tmp", f".{SUFFIX}"]
    for name in names:
        (tmp_path / name).write_text("mine")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / f".link.abcdefgh{SUFFIX}").symlink_to(tmp_path / "elsewhere")
    assert remove_leftovers(tmp_path) == []
    assert len(list(tmp_path.iterdir())) == len(names) + 2


def test_a_folder_with_nothing_but_leftovers_is_free(tmp_path):
    left = tmp_path / f".x.abcd0123{SUFFIX}"
    left.touch()
    require_free(tmp_path)
    assert not left.exists()


@pytest.mark.parametrize("folder", [False, True])
@pytest.mark.parametrize("place", ["flock", "_is_same"])
def test_an_interrupt_while_it_is_made_leaves_nothing(tmp_path, monkeypatch, folder, place):
    def interrupt(*arguments):
        assert [is_temporary(path.name) for path in tmp_path.iterdir()] == [True]
        raise KeyboardInterrupt

    monkeypatch.setattr(*((leftovers.fcntl, "flock") if place == "flock" else (leftovers, "_is_same")), interrupt)
    with pytest.raises(KeyboardInterrupt), leftovers.temporary_beside(tmp_path / "x", folder):
        pass
    assert list(tmp_path.iterdir()) == []


def test_missing_folders_and_the_longest_names_are_fine(tmp_path):
    assert remove_leftovers(tmp_path / "none") == []
    with replacing(tmp_path / ("ü" * 127)) as temporary:
        temporary.write_text("x")
    assert [path.name for path in tmp_path.iterdir()] == ["ü" * 127]
