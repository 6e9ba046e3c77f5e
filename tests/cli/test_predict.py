"""``gft-edge predict``: folders, bad files among good ones, the best classes, JSON and CSV."""

from __future__ import annotations

import argparse
import csv
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from PIL import Image

from gft_edge.cli.verbs import bench
from gft_edge.errors import CheckFailed
from gft_edge.files import read_json
from gft_edge.manifest import FileInfo, load_artifact
from gft_edge.runtime import image_files
from gft_edge.runtime.classifier import Classifier
from gft_edge.storage.seals import write_sealed


@pytest.fixture
def mixed(animals, tmp_path):
    """A folder with two good images, three bad ones, and files that are to be passed over."""
    root = tmp_path / "mixed"
    (root / "sub").mkdir(parents=True)
    shutil.copy(animals / "ant/00.png", root / "good.png")
    shutil.copy(animals / "bee/01.png", root / "sub/GOOD.PNG")
    (root / "sub/bad.jpg").write_text("no image")
    (root / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic")
    (root / "half.png").write_bytes((animals / "ant/00.png").read_bytes()[:200])
    for name in ("._good.png", "notes.txt", ".hidden.png"):
        (root / name).write_text("passed over")
    return root


def test_folder_with_bad_files_goes_on(gft_edge, made, mixed, tmp_path):
    done = gft_edge("predict", made["fp32"], mixed, "--out", tmp_path / "p.json", "--json")
    assert done.code == 0
    assert [row["image"] for row in done.json["predictions"]] == [str(mixed / "good.png"), str(mixed / "sub/GOOD.PNG")]
    bad = {entry["image"]: entry["problem"] for entry in done.json["unreadable"]}
    assert list(bad) == [str(mixed / name) for name in ("half.png", "phone.heic", "sub/bad.jpg")]
    assert all("cannot be decoded as an image" in problem for problem in bad.values())
    assert done.err.splitlines() == [f"left out: {problem}" for problem in bad.values()]
    assert json.loads((tmp_path / "p.json").read_text()) == done.json


def test_files_as_a_glob_gives_them_go_on_too(gft_edge, made, mixed):
    done = gft_edge("predict", made["fp32"], mixed / "notes.txt", mixed / "none.png", mixed / "good.png", "--json")
    assert done.code == 0
    assert [row["image"] for row in done.json["predictions"]] == [str(mixed / "good.png")]
    problems = [entry["problem"] for entry in done.json["unreadable"]]
    assert "cannot be decoded as an image" in problems[0]
    assert problems[1].endswith("none.png: no such file")


def test_predictions_are_those_of_the_classifier(gft_edge, made, animals, tiny_info):
    paths = sorted(animals.rglob("*.png"))
    rows = gft_edge("predict", made["fp32"], animals, "--top", 3, "--json").json["predictions"]
    assert [row["image"] for row in rows] == [str(path) for path in paths]
    for row, found in zip(rows, Classifier.open(made["fp32"]).predict(paths), strict=True):
        powers = np.exp(found.logits.astype(np.float64))
        order = np.argsort(-powers)[:3]
        assert [entry["label"] for entry in row["top"]] == [tiny_info.labels[index] for index in order]
        assert [entry["probability"] for entry in row["top"]] == pytest.approx(
            list(powers[order] / powers.sum()), abs=1e-4
        )
        assert (row["label"], row["probability"]) == tuple(row["top"][0].values())


def test_top_classes_in_words(gft_edge, made, mixed):
    header, _, *lines = gft_edge("predict", made["fp32"], mixed, "--top", 2).out.splitlines()
    assert header.split() == ["image", "label", "probability"]
    assert [line.startswith(str(mixed)) for line in lines] == [True, False, True, False]
    assert gft_edge("predict", made["fp32"], mixed, "--top", 0).code == 2


def test_csv_has_one_line_per_image(gft_edge, made, mixed, tmp_path):
    command = ["predict", made["fp32"], mixed, "--top", 99, "--json", "--out"]
    found = gft_edge(*command, tmp_path / "p.CSV").json
    with (tmp_path / "p.CSV").open(encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    best = [name for rank in (2, 3, 4) for name in (f"label_{rank}", f"probability_{rank}")]
    assert header == ["image", "label", "probability", *best, "map", "problem"]
    assert len(rows) == 5
    for row, prediction in zip(rows, found["predictions"]):
        assert row[0] == prediction["image"]
        assert row[1:9:2] == [entry["label"] for entry in prediction["top"]]
        assert [float(value) for value in row[2:9:2]] == [entry["probability"] for entry in prediction["top"]]
        assert row[9:] == ["", ""]
    assert [(row[0], row[-1]) for row in rows[2:]] == [tuple(entry.values()) for entry in found["unreadable"]]


@pytest.mark.parametrize("name", ["p.txt", "p", "p.json.gz"])
def test_output_of_another_kind_is_refused_first(gft_edge, made, mixed, tmp_path, name):
    done = gft_edge("predict", made["fp32"], mixed, "--out", tmp_path / name)
    assert (done.code, done.out) == (2, "")
    assert "expected a name that ends in .json or .csv" in done.err


def test_no_readable_image_is_an_error(gft_edge, made, mixed, tmp_path):
    done = gft_edge("predict", made["fp32"], mixed / "half.png", mixed / "notes.txt", "--out", tmp_path / "p.json")
    assert (done.code, done.out) == (2, "")
    assert done.err.splitlines()[-1] == "gft-edge predict: none of the 2 images can be read"
    assert not (tmp_path / "p.json").exists()
    done = gft_edge("predict", made["fp32"], mixed / "half.png")
    assert (done.code, len(done.err.splitlines())) == (2, 1)
    assert "half.png: cannot be decoded" in done.err
    (tmp_path / "empty").mkdir()
    done = gft_edge("predict", made["fp32"], tmp_path / "empty")
    assert done.code == 2
    assert "empty: cannot be decoded as an image (is a folder without image files)" in done.err


def test_many_bad_files_are_counted_not_listed(gft_edge, made, mixed):
    for number in range(40):
        (mixed / f"{number}.png").write_text("no image")
    done = gft_edge("predict", made["fp32"], mixed, "--json")
    assert len(done.json["unreadable"]) == 43
    assert done.err.splitlines()[20:] == ["left out: 23 more"]


def test_maps_of_the_good_ones_are_drawn(gft_edge, made, mixed, tmp_path):
    long = mixed / ("x" * 240 + ".png")
    shutil.copy(mixed / "good.png", long)
    rows = gft_edge("predict", made["int8"], mixed, "--maps", tmp_path / "maps", "--json").json["predictions"]
    names = [Path(row["map"]).name for row in rows]
    assert names == ["00-good.png", "03-GOOD.png", "05-" + "x" * 100 + ".png"]
    assert sorted(names) == sorted(path.name for path in (tmp_path / "maps").iterdir())


def test_maps_inside_a_folder_of_images_are_not_classified_again(gft_edge, made, mixed):
    maps = mixed / "sub/maps"
    first, again = (gft_edge("predict", made["int8"], mixed, "--maps", maps, "--json").json for _ in range(2))
    assert again == first and len(first["predictions"]) == len(list(maps.iterdir())) == 2
    named = gft_edge("predict", made["int8"], first["predictions"][0]["map"], "--maps", maps, "--json").json
    assert [row["image"] for row in named["predictions"]] == [first["predictions"][0]["map"]]


def test_maps_beside_the_images_of_a_folder_are_refused(gft_edge, made, mixed):
    before = sorted(mixed.rglob("*"))
    done = gft_edge("predict", made["int8"], mixed, "--maps", f"{mixed}/sub/..")
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
    assert "is a folder of images to classify" in done.err
    assert sorted(mixed.rglob("*")) == before


def test_file_names_that_are_no_utf8_can_be_written(gft_edge, made, mixed, tmp_path):
    for name, source in ((b"\xff.png", "good.png"), (b"\xfe.png", "notes.txt")):
        (mixed / name.decode("utf-8", "surrogateescape")).write_bytes((mixed / source).read_bytes())
    for name in ("p.json", "p.csv"):
        assert gft_edge("predict", made["fp32"], mixed, "--json", "--out", tmp_path / name).code == 0
    found = json.loads((tmp_path / "p.json").read_text(encoding="utf-8"))
    names = {Path(entry["image"]).name for part in ("predictions", "unreadable") for entry in found[part]}
    assert "\udcff.png" in names
    assert "\udcfe.png" in names
    assert (tmp_path / "p.csv").read_text(encoding="utf-8").count(f"{mixed}/\ufffd.png") >= 2


def test_logits_that_are_not_finite_are_an_error(gft_edge, made, animals, tmp_path):
    broken = Path(shutil.copytree(made["fp32"], tmp_path / "broken"))
    graph = onnx.load(broken / "model.onnx")
    (last,) = [node for node in graph.graph.node if "logits" in node.output]
    tensors = {tensor.name: tensor for tensor in graph.graph.initializer}
    bias = next(tensors[name] for name in reversed(last.input) if name in tensors)
    bias.CopyFrom(numpy_helper.from_array(np.full_like(numpy_helper.to_array(bias), np.nan), bias.name))
    onnx.save(graph, broken / "model.onnx")
    manifest = read_json(broken / "manifest.json", "manifest")
    info = FileInfo.of(broken / "model.onnx")
    manifest["files"]["model.onnx"] = {"sha256": info.sha256, "size": info.size}
    write_sealed(broken / "manifest.json", manifest)
    for command in (["predict", broken, animals], ["evaluate", broken, "--data", animals]):
        done = gft_edge(*command, "--out", tmp_path / "o.json", "--json")
        assert (done.code, done.out) == (1, "")
        assert f"artefact {broken}" in done.err and "logits of " in done.err
        assert " are NaN or infinite" in done.err
        assert {path.name for path in tmp_path.iterdir()} == {"broken"}
    measured = bench._accuracy(argparse.Namespace(data=str(animals)))
    with pytest.raises(CheckFailed, match="are NaN or infinite"):
        measured(load_artifact(broken), "onnxruntime")


def test_missing_pillow_is_one_line(gft_edge, made, mixed, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    done = gft_edge("predict", made["fp32"], mixed)
    assert (done.code, done.out) == (3, "")
    assert done.err.startswith("gft-edge predict: Pillow, which reads image files, is not installed; run: pip install")


def test_large_images_are_read_one_at_a_time(gft_edge, made, tmp_path, monkeypatch):
    alive = []

    class Picture(np.ndarray):
        def __del__(self):
            if self.base is None:
                alive.remove(id(self))

    def read(path):
        assert not alive, "the image before is still in memory"
        picture = np.zeros((64, 64, 3), np.uint8).view(Picture).copy()
        alive.append(id(picture))
        return picture

    monkeypatch.setattr(image_files, "read_image", read)
    for number in range(20):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{number}.png")
    assert len(gft_edge("predict", made["int8"], tmp_path, "--json").json["predictions"]) == 20
