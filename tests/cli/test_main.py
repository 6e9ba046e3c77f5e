"""Parsing, exit codes and what goes to which stream, whatever the verb."""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from gft_edge import __version__
from gft_edge.cli import doctor
from gft_edge.cli.main import VERBS, _verb_module, main, run_verb
from gft_edge.environment import PACKAGES
from gft_edge.errors import (
    ArtifactError,
    CheckFailed,
    ConfigError,
    DataError,
    GFTEdgeError,
    MissingExtraError,
)

COMMAND = Path(sysconfig.get_path("scripts")) / "gft-edge"
HEAVY = {"torch", "torchvision", "timm", "onnx", "onnxruntime", "tensorrt_rtx", "matplotlib", "PIL", "numpy"}


def _failing(error):
    def run(_):
        raise error

    return run


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_what_the_command_line_needs(verb):
    module = _verb_module(verb)
    assert module.EXAMPLE.startswith(f"gft-edge {verb}")
    assert module.__doc__
    assert list(inspect.signature(module.add_arguments).parameters) == ["parser"]
    assert list(inspect.signature(module.run).parameters) == ["args"]


@pytest.mark.parametrize("verb", VERBS)
def test_examples_can_be_parsed(verb, monkeypatch):
    module = _verb_module(verb)
    seen = []
    monkeypatch.setattr(module, "run", lambda args: seen.append(args) or 0)
    assert main(module.EXAMPLE.split()[1:]) == 0
    assert len(seen) == 1


@pytest.mark.parametrize("verb", VERBS)
def test_help_imports_nothing_heavy(verb):
    code = (
        "import sys\nfrom gft_edge.cli.main import main\n"
        f"try:\n    main([{verb!r}, '--help'])\nexcept SystemExit as stop:\n    assert stop.code == 0\n"
        f"found = {HEAVY!r} & set(sys.modules)\nassert not found, found"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"gft-edge {verb}" in done.stdout
    assert "example:" in done.stdout


def test_overview_lists_every_verb(gft_edge):
    done = gft_edge("--help")
    assert (done.code, done.err) == (0, "")
    for verb, text in VERBS.items():
        assert f"  {verb:<17} {text}" in done.out


def test_version(gft_edge):
    assert gft_edge("--version").out == f"gft-edge {__version__}\n"


@pytest.mark.parametrize(
    "command", [(), ("fly",), ("--fly",), ("doctor", "--fly"), ("bench",), ("train", "--out", "x")]
)
def test_what_cannot_be_parsed_is_one_line_with_code_2(gft_edge, command):
    done = gft_edge(*command)
    assert (done.code, done.out) == (2, "")
    assert done.err.count("\n") == 1
    assert "--help" in done.err


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (GFTEdgeError("x"), 2),
        (ConfigError("x"), 2),
        (ArtifactError("x"), 2),
        (DataError("x"), 2),
        (CheckFailed("x"), 1),
        (MissingExtraError("x", "y"), 3),
    ],
    ids=lambda value: type(value).__name__,
)
def test_errors_end_with_their_code(gft_edge, monkeypatch, error, code):
    monkeypatch.setattr(doctor, "run", _failing(error))
    done = gft_edge("doctor")
    assert (done.code, done.out) == (code, "")
    assert done.err == f"gft-edge doctor: {error}\n"


@pytest.mark.parametrize("code", [0, 1])
def test_the_verbs_own_code_is_returned(gft_edge, monkeypatch, code):
    monkeypatch.setattr(doctor, "run", lambda args: code)
    assert gft_edge("doctor") == type(gft_edge("doctor"))(code, "", "")


def test_message_of_several_lines_is_printed_as_one(gft_edge, monkeypatch):
    monkeypatch.setattr(doctor, "run", _failing(DataError("first\n  second\n\nthird")))
    assert gft_edge("doctor").err == "gft-edge doctor: first second third\n"


def test_the_verb_is_named_once(gft_edge, monkeypatch):
    def fail(args):
        raise ConfigError("doctor: no such board")

    monkeypatch.setattr(doctor, "run", fail)
    assert gft_edge("doctor").err == "gft-edge doctor: no such board\n"


@pytest.mark.parametrize("module", ["torch", "onnxruntime.capi", "jinja2"])
def test_missing_package_names_its_extra(gft_edge, monkeypatch, module):
    monkeypatch.setattr(doctor, "run", _failing(ModuleNotFoundError("no", name=module)))
    done = gft_edge("doctor")
    package = module.partition(".")[0]
    assert done.code == 3
    assert (
        done.err
        == f"gft-edge doctor: {package} is not installed; run: pip install 'gft-edge[{PACKAGES[package][1]}]'\n"
    )


@pytest.mark.parametrize("error", [ModuleNotFoundError("no", name="secrets_of_mine"), ZeroDivisionError("bug")])
def test_bugs_keep_their_traceback(monkeypatch, error):
    monkeypatch.setattr(doctor, "run", _failing(error))
    with pytest.raises(type(error)):
        main(["doctor"])


def test_interrupt_is_one_line(gft_edge, monkeypatch):
    monkeypatch.setattr(doctor, "run", _failing(KeyboardInterrupt()))
    done = gft_edge("doctor")
    assert (done.code, done.err) == (130, "gft-edge doctor: interrupted\n")


def test_errors_pass_through_where_verbs_call_verbs(monkeypatch):
    monkeypatch.setattr(doctor, "run", _failing(DataError("inner")))
    with pytest.raises(DataError, match="inner"):
        run_verb("doctor", [])


def test_verbose_adds_the_traceback_of_a_user_error(tmp_path):
    command = [COMMAND, "bench", tmp_path / "nothing"]
    short = subprocess.run(command, capture_output=True, text=True)
    long = subprocess.run([*command, "-v"], capture_output=True, text=True)
    assert short.returncode == long.returncode == 2
    assert "Traceback" not in short.stderr
    assert "Traceback" in long.stderr
    assert long.stderr.endswith(short.stderr)


def test_reader_that_stops_early_is_no_error():
    process = subprocess.Popen([COMMAND, "doctor"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    error = process.stderr.read()
    process.stderr.close()
    assert (process.wait(), error) == (0, b"")


def test_module_can_be_run_as_a_script():
    command = [sys.executable, "-m", "gft_edge.cli.main", "--version"]
    assert subprocess.run(command, capture_output=True, text=True).stdout == f"gft-edge {__version__}\n"


def test_verbs_are_the_modules_with_a_run_function():
    folder = Path(doctor.__file__).parent
    names = {p.stem for p in folder.glob("*.py")} - {"__init__", "common", "console", "main", "qat"}
    assert names == {verb.replace("-", "_") for verb in VERBS}
    assert not any(hasattr(importlib.import_module(f"gft_edge.cli.{n}"), "run") for n in ("common", "console", "qat"))
