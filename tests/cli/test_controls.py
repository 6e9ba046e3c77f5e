"""``gft-edge controls``, as a user would run it."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from gft_edge.budget import TokenBudget
from gft_edge.checkpoint import load_checkpoint, save_checkpoint
from gft_edge.config.model import preset
from gft_edge.controls import ControlOptions, controls
from gft_edge.data.images import read_image
from gft_edge.errors import OutputError
from gft_edge.model.macs import count_macs
from gft_edge.model.selection import select_patches

RULES = ["most important", "random", "least important", "static", "centre first", "lower resolution"]


@pytest.fixture(scope="module")
def done(gft_edge, tiny_checkpoint, animals, tmp_path_factory):
    """A run at two budgets with its folder."""
    out = tmp_path_factory.mktemp("run") / "controls"
    found = gft_edge(
        "controls", tiny_checkpoint, "--data", animals, "--budget", "12,6", "--budget", "25%,25%", "--out", out, "--json"
    )  # fmt: skip
    assert found.code == 0, found.err
    return found, out


def test_right_answers_are_those_of_the_model_with_each_choice(done, tiny_model, tiny_info, animals):
    files = sorted((animals / "..").resolve().glob("animals/*/*.png"))
    test = [path for path in files if int(path.stem) < 24]  # 00 to 23 are the images of the hash's test part
    x = torch.from_numpy(tiny_info.preprocess.batch([read_image(path) for path in test]))
    truth = torch.tensor([tiny_info.labels.index(path.parent.name) for path in test])
    data = done[0].json
    assert (data["images"], data["split"]) == (len(test), "test")
    for at in data["budgets"]:
        budget = tiny_info.model.parse_budget(at["budget"])
        rules = {row["rule"]: row for row in at["rules"]}
        assert list(rules) == RULES
        assert [len(row["right"]) for row in at["rules"]] == [1, 3, 1, 1, 1, 1]
        for name, sign in (("most important", 1), ("least important", -1)):
            with torch.no_grad():
                logits = tiny_model(x, budget, choose=lambda scores, k, sign=sign: select_patches(sign * scores, k))
            assert rules[name]["right"] == [int((logits.argmax(1) == truth).sum())]
        assert at["macs"] == count_macs(tiny_info.model, budget)
        assert [entry["against"] for entry in at["tests"]] == [
            "random",
            "static",
            "least important",
            "centre first",
            "lower resolution",
        ]
        assert len(at["tests"][0]["p"]) == 3
        assert at["gain"] is None
        assert at["lower_resolution"]["image_size"] in (16, 24)
    with torch.no_grad():
        right = tiny_model(x, tiny_info.model.full_budget).argmax(1) == truth
    assert (data["full"]["budget"], data["full"]["right"]) == ("16-16", int(right.sum()))
    assert data["static"] == {"data": str(animals), "split": "train", "images": 24}
    assert (data["seeds"], data["has_marks"]) == ([0, 1, 2], False)


def test_files_hold_what_is_printed_and_the_report_shows_them(done, gft_edge):
    found, out = done
    assert sorted(path.name for path in out.iterdir()) == ["controls.html", "controls.json", "controls.svg"]
    assert json.loads((out / "controls.json").read_text()) == found.json
    drawn = (out / "controls.svg").read_text()
    assert "Does the selection matter" in (out / "controls.html").read_text()
    assert drawn.startswith("<svg") and all(f">{rule}<" in drawn for rule in RULES)
    report = gft_edge("report", out)
    assert report.code == 0, report.err
    page = (out / "report.html").read_text()
    assert "Does the selection matter" in page
    for at in found.json["budgets"]:
        assert f"{at['budget']} patches kept" in page
        assert at["verdict"] in page
    (out / "report.html").unlink()


def test_text_has_a_table_a_gain_and_a_verdict(gft_edge, tiny_checkpoint, animals, done):
    found = gft_edge("controls", tiny_checkpoint, "--data", animals, "--images", 24)
    assert found.code == 0, found.err
    lines = found.out.splitlines()
    at = done[0].json["budgets"][0]
    assert "24 test images" in lines[0] and "every patch: " in lines[0]
    assert lines[1] == "static: the places of the highest mean score on 24 train images"
    assert "not trained at that size" in lines[2]
    assert lines[4].startswith("12-6 patches kept, ")  # the checkpoint's own budget
    names = [line.split("  ")[0] for line in lines[7:13]]
    pixels = at["lower_resolution"]["image_size"]
    assert names[:5] == RULES[:5] and names[5].startswith(f"all, {pixels} pixels")
    assert lines[13] == "no oracle and no normalised gain G: the data does not know where its marks are"
    assert lines[14] == at["verdict"]


def test_the_library_returns_what_the_verb_prints(done, tiny_checkpoint, animals):
    options = ControlOptions(str(animals), budgets=("12,6", "4,4", "12,6"), threads=1)  # the same budget twice is one
    threads = torch.get_num_threads()
    found = controls(load_checkpoint(tiny_checkpoint), options)
    assert torch.get_num_threads() == threads
    assert {"model": str(tiny_checkpoint), **found.to_json()} == done[0].json


def test_without_other_images_the_static_places_come_from_the_evaluated_ones(
    gft_edge, tiny_checkpoint, animals, tmp_path
):
    for path in sorted(animals.rglob("*.png"))[::6]:
        (tmp_path / "data/test" / path.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, tmp_path / "data/test" / path.parent.name)
    found = gft_edge("controls", tiny_checkpoint, "--data", tmp_path / "data")
    assert found.code == 0, found.err
    assert "12 test images, the evaluated ones" in found.out.splitlines()[1]


def test_damaged_images_are_left_out_and_named(gft_edge, tiny_checkpoint, animals, write_damaged, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(animals, data)
    for part in ("test", "train"):
        write_damaged(data / "bee" / f"{part}.png", part)
    found = gft_edge("controls", tiny_checkpoint, "--data", data, "--json")
    assert found.code == 0, found.err
    assert (found.json["images"], found.json["unreadable_images"], found.json["static"]["images"]) == (24, 1, 24)
    assert sum(line.startswith("left out: image ") for line in found.err.splitlines()) == 1


def test_a_quantized_checkpoint_has_no_smaller_network(gft_edge, quantized, animals):
    found = gft_edge("controls", quantized, "--data", animals, "--json")
    assert found.code == 0, found.err
    (at,) = found.json["budgets"]
    assert at["lower_resolution"] is None
    assert [row["rule"] for row in at["rules"]] == RULES[:5]


@pytest.fixture
def refused(gft_edge, tmp_path):
    def run(*command):
        found = gft_edge("controls", *command)
        assert (found.code, found.out) == (2, ""), found
        assert len(found.err.splitlines()) == 1, found.err
        return found.err

    return run


@pytest.mark.parametrize(
    ("budget", "facts"),
    [
        ("full", "16-16: keeps every patch"),
        ("16,16", "16-16: keeps every patch"),
        ("6", "1 number for a model of 2 stages"),
        ("6,12", "counts must not grow"),
        ("many", "token budget 'many'"),
    ],
)
def test_budgets_that_select_nothing_or_do_not_fit(refused, tiny_checkpoint, animals, budget, facts):
    assert facts in refused(tiny_checkpoint, "--data", animals, "--budget", budget)


def test_an_artefact_has_the_answers_of_its_checkpoint(gft_edge, tiny_checkpoint, made, animals, done, tmp_path):
    found = gft_edge("controls", made["fp32"], "--data", animals, "--out", tmp_path / "out", "--json")
    assert found.code == 0, found.err
    (at,), expected = found.json["budgets"], done[0].json["budgets"][0]
    right, wanted = ({row["rule"]: row["right"] for row in side["rules"]} for side in (at, expected))
    assert list(right) == RULES[:5]
    for rule in RULES[:5]:
        assert rule == "static" or right[rule] == wanted[rule], rule
    assert [(test["against"], test["p"]) for test in at["tests"][::2]] == [
        (test["against"], test["p"]) for test in expected["tests"][:3:2]
    ]
    assert (at["budget"], at["macs"], at["lower_resolution"]) == ("12-6", expected["macs"], None)
    assert at["verdict"] == expected["verdict"]
    assert (found.json["backend"], found.json["precision"], found.json["full"]) == ("onnxruntime", "fp32", None)
    assert found.json["static"] == done[0].json["static"]
    page = (tmp_path / "out/controls.html").read_text()
    assert "Every patch: not measured" in page and "Smaller images are left out" in page
    assert at["verdict"] in page
    assert gft_edge("report", tmp_path / "out").code == 0
    assert at["verdict"] in (tmp_path / "out/report.html").read_text()


def test_the_most_important_patches_are_those_that_evaluate_measures(gft_edge, made, animals):
    found = gft_edge("controls", made["int8"], "--data", animals)
    measured = gft_edge("evaluate", made["int8"], "--data", animals, "--json")
    assert (found.code, measured.code) == (0, 0), found.err + measured.err
    lines = found.out.splitlines()
    assert "int8 in onnxruntime" in lines[0]
    assert "every patch: not measured, the artefact has no graph of the full budget" in lines[0]
    assert lines[1].endswith("scored by the graph itself: after a selection only the patches it kept")
    right = next(line for line in lines if line.startswith("most important")).split()[2]
    (row,) = measured.json["results"]
    assert int(right) == row["right"]


def test_budgets_that_an_artefact_does_not_have_are_refused(refused, made, animals):
    message = refused(made["fp32"], "--data", animals, "--budget", "8,4")
    assert "has no graph of budget 8-4; there are: 12-6; export the checkpoint with --budget 8,4" in message
    assert "16-16: keeps every patch" in refused(made["fp32"], "--data", animals, "--budget", "full")
    assert "token budget 'many'" in refused(made["fp32"], "--data", animals, "--budget", "many")


def test_a_file_and_an_artefact_without_its_graph_are_refused(refused, copied, animals):
    artifact = copied("fp32")
    assert "give an artefact folder" in refused(artifact / "model.onnx", "--data", animals)
    (artifact / "model.onnx").unlink()
    assert "model.onnx is missing" in refused(artifact, "--data", animals)


def test_onnx_is_asked_for(gft_edge, made, animals, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    found = gft_edge("controls", made["fp32"], "--data", animals)
    assert (found.code, found.out) == (3, "")
    assert found.err.splitlines()[-1].endswith(
        "onnx, which edits the graph, is not installed; run: pip install 'gft-edge[onnx]'"
    )


def test_a_baseline_and_the_published_variant_are_refused(refused, make_model, tiny_info, animals, tmp_path):
    budget = TokenBudget((2,), 4)
    sizes = {"image_size": 32, "patch_size": 16, "num_classes": 4, "embed_dim": 64, "depth": 6, "num_heads": 2}
    published = preset("gft_base_published", backbone="test_vit", stages=(2,), budget=budget, **sizes)
    vit = preset("vit_tiny", backbone="test_vit", image_size=32, num_classes=4)
    for name, config, facts in (
        ("published", published, "do not depend on the selection"),
        ("vit", vit, "without stages"),
    ):
        save_checkpoint(tmp_path / name, dataclasses.replace(tiny_info, model=config), make_model(config))
        assert facts in refused(tmp_path / name, "--data", animals)


def test_data_without_images_is_refused(refused, tiny_checkpoint, tmp_path):
    (tmp_path / "empty/ant").mkdir(parents=True)
    assert "empty" in refused(tiny_checkpoint, "--data", tmp_path / "empty")
    assert "does not record the data" in refused(tiny_checkpoint)
    (tmp_path / "other/test/emu").mkdir(parents=True)
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(tmp_path / "other/test/emu/a.png")
    assert "unknown to the model: 'emu'" in refused(tiny_checkpoint, "--data", tmp_path / "other")


def test_an_output_that_cannot_be_written_is_refused_before_the_work(refused, tiny_checkpoint, animals, tmp_path):
    (tmp_path / "file").write_text("mine")
    assert "is a file" in refused(tiny_checkpoint, "--data", animals, "--out", tmp_path / "file")


def test_the_result_is_printed_though_its_files_do_not_fit(gft_edge, tiny_checkpoint, animals, tmp_path, monkeypatch):
    def fail(*_):
        raise OutputError(tmp_path / "out/controls.svg", "No space left on device")

    monkeypatch.setattr("gft_edge.report.pages.controls.write_controls", fail)
    found = gft_edge("controls", tiny_checkpoint, "--data", animals, "--images", 8, "--out", tmp_path / "out")
    assert found.code == 2
    assert "most important" in found.out and "On these 8 images" in found.out
    assert found.err.splitlines()[-1].endswith("controls.svg: No space left on device")


def test_the_same_command_gives_the_same_bytes(gft_edge, tiny_checkpoint, animals, done):
    again = gft_edge(
        "controls", tiny_checkpoint, "--data", animals, "--budget", "12,6", "--budget", "4,4", "--json"
    )  # fmt: skip
    assert again.out == done[0].out
