"""The whole chain with small settings, its report page, and the commands of docs/chain.md on its outputs."""

import dataclasses
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import onnx
import pytest

from gft_edge.cli.main import main, verb_module
from gft_edge.cli.parsing import verb_parser
from gft_edge.cli.verbs import demo as verb
from gft_edge.manifest import load_artifact

BLOCKS = re.findall(r"```(\w+)\n(.*?)```", (Path(__file__).parents[2] / "docs/chain.md").read_text(), re.DOTALL)


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """A small demo on even fewer images."""
    out = tmp_path_factory.mktemp("demo") / "run"
    fewer = dataclasses.replace(verb.SMALL, train_steps=2, eval_images=32, bench_rounds=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verb, "SMALL", fewer)
        assert main(["demo", "--small", "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def page(demo) -> str:
    return (demo / "report.html").read_text(encoding="utf-8")


class Links(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attrs):
        self.found += [value for name, value in attrs if name in ("src", "href", "xlink:href", "action")]


def test_the_page_needs_no_network_and_no_other_file(page):
    links = Links()
    links.feed(page)
    assert links.found
    assert all(link.startswith(("data:", "#")) for link in links.found)
    assert page.count("<script") == 1  # marks what can be scrolled, copies commands
    assert not re.search(r"<script[^>]+src|@import|url\(http", page)


def test_the_page_shows_a_dozen_overlays_and_every_figure(page):
    assert page.count('alt="image, importance by') == 6
    assert page.count('GALA map, patches kept by each stage"') == 12
    assert page.count("<svg") >= 6
    assert "insertion and deletion of patches" in page


def test_the_page_shows_the_numbers_of_the_run(demo, page):
    bench = json.loads((demo / "bench.json").read_text())
    for row in bench["results"]:
        assert f"{row['p50_ms']:.2f}" in page
    for file in demo.glob("evaluate-*.json"):
        for row in json.loads(file.read_text())["results"]:
            assert f"{100 * row['top1']:.2f} %" in page
    for name in ("fp32-full", "fp32-pruned", "int8-pruned", "int8-maps"):
        manifest = load_artifact(demo / name).manifest
        assert f"{manifest.files['model.onnx'].size / 1e6:.2f} MB" in page
        assert any(file.endswith(".engine") for file in manifest.files)
        assert manifest.parity["verify"]["passed"]
    assert "Small settings" in page


def test_every_step_is_recorded_with_the_command_that_repeats_it(demo):
    record = json.loads((demo / "run.json").read_text())
    verbs = [step["command"].split()[1] for step in record["steps"]]
    assert {"train", "evaluate", "quantize", "export", "build", "verify", "bench", "search", "predict"} == set(verbs)
    assert all(step["seconds"] >= 0 for step in record["steps"])


def test_a_second_demo_does_not_overwrite_the_first(demo, capsys):
    assert main(["demo", "--small", "--out", str(demo)]) == 2
    assert "not empty" in capsys.readouterr().err


def test_report_of_a_folder_without_artefacts_is_refused(tmp_path, capsys):
    assert main(["report", str(tmp_path)]) == 2
    assert "holds no artefact, checkpoint or result file" in capsys.readouterr().err
    assert main(["report", str(tmp_path / "missing")]) == 2
    assert not list(tmp_path.iterdir())


def test_report_leaves_out_what_is_missing(demo, tmp_path, capsys):
    (tmp_path / "fp32").symlink_to(demo / "fp32-pruned")
    assert main(["report", str(tmp_path)]) == 0
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "left out: accuracy (no file of evaluate --out)" in capsys.readouterr().out
    assert ". Accuracy<" not in page and "accuracy of" not in page
    assert ". Files and engines</h2>" in page


def _flags(command: list[str]) -> set[str]:
    return {part for part in command if part.startswith("--")}


def _is_covered(command: list[str], steps: list[list[str]]) -> bool:
    """Returns whether the demo ran this verb with at least these flags."""
    return any(step[1] == command[1] and _flags(command) <= _flags(step) for step in steps)


def _process(command: list[str]) -> str:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PATH": path})
    assert done.returncode == 0, f"{command}\n{done.stderr}"
    return done.stdout


def test_the_commands_of_the_page_run(demo, tmp_path, monkeypatch):
    """Every command is parsed. The demo ran those of its verbs and flags; its outputs stand in for theirs."""
    monkeypatch.chdir(tmp_path)
    outputs = {"checkpoint-int8": "checkpoint-int8", "fp32-full": "fp32-full", "int8": "int8-maps"}
    for name, source in outputs.items():
        shutil.copytree(demo / source, tmp_path / "runs/readme" / name)
    shutil.copy(demo / "bench.json", tmp_path / "runs/readme")
    steps = [shlex.split(step["command"]) for step in json.loads((demo / "run.json").read_text())["steps"]]
    (shell,) = [text for language, text in BLOCKS if language == "sh"]
    (python,) = [text for language, text in BLOCKS if language == "python"]
    ran = []
    for line in shell.strip().splitlines():
        command = shlex.split(line)
        verb_parser(command[1], verb_module(command[1])).parse_args(command[2:])
        if _is_covered(command, steps):
            continue
        ran.append(command[1])
        if command[1] == "doctor":
            _process(command)
        else:
            assert main(command[1:]) == 0, line
    assert ran == ["doctor", "evaluate", "build", "report"]
    assert "patches kept" in _process([sys.executable, "-c", python])
    assert (tmp_path / "runs/readme/report.html").stat().st_size > 10_000


def test_the_programs_of_the_modelopt_page_run(demo, tmp_path, monkeypatch):
    page = (Path(__file__).parents[2] / "docs/modelopt.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    for place, source in (("fp32", "fp32-pruned"), ("int8", "int8-pruned")):
        (tmp_path / place).symlink_to(demo / source)
    recipe, baseline = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    exec(compile(recipe, "docs/modelopt.md", "exec"), {})
    assert json.loads((tmp_path / "recipe.yaml").read_text())["metadata"]["recipe_type"] == "ptq"
    exec(compile(baseline, "docs/modelopt.md", "exec"), {})
    nodes = onnx.load(tmp_path / "baseline.onnx").graph.node
    assert sum(node.op_type == "QuantizeLinear" for node in nodes) > 10


def test_an_interrupted_demo_gives_no_advice_to_resume(tmp_path, monkeypatch, capsys):
    def stop(command):
        raise KeyboardInterrupt("--resume goes on")

    monkeypatch.setattr("gft_edge.cli.verbs.demo._call", stop)
    out = tmp_path / "two words"
    assert main(["demo", "--small", "--out", str(out)]) == 130
    err = capsys.readouterr().err
    assert f"--out '{out}/checkpoint'" in err
    assert err.splitlines()[-1] == f"gft-edge demo: interrupted; in the step train; remove {out} before another try"
