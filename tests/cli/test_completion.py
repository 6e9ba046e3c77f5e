"""The script completes verbs, flags and files in a real shell."""

import subprocess

import pytest

from gft_edge.cli.main import VERBS

pytest.importorskip("shtab")


@pytest.fixture(scope="module")
def script(gft_edge, tmp_path_factory):
    done = gft_edge("--print-completion", "bash")
    assert (done.code, done.err) == (0, "")
    file = tmp_path_factory.mktemp("completion") / "gft-edge.bash"
    file.write_text(done.out)
    return file


def _complete(script, *words):
    typed = " ".join(f"'{word}'" for word in words)
    code = (
        f"source {script}\nCOMP_WORDS=({typed})\nCOMP_CWORD={len(words) - 1}\n"
        "$(complete -p gft-edge | sed 's/.*-F \\([^ ]*\\).*/\\1/')\nprintf '%s\\n' \"${COMPREPLY[@]}\""
    )
    done = subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_verbs_flags_and_choices_are_completed(script):
    assert set(VERBS) <= _complete(script, "gft-edge", "")
    assert _complete(script, "gft-edge", "tr") == {"train"}
    assert {"--out", "--config", "--resume"} <= _complete(script, "gft-edge", "train", "--")
    assert {"fp16", "fp32"} <= _complete(script, "gft-edge", "export", "--precision", "fp")


def test_another_shell_is_refused_with_those_there_are(gft_edge):
    done = gft_edge("--print-completion", "bahs")
    assert (done.code, done.out) == (2, "")
    assert "did you mean 'bash'?" in done.err
    assert "zsh" in done.err


def test_missing_shtab_names_its_extra(gft_edge, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "shtab", None)
    done = gft_edge("--print-completion", "bash")
    assert (done.code, done.err) == (3, "gft-edge: shtab is not installed; run: pip install 'gft-edge[cli]'\n")
