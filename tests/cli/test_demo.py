"""The whole chain with small settings, and the page it ends in."""

import json
import re
from html.parser import HTMLParser

import pytest

from gft_edge.cli.main import main
from gft_edge.manifest import load_artifact


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo") / "run"
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
    assert page.count('importance, patches kept by each stage"') == 12
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
    assert {"train", "evaluate", "quantize", "export", "build", "verify", "bench", "predict"} == set(verbs)
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


def test_an_interrupted_demo_is_not_told_to_resume(tmp_path, monkeypatch, capsys):
    def stop(command):
        raise KeyboardInterrupt("--resume goes on")

    monkeypatch.setattr("gft_edge.cli.verbs.demo._call", stop)
    out = tmp_path / "two words"
    assert main(["demo", "--small", "--out", str(out)]) == 130
    said = capsys.readouterr().err
    assert f"--out '{out}/checkpoint'" in said
    assert said.splitlines()[-1] == f"gft-edge demo: interrupted; in the step train; remove {out} before another try"
