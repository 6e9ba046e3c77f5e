"""Parsing, exit codes and what goes to which stream, whatever the verb."""

from __future__ import annotations

import argparse
import errno
import importlib
import inspect
import json
import os
import re
import signal
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from gft_edge import __version__
from gft_edge.cli.console import result
from gft_edge.cli.main import VERBS, main, run_verb, verb_module
from gft_edge.cli.parsing import verb_parser
from gft_edge.cli.verbs import doctor
from gft_edge.errors import (
    ArtifactError,
    CheckFailed,
    ConfigError,
    DataError,
    GFTEdgeError,
    MissingExtraError,
    OutputError,
)
from gft_edge.files import new_folder
from gft_edge.hardware.environment import PACKAGES

COMMAND = Path(sysconfig.get_path("scripts")) / "gft-edge"
HEAVY = {"torch", "torchvision", "timm", "onnx", "onnxruntime", "tensorrt_rtx", "matplotlib", "PIL", "numpy"}


def _failing(error):
    def run(_):
        raise error

    return run


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_what_the_command_line_needs(verb):
    module = verb_module(verb)
    assert module.EXAMPLE.startswith(f"gft-edge {verb}")
    assert module.__doc__
    assert list(inspect.signature(module.add_arguments).parameters) == ["parser"]
    assert list(inspect.signature(module.run).parameters) == ["args"]


@pytest.mark.parametrize("verb", VERBS)
def test_examples_can_be_parsed(verb, monkeypatch):
    module = verb_module(verb)
    seen = []
    monkeypatch.setattr(module, "run", lambda args: seen.append(args) or 0)
    assert main(module.EXAMPLE.split()[1:]) == 0
    assert len(seen) == 1


