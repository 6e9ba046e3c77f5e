"""Every module that ``python -m`` runs answers --help, and a mistake in one line, without starting its work."""

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = {
    "gft_edge": "gft_edge",
    "export": "gft_edge.export",
    "calibration": "gft_edge.calibration",
    "benchmarks": "gft_edge.benchmarks",
}
MODULES = sorted(
    ".".join([package, *file.relative_to(ROOT / folder).with_suffix("").parts])
    for folder, package in FOLDERS.items()
    for file in (ROOT / folder).rglob("*.py")
    if re.search(r"^if __name__ == .__main__.:", file.read_text(), re.MULTILINE)
)


def test_there_are_modules():
    assert {
        "gft_edge.cli.main",
        "gft_edge.benchmarks.experiments.publish",
        "gft_edge.benchmarks.experiments.elastic",
    } <= set(MODULES)


@pytest.mark.parametrize("name", MODULES)
def test_help(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        importlib.import_module(name).main(["--help"])
    assert stop.value.code == 0
    assert capsys.readouterr().out.startswith("usage: ")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", MODULES)
def test_unknown_flags_are_refused(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        importlib.import_module(name).main(["--no-such-flag"])
    assert stop.value.code == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", MODULES)
def test_run_as_a_script_it_ends_with_the_code_of_its_main(name):
    file = ROOT / name.removeprefix("gft_edge.").replace(".", "/")
    found = [
        path.with_suffix(".py") for path in (file, ROOT / name.replace(".", "/")) if path.with_suffix(".py").exists()
    ]
    last = found[0].read_text().rstrip().splitlines()[-1].strip()
    assert last in (
        "raise SystemExit(exit_code(main))",
        "sys.exit(main())",
        "program()",
    )  # which ends with that of main
