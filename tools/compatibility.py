"""Tests the project with the oldest and the newest versions of its dependencies, and writes docs/compatibility.md.

    make deps-check

Each end gets its own environment below .deps/, filled by uv: the oldest versions that the lower bounds of pyproject.toml allow,
and the newest ones. The built wheel is installed there, and a fixed selection of tests runs against it. Two more environments
have numpy, ONNX Runtime and Pillow alone and run a bundle. Exit code 1 when something failed; the page says what.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from package_contents import build, copy_tracked
from packaging.requirements import Requirement

from gft_edge.config.reader import loads_toml

ROOT = Path(__file__).parents[1]
EXTRAS = ("train", "onnx", "report", "cli", "quant")
EDGE = ("onnxruntime", "pillow")
"""Packages beside numpy of the environments that run a bundle."""
MINORS = range(10, 15)
"""Versions 3.x of Python that are looked for."""
PYTEST = ("pytest", "hypothesis")
EXECUTED = "tests/export/onnx/test_artifact.py::test_onnxruntime_gives_what_torch_gives"
TESTS = {
    "PyTorch models against golden numbers and timm": (
        "tests/model/test_published.py::test_logits_importance_and_selection_equal_the_published_ones",
        "tests/model/test_plain_vit.py",
        "tests/model/test_focal_block.py::test_block_without_selection_is_timm_s_to_the_bit",
    ),
    "export, and the graph run by ONNX Runtime": (
        *(f"{EXECUTED}[{form}-3]" for form in ("fp32-compact", "int8-compact", "fp32-compact-full")),
    ),
    "calibration and quantization": ("tests/calibration/test_ptq.py",),
    "against Model-Optimizer": ("tests/calibration/test_modelopt.py",),
    "adopt, quantize, export, verify, bundle": (
        "tests/cli/test_journeys.py::test_a_trained_vit_becomes_a_verified_bundle_in_five_commands",
    ),
    "terminal and completion": ("tests/cli/test_terminal.py", "tests/cli/test_completion.py"),
    "report page": ("tests/report/test_page.py",),
    "reading and preprocessing images": ("tests/test_preprocess.py", "tests/data/test_images.py"),
}
QUICK = (
    "--power",
    "none",
    "--rounds",
    "2",
    "--runs",
    "1",
    "--warmup",
    "0",
    "--skip",
    "stages",
    "throughput",
    "process",
)


@dataclass
class End:
    """One environment: how it is resolved, and what came out.

    Attributes:
        name: folder below ``.deps``.
        resolution: uv's word for it.
        python: interpreter to make it from.
        versions: installed versions by package name.
        results: by the key of :data:`TESTS`, or by command.
    """

    name: str
    resolution: str
    python: Path
    versions: dict[str, str] = field(default_factory=dict)
    results: dict[str, str] = field(default_factory=dict)


def interpreters() -> dict[int, Path]:
    """Returns the interpreters of this machine that start, by their minor version: those on PATH, then those of pyenv."""
    found: dict[int, Path] = {}
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    for minor in MINORS:
        on_path = shutil.which(f"python3.{minor}")
        for path in [*([Path(on_path)] if on_path else ()), *sorted(pyenv.glob(f"3.{minor}.*/bin/python"))]:
            if subprocess.run([path, "-c", "import ssl, venv"], capture_output=True).returncode == 0:
                found.setdefault(minor, path)
    return found


def run(command: Sequence[object], **options: Any) -> subprocess.CompletedProcess[str]:
    """Runs a command and returns it finished; says on stderr what it runs."""
    words = [str(word) for word in command]
    print("+ " + " ".join(words)[:150], file=sys.stderr, flush=True)
    return subprocess.run(words, capture_output=True, text=True, **options)


def must(command: Sequence[object], **options: Any) -> str:
    """Returns what a command prints.

    Raises:
        SystemExit: it failed; its last lines are printed.
    """
    done = run(command, **options)
    if done.returncode:
        raise SystemExit("deps-check: " + "\n".join((done.stdout + done.stderr).strip().splitlines()[-15:]))
    return done.stdout


def floors(project: dict[str, Any], extras: Sequence[str]) -> dict[str, Requirement]:
    """Returns the direct dependencies of the core and of some extras, by name in lower case."""
    texts = [*project["dependencies"], *(text for name in extras for text in project["optional-dependencies"][name])]
    return {one.name.lower(): one for one in map(Requirement, texts)}


def fill(end: End, uv: Path, deps: Path, requirements: str, beside: Sequence[object]) -> Path:
    """Makes the environment of an end and fills it; returns its folder of programs.

    Args:
        end: gets its versions.
        uv: program.
        deps: folder of the environments.
        requirements: text of the direct dependencies, one a line.
        beside: wheels and packages that are installed after them.
    """
    listed, home = deps / f"{end.name}.in", deps / end.name
    listed.write_text(requirements)
    python = home / "bin/python"
    must([uv, "venv", "--quiet", "--clear", "--python", end.python, home])
    pinned = deps / f"{end.name}.txt"
    compile_ = [uv, "pip", "compile", "--quiet", "--no-header", "--no-annotate", "--resolution", end.resolution]
    must([*compile_, "--python", python, listed, "--output-file", pinned, "--upgrade"])
    must([uv, "pip", "install", "--quiet", "--python", python, "--requirements", pinned, *beside])
    frozen = must([uv, "pip", "freeze", "--python", python])
    end.versions = {name.lower(): version for name, version in re.findall(r"^([\w.-]+)==(\S+)", frozen, re.MULTILINE)}
    end.versions["python"] = must([python, "-c", "import platform; print(platform.python_version())"]).strip()
    return home / "bin"


def tested(end: End, programs: Path, logs: Path) -> None:
    """Runs the selection of tests against the wheel installed in an end, in one process."""
    report, log = logs / f"{end.name}.xml", logs / f"{end.name}.log"
    report.unlink(missing_ok=True)
    # The program, not "python -m pytest", which would put the source tree before the installed wheel.
    options = ["-q", "-p", "no:cacheprovider", "-o", "addopts=--import-mode=importlib", f"--junitxml={report}"]
    selected = [test for tests in TESTS.values() for test in tests]
    done = run([programs / "pytest", *options, *selected], cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"})
    log.write_text(done.stdout + done.stderr, encoding="utf-8")
    end.results |= counted(report)
    print("\n".join(f"{end.name}: {what}: {words}" for what, words in end.results.items()), file=sys.stderr, flush=True)


def counted(report: Path) -> dict[str, str]:
    """Returns the counts of a JUnit report in words for each part of :data:`TESTS`; ``FAILED`` begins those that did not pass."""
    cases = list(ElementTree.parse(report).iter("testcase")) if report.exists() else []
    words = {}
    for what, tests in TESTS.items():
        modules = {test.partition(".py")[0].replace("/", ".") for test in tests}
        own = [case for case in cases if any(f"{case.get('classname')}.".startswith(f"{name}.") for name in modules)]
        skipped = sum(case.find("skipped") is not None for case in own)
        failed = sum(case.find("failure") is not None or case.find("error") is not None for case in own)
        passed = len(own) - skipped - failed
        parts = [f"{passed} passed"] + [f"{skipped} skipped"] * (skipped > 0) + [f"{failed} failed"] * (failed > 0)
        words[what] = "FAILED: " * (failed > 0 or passed == 0) + ", ".join(parts)
    return words


def on_the_edge(end: End, programs: Path, bundle: Path, folder: Path) -> str:
    """Runs a bundle in an end and returns what ``predict`` printed, without its times."""
    program, image = programs / "gft-edge", ROOT / "docs/scenes.png"
    commands: dict[str, list[object]] = {
        "doctor": ["doctor"],
        "selftest BUNDLE": ["selftest", bundle],
        "predict BUNDLE IMAGE": ["predict", bundle, image, "--json"],
        "bench BUNDLE": ["bench", bundle, *QUICK, "--out", folder / f"{end.name}.json"],
    }
    printed = ""
    for what, command in commands.items():
        done = run([program, *command], cwd=folder)
        end.results[what] = "passed" if done.returncode == 0 else f"FAILED: code {done.returncode}"
        if done.returncode:
            print(done.stdout + done.stderr, file=sys.stderr)
        if command[0] == "predict":
            printed = done.stdout
    return printed


def page(ends: Sequence[End], edge: Sequence[End], project: dict[str, Any]) -> str:
    """Returns the text of docs/compatibility.md."""
    wanted, core = floors(project, EXTRAS), floors(project, ())
    lines = [
        "# Versions of dependencies",
        "",
        "`make deps-check` wrote this page. It installs the built wheel with the oldest versions that `pyproject.toml` allows, and",
        "with the newest ones, and runs a selection of tests with each. It needs a network, and 12 GB below `.deps/`.",
        "`constraints.txt` lists the versions of `make test`.",
        "",
        "## With PyTorch",
        "",
        f"Extras {', '.join(EXTRAS)}. PyTorch is the build of PyPI, run on the CPU.",
        "",
    ]
    rows = [("Python", project["requires-python"], *(end.versions["python"] for end in ends))]
    rows += [
        (name, str(one.specifier), *(end.versions.get(name.replace("_", "-"), "none") for end in ends))
        for name, one in sorted(wanted.items())
        if any(name.replace("_", "-") in end.versions for end in ends)
    ]
    lines += table(("package", "bound", *(end.name for end in ends)), rows)
    lines += ["", *table(("tests", *(end.name for end in ends)), [(w, *(e.results[w] for e in ends)) for w in TESTS])]
    names = [*core, *EDGE]
    lines += [
        "",
        "## On a board, without PyTorch",
        "",
        "The wheel with these packages alone runs a bundle of the built-in model, which the newest versions above have made.",
        "",
        *table(
            ("", *(end.name for end in edge)),
            [(name, *(end.versions[name.lower()] for end in edge)) for name in ("Python", *names)]
            + [(f"`{what}`", *(end.results[what] for end in edge)) for what in edge[0].results],
        ),
        "",
    ]
    return "\n".join(lines)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Returns the lines of a Markdown table."""
    return ["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows)]


def main(argv: Sequence[str] | None = None) -> int:
    """Makes the environments, runs the tests and writes the page; returns the exit code."""
    parser = argparse.ArgumentParser(prog="compatibility.py", description=__doc__.splitlines()[0])
    parser.add_argument("--deps", type=Path, default=ROOT / ".deps", help="folder of the environments")
    parser.add_argument("--out", type=Path, default=ROOT / "docs/compatibility.md", help="page to write")
    args = parser.parse_args(argv)
    project = loads_toml((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pythons = interpreters() or {sys.version_info.minor: Path(sys.executable)}
    low, high = pythons[min(pythons)], pythons[max(pythons)]
    deps = args.deps.resolve()
    uv = deps / "tools/bin/uv"
    if not uv.exists():
        must([sys.executable, "-m", "venv", deps / "tools"])
        must([deps / "tools/bin/python", "-m", "pip", "install", "--quiet", "uv"])
    ends = (End("oldest", "lowest-direct", low), End("newest", "highest", high))
    edge = (End("edge-oldest", "lowest-direct", low), End("edge-newest", "highest", high))
    with tempfile.TemporaryDirectory(prefix="gft-edge-deps-") as name:
        folder = Path(name)
        copy_tracked(ROOT, folder / "tree")
        wheel = build(folder / "tree", folder, "wheel", 315532800)
        wanted = floors(project, EXTRAS)
        text = "\n".join(map(str, wanted.values()))

        def both(end: End) -> Path:
            programs = fill(end, uv, deps, text, [wheel, *PYTEST])
            tested(end, programs, deps)
            return programs

        with ThreadPoolExecutor(2) as pool:
            programs = list(pool.map(both, ends))[1]
        artifact, bundle = folder / "artifact", folder / "bundle"
        must([programs / "gft-edge", "export", "builtin", "--out", artifact], cwd=folder)
        must([programs / "gft-edge", "bundle", artifact, "--target", "onnxruntime", "--out", bundle], cwd=folder)
        lines = [*floors(project, ()).values(), *(wanted[name] for name in EDGE)]
        predicted = []
        for end in edge:
            programs = fill(end, uv, deps, "\n".join(map(str, lines)), [wheel])
            predicted.append(on_the_edge(end, programs, bundle, folder))
    same = classes(predicted[0]) == classes(predicted[1]) != []
    for end in edge:
        end.results["same classes at both ends"] = "passed" if same else "FAILED"
    new = args.out.with_suffix(".new")
    new.write_text(page(ends, edge, project), encoding="utf-8")
    new.replace(args.out)
    failed = [
        f"{end.name}: {what}: {how}" for end in (*ends, *edge) for what, how in end.results.items() if "FAILED" in how
    ]
    print("\n".join(failed) or f"every selected test passed at both ends; {args.out} is written")
    return 1 if failed else 0


def classes(printed: str) -> list[str]:
    """Returns the class names in the JSON of ``predict``, the most probable first."""
    return re.findall(r'"label": "([^"]*)"', printed)


if __name__ == "__main__":
    sys.exit(main())