@pytest.fixture(scope="module")
def helps():
    """Code and text of every verb's help, and which heavy modules it imported; all in one process."""
    code = (
        "import contextlib, io, json, sys\nfrom gft_edge.cli.main import main\nfound = {}\n"
        f"for verb in {list(VERBS)!r}:\n    code, out, before = None, io.StringIO(), set(sys.modules)\n"
        "    with contextlib.redirect_stdout(out):\n        try:\n            main([verb, '--help'])\n"
        "        except SystemExit as stop:\n            code = stop.code\n"
        f"    found[verb] = code, out.getvalue(), sorted({HEAVY!r} & (set(sys.modules) - before))\n"
        f"json.dump([found, sorted({HEAVY!r} & set(sys.modules))], sys.stdout)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found, heavy = json.loads(done.stdout)
    assert set(heavy) == {name for _, _, names in found.values() for name in names}, "of the command line itself"
    return found


@pytest.mark.parametrize("verb", VERBS)
def test_help_imports_nothing_heavy(helps, verb):
    code, out, heavy = helps[verb]
    assert (code, heavy) == (0, [])
    assert f"gft-edge {verb}" in out
    assert "example:" in out


SLOW = {"torch", "torchvision", "timm", "matplotlib"}
MISTAKES = (
    "train --data none --out out",
    "train --config none.toml --out out",
    "distill --teacher none --config typeface --out out",
    "import-published none.pth --out out",
    "adopt none.pth --backbone vit_tiny_patch16_224 --out out",
    "evaluate none",
    "controls none",
    "search builtin --data none --out front.json",
    "calibrate builtin --method percentile --percentile 500 --out out",
    "sensitivity builtin --eval-data none --out out",
    "quantize builtin --data none --out out",
    "quantize builtin --smoothquant --no-smoothquant --out out",
    "quantize none.onnx --data . --out out",
    "export builtin --batch 4:2:1 --out out",
    "sweep builtin --budget 1",
    "build none --target torch-tensorrt",
    "verify none --checkpoint none",
    "bench none",
    "predict none none.png",
    "bundle none --target triton --out out",
    "selftest none",
    "lint none",
    "report none.json",
)


def test_mistakes_are_answered_before_pytorch_is_imported(tmp_path):
    code = (
        "import contextlib, io, json, sys\nfrom gft_edge.cli.main import main\nfound = {}\n"
        f"for line in {MISTAKES!r}:\n    with contextlib.redirect_stderr(io.StringIO()):\n        try:\n"
        "            code = main(line.split())\n        except SystemExit as stop:\n            code = stop.code\n"
        f"    found[line] = code, sorted({SLOW!r} & set(sys.modules))\njson.dump(found, sys.stdout)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert json.loads(done.stdout) == {line: [2, []] for line in MISTAKES}, done.stderr
    assert list(tmp_path.iterdir()) == []
    assert {line.split()[0] for line in MISTAKES} | {"doctor", "demo"} == set(VERBS)


SHARED = {
    "--seed": r"seed of .+ \(\d+\)",
    "--threads": r"threads.*; 0: one per core \(\d\)",
    "--budget": r".*(patches kept by each selecting block, shares such as|counts of the other stages).*",
    "--align": r"make the tokens, patches and those before them, a multiple of N where pruned.*",
    "--labels": r"class names in the order of the outputs: one per line, or \.csv or \.json \(.+\)",
    "--split": r"which part of the data \(.+\)",
    "--backend": r".+",
    "--data": r".+",
    "--images": r".+ \(\d+\)",
    "--out": r".+",
}
METAVARS = {
    **{"--seed": "N", "--threads": "N", "--budget": "K,K,K", "--align": "N", "--labels": "FILE", "--split": None},
    **{"--backend": "B", "--images": "N"},
}


def test_options_of_one_name_have_one_metavar_and_one_wording():
    for verb in VERBS:
        for action in verb_parser(verb, verb_module(verb)).actions:
            name = (action.option_strings or [""])[-1]
            if name in SHARED:
                assert re.fullmatch(SHARED[name], action.help), f"{verb} {name}: {action.help}"
            if name in METAVARS:
                assert action.metavar == METAVARS[name], f"{verb} {name}"


def test_overview_lists_every_verb(gft_edge):
    done = gft_edge("--help")
    assert (done.code, done.err) == (0, "")
    words = " ".join(done.out.split())
    for verb, text in VERBS.items():
        assert f" {verb} {text}" in words
    for code in (0, 1, 2, 3, 130, 143):
        assert re.search(rf"^  {code} ", done.out, re.MULTILINE)


def test_nothing_asked_for_is_answered_with_the_overview_and_code_2(gft_edge):
    done = gft_edge()
    assert (done.code, done.err) == (2, "")
    assert done.out == gft_edge("--help").out


@pytest.mark.parametrize("columns", [40, 80])
@pytest.mark.parametrize("verb", ["", *VERBS])
def test_help_is_as_wide_as_the_terminal(gft_edge, monkeypatch, columns, verb):
    monkeypatch.setenv("COLUMNS", str(columns))
    _, _, text = gft_edge(*verb.split(), "--help").out.partition(
        "\n\n"
    )  # what argparse makes of usage is one word per flag
    prose = [line for line in text.splitlines() if not line.startswith(("example: ", "  -"))]
    assert max(map(len, prose)) <= columns


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["tain"], "unknown verb 'tain'; did you mean 'train'?"),
        (["fly"], "unknown verb 'fly'; there are: doctor, demo"),
        (["--versoin"], "unknown option --versoin; did you mean '--version'?"),
        (["train", "--config", "x", "--ouy", "y"], "unknown option --ouy; did you mean '--out'?"),
        (["train", "--cnofig=x"], "unknown option --cnofig; did you mean '--config'?"),
        (["bench", "x", "-o", "y"], "unknown option -o;"),
    ],
)
def test_the_nearest_name_is_offered(gft_edge, command, message):
    done = gft_edge(*command)
    assert (done.code, done.out) == (2, "")
    assert message in done.err
    assert "required" not in done.err


def test_abbreviations_and_negative_numbers_are_no_unknown_options(gft_edge, monkeypatch):
    seen = []
    monkeypatch.setattr(verb_module("bench"), "run", lambda args: seen.append(args) or 0)
    assert gft_edge("bench", "x", "--thr", "-2", "--warmup=-1").code == 0
    assert (seen[0].threads, seen[0].warmup) == ([-2], -1)


def test_version(gft_edge):
    assert gft_edge("--version").out == f"gft-edge {__version__}\n"


@pytest.mark.parametrize("command", [("fly",), ("--fly",), ("doctor", "--fly"), ("bench",), ("train", "--out", "x")])
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


@pytest.mark.parametrize("wrapped", [RuntimeError("torch.export failed"), ArtifactError("refused the graph: canceled")])
@pytest.mark.parametrize("explicit", [True, False])
def test_interrupt_that_a_library_wrapped_is_one_line(gft_edge, monkeypatch, wrapped, explicit):
    def run(args):
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt as error:
            if explicit:
                raise wrapped from error
            raise wrapped from None

    monkeypatch.setattr(doctor, "run", run)
    done = gft_edge("doctor")
    assert (done.code, done.err) == (130, "gft-edge doctor: interrupted\n")


@pytest.mark.parametrize(
    ("number", "code", "word"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated"), (signal.SIGHUP, 129, "hung up")],
)
def test_signals_clean_up_and_are_one_line(gft_edge, monkeypatch, tmp_path, number, code, word):
    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]

    def run(args):
        with new_folder(tmp_path / "out") as folder:
            (folder / "half").write_text("half")
            signal.raise_signal(number)

    monkeypatch.setattr(doctor, "run", run)
    done = gft_edge("doctor")
    assert (done.code, done.out, done.err) == (code, "", f"gft-edge doctor: {word}\n")
    assert list(tmp_path.iterdir()) == []
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == handlers


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (PermissionError(errno.EACCES, "Permission denied", "/data/model.onnx"), "/data/model.onnx: Permission denied"),
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
        (OutputError("out.json", "No space left on device"), "cannot write out.json: No space left on device"),
        (MemoryError(), "out of memory"),
    ],
)
def test_what_the_system_refuses_is_one_line(gft_edge, monkeypatch, error, message):
    monkeypatch.setattr(doctor, "run", _failing(error))
    done = gft_edge("doctor")
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert done.err.startswith(f"gft-edge doctor: {message}")


def test_escapes_and_huge_values_of_messages_are_tamed(gft_edge, monkeypatch):
    monkeypatch.setattr(doctor, "run", _failing(DataError("image \x1b]0;x\x07.png: " + "9" * 10**6 + "; give less")))
    done = gft_edge("doctor")
    assert done.err.startswith(r"gft-edge doctor: image \x1b]0;x\x07.png: 999")
    assert done.err.endswith("; give less\n")
    assert len(done.err) < 400


@pytest.mark.parametrize("redirect", ["> /dev/full", ">&-"])
@pytest.mark.parametrize("arguments", ["doctor", "--version", "doctor --help"])
def test_standard_output_that_takes_nothing_is_one_line(redirect, arguments):
    done = subprocess.run(f"{COMMAND} {arguments} {redirect}", shell=True, capture_output=True, text=True)
    assert done.returncode == 2
    assert re.fullmatch(r"gft-edge( doctor)?: cannot write standard output: .+\n", done.stderr)


def test_what_cannot_be_printed_is_still_stored(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "stdout", open("/dev/full", "w"))  # noqa: SIM115
    args = argparse.Namespace(json=False)
    with pytest.raises(OutputError, match="standard output"):
        result(args, {"a": 1}, "text", tmp_path / "out.json")
    assert json.loads((tmp_path / "out.json").read_text()) == {"a": 1}


def test_what_cannot_be_stored_is_still_printed(capsys, tmp_path):
    with pytest.raises(GFTEdgeError, match="out.json"):
        result(argparse.Namespace(json=False), {"a": 1}, "text", Path("/proc/out.json"))
    assert capsys.readouterr().out == "text\n"


def test_labels_that_ascii_cannot_say_do_not_end_a_verb():
    code = (
        "import argparse\nfrom gft_edge.cli.process import prepare_streams\nfrom gft_edge.cli.console import result, table\n"
        "prepare_streams()\nresult(argparse.Namespace(json=False), {}, table(('label',), [(chr(0x732b),), (chr(0xdcff),)]))"
    )
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[2:] == [r"\u732b", r"\udcff"]


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


def test_a_signal_after_the_work_does_not_change_the_exit_code():
    code = (
        "import atexit, os, signal, sys\n"
        "from gft_edge.cli.main import program\n"
        "for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):\n"
        "    atexit.register(os.kill, os.getpid(), number)\n"
        "sys.argv = ['gft-edge', 'doctor']\n"
        "program()\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_verbs_are_the_modules_with_a_run_function():
    folder = Path(doctor.__file__).parent
    names = {p.stem for p in folder.glob("*.py")} - {"__init__", "qat"}
    assert names == {verb.replace("-", "_") for verb in VERBS}
    assert all(hasattr(importlib.import_module(f"gft_edge.cli.verbs.{name}"), "run") for name in names)


def test_no_error_begins_with_the_verb_that_the_line_begins_with():
    verbs = "|".join(VERBS)
    found = [
        f"{file}: {match[0]}"
        for folder in ("gft_edge/cli", "export", "calibration", "benchmarks")
        for file in (Path(__file__).parents[2] / folder).rglob("*.py")
        for match in re.finditer(rf'Error\(\s*f?"(?:{verbs})(?:: | --)', file.read_text())
    ]
    assert not found
