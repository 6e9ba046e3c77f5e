"""Which images the verbs read, by sha256, and which data they take when none is named."""

from __future__ import annotations

import base64
import copy
import dataclasses
import io
import json
import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from gft_edge.checkpoint import read_info, save_checkpoint
from gft_edge.data.datasets import image_folder
from gft_edge.errors import DataError
from gft_edge.export.onnx.golden_images import choose_golden_images
from gft_edge.files import sha256
from gft_edge.manifest import load_artifact

RECIPE = """
[model]
preset = "gft_typeface"
image_size = 32
stages = [1, 3, 6]
budget = "12,8,4"
[data]
name = {data}
num_workers = 0
[train]
steps = 12
batch_size = 8
warmup_steps = 1
checkpoint_every = 0
eval_every = 6
"""


def _taken(seen):
    taken = set(seen)
    seen.clear()
    return taken


def _write(folder, count, first):
    for number in range(first, first + count):
        for label in ("ant", "bee"):
            (folder / label).mkdir(parents=True, exist_ok=True)
            pixels = np.random.default_rng([number, label == "bee"]).integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / label / f"{number}.png")


def _no_splits(root):
    _write(root, 40, 0)


def _train_and_test(root):
    _write(root / "Training", 30, 0)
    _write(root / "Testing", 6, 100)
    shutil.copy(root / "Testing/ant/100.png", root / "Training/ant/copy.png")


def _train_and_val(root):
    _write(root / "train", 20, 0)
    _write(root / "validation", 6, 100)


@pytest.mark.parametrize("layout", [_no_splits, _train_and_test, _train_and_val])
def test_nothing_that_was_trained_on_is_called_validation_or_test(gft_edge, seen, tmp_path, layout):
    data, page = tmp_path / "data", tmp_path / "page"
    ckpt = page / "ckpt"
    layout(data)
    (tmp_path / "recipe.toml").write_text(RECIPE.format(data=json.dumps(str(data))))
    done = gft_edge("train", "--config", tmp_path / "recipe.toml", "--out", ckpt)
    assert done.code == 0, done.err
    in_training = _taken(seen)
    by_split = {}
    for split in ("train", "val", "test"):
        out = ["--out", page / f"{split}.json", "--json"]
        done = gft_edge("evaluate", ckpt, "--split", split, "--images", 999, "--budget", "full", *out)
        by_split[split] = _taken(seen)
        if (layout, split) == (_train_and_val, "test"):
            assert (done.code, by_split[split]) == (2, set())
            assert "has no test images, only train, val" in done.err
        else:
            assert done.code == 0, done.err
            assert (done.json["split"], done.json["data"]) == (split, str(data))
            assert done.json["images"] == len(by_split[split]) >= 2
    train, val, test = by_split.values()
    assert in_training == train | val
    assert not (train & val or train & test or val & test)
    held_out = test or val
    kind = "test" if test else "val"

    done = gft_edge("evaluate", ckpt, "--images", 999)
    assert f" on {len(held_out)} {kind} images of {data}" in done.out
    assert _taken(seen) == held_out
    assert gft_edge("quantize", ckpt, "--images", 16, "--out", page / "int8").code == 0
    quantized = _taken(seen)
    card = json.loads((page / "int8/calibration/card.json").read_text())
    assert set(card["hashes"]) <= train
    assert set(card["hashes"]) | held_out <= quantized <= set(card["hashes"]) | held_out | val
    assert (card["evaluation"]["split"], card["evaluation"]["overlap"]) == (kind, 0)
    golden = choose_golden_images(read_info(ckpt))
    assert (golden.source, len(golden.images)) == (
        f"{min(16, len(held_out))} {kind} images of {data}",
        min(16, len(held_out)),
    )
    assert _taken(seen) <= held_out
    _check_page(gft_edge, page, data, {"train": train, "val": val, "test": test})


def _check_page(gft_edge, run, data, files):
    """What the page says of each split, and the pixels of every picture under it, are of that split's images alone."""
    pixels = {}
    for path in data.rglob("*.png"):
        name = next((split for split, hashes in files.items() if sha256(path) in hashes), None)
        pixels[np.asarray(Image.open(path).convert("RGB")).tobytes()] = name
    done = gft_edge("report", run, "--json")
    assert done.code == 0, done.err
    page = (run / "report.html").read_text()
    spoken = {split: {int(n) for n in re.findall(rf"(\d+) {split} images of", page)} for split in files}
    assert spoken["val"] <= {len(files["val"])}
    assert spoken["test"] <= {len(files["test"])}
    assert spoken["test" if files["test"] else "val"]
    assert page.count("belong to the training split") == 1
    shown = []
    for text in re.split(r"(?=<p><b>[^<]*</b> on \d+ |<summary>)", page):
        split = re.search(r" on \d+ (train|val|test) images of", text[:400])
        for picture in re.findall(r"data:image/png;base64,([A-Za-z0-9+/=]+)", text) if split else ():
            image = np.asarray(Image.open(io.BytesIO(base64.b64decode(picture))).convert("RGB"))
            shown.append((split[1], pixels[image.tobytes()]))
    assert shown
    assert all(found == is_of for found, is_of in shown)


def test_training_images_in_another_folder_are_not_called_test_images(gft_edge, seen, tmp_path):
    data, other, ckpt = tmp_path / "data", tmp_path / "other", tmp_path / "ckpt"
    _no_splits(data)
    (tmp_path / "recipe.toml").write_text(RECIPE.format(data=json.dumps(str(data))))
    steps = ["--set", "train.steps=1", "--set", "train.eval_every=1"]
    assert gft_edge("train", "--config", tmp_path / "recipe.toml", "--out", ckpt, *steps).code == 0
    _taken(seen)
    trained = image_folder(data, "train").samples
    for number, (path, _) in enumerate(trained):
        (other / "test" / path.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, other / "test" / path.parent.name / f"renamed-{number}.png")
    done = gft_edge("evaluate", ckpt, "--data", other, "--images", 999)
    assert (done.code, seen) == (2, set())
    assert f"the model was trained on all {len(trained)} test images" in done.err
    assert choose_golden_images(read_info(ckpt), str(other), ckpt).source == f"16 train images of {other}"
    _write(other / "test", 8, 500)
    new = {sha256(path) for number in range(500, 508) for path in other.rglob(f"{number}.png")}
    assert len(new) == 16
    assert gft_edge("quantize", ckpt, "--precision", "int8-weights", "--out", tmp_path / "int8").code == 0
    assert gft_edge("export", tmp_path / "int8", "--data", other, "--out", tmp_path / "art").code == 0
    _taken(seen)
    for model in (ckpt, ckpt / "best", tmp_path / "int8", tmp_path / "art"):
        done = gft_edge("evaluate", model, "--data", other, "--images", 999, "--json")
        assert (done.code, done.json["images"]) == (0, 16), done.err
        assert _taken(seen) == new
        assert done.notes == (f"data: left out: {len(trained)} test images of {other} that the model was trained on",)
    command = [
        "verify",
        tmp_path / "art",
        "--checkpoint",
        tmp_path / "int8",
        "--data",
        other,
        "--images",
        999,
        "--json",
    ]
    assert gft_edge(*command).json["source"] == f"16 test images of {other}"


def test_training_keeps_how_its_images_were_found(gft_edge, tmp_path):
    _no_splits(tmp_path / "data")
    (tmp_path / "data/ant/notes.txt").touch()
    (tmp_path / "recipe.toml").write_text(RECIPE.format(data=json.dumps(str(tmp_path / "data"))))
    done = gft_edge("train", "--config", tmp_path / "recipe.toml", "--out", tmp_path / "ckpt", "--set", "train.steps=1")
    assert done.code == 0, done.err
    kept = read_info(tmp_path / "ckpt").provenance["data"]
    assert done.notes == tuple(f"data: {note}" for note in kept["notes"])
    assert any("split by a hash of each file" in note for note in kept["notes"])
    assert any("1 file that are not images (.txt)" in note for note in kept["notes"])
    assert kept["train_images"] >= 60


@pytest.fixture
def trained_on(tiny_info, tiny_model, tmp_path):
    """A checkpoint that says which data it was trained on."""

    def write(name):
        info = dataclasses.replace(tiny_info, provenance={"recipe": {"data": {"name": name}}})
        save_checkpoint(tmp_path / "ckpt", info, tiny_model)
        return tmp_path / "ckpt"

    return write


def test_the_data_of_the_checkpoint_is_the_default(gft_edge, trained_on, animals):
    done = gft_edge("evaluate", trained_on(str(animals)), "--json")
    assert (done.json["data"], done.json["split"], done.json["images"]) == (str(animals), "test", 24)


@pytest.mark.parametrize("name", ["gone", "typefaces:gone", "coco:gone"])
def test_data_that_a_checkpoint_remembers_and_that_is_not_there_is_named(gft_edge, trained_on, name):
    ckpt = trained_on(name)
    done = gft_edge("evaluate", ckpt)
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
    assert f"data {name}: no such folder here; checkpoint {ckpt} was trained on it" in done.err
    assert "give --data" in done.err


@pytest.mark.parametrize(
    "provenance", [{}, {"recipe": None}, {"recipe": {"data": []}}, {"recipe": {"data": {"name": 3}}}]
)
def test_a_checkpoint_without_a_data_set_asks_for_one(gft_edge, tiny_info, tiny_model, tmp_path, provenance):
    save_checkpoint(tmp_path / "ckpt", dataclasses.replace(tiny_info, provenance=provenance), tiny_model)
    for verb in (["evaluate"], ["quantize", "--out", tmp_path / "out"], ["sensitivity", "--out", tmp_path / "out"]):
        done = gft_edge(verb[0], tmp_path / "ckpt", *verb[1:])
        assert (done.code, done.err.count("\n")) == (2, 1)
        assert "does not record the data it was trained on; give --data" in done.err


def test_export_needs_no_data(gft_edge, trained_on, tmp_path):
    done = gft_edge("export", trained_on("gone"), "--maps", "compact", "--out", tmp_path / "art", "--json")
    assert done.code == 0, done.err
    assert done.json["golden_images"] == "16 images made from seed 0"
    assert "golden images are made from a seed (data gone: no such folder" in done.err
    manifest = load_artifact(tmp_path / "art").manifest
    assert (manifest.data, manifest.golden_images) == ("gone", done.json["golden_images"])
    done = gft_edge("verify", tmp_path / "art", "--json")
    assert (done.code, done.json["verdict"]) == (0, "pass")
    done = gft_edge("evaluate", tmp_path / "art")
    assert done.err.endswith(f"artefact {tmp_path / 'art'} was trained on it, give --data\n")


def test_golden_images_are_of_any_classes_or_none(tiny_info, animals, tmp_path):
    golden = choose_golden_images(tiny_info)
    assert golden.source == "16 images made from seed 0"
    assert (golden.images.shape, golden.images.dtype) == ((16, 3, 32, 32), np.float32)
    assert choose_golden_images(tiny_info, str(animals / "ant")).source == f"16 images of {animals / 'ant'}"
    assert choose_golden_images(tiny_info, str(animals)).source == f"16 test images of {animals}"
    _write(tmp_path / "small", 1, 0)
    assert choose_golden_images(tiny_info, str(tmp_path / "small")).source == f"2 train images of {tmp_path / 'small'}"
    golden = choose_golden_images(tiny_info, "typefaces")
    assert (golden.source, golden.images.shape) == ("16 test images of typefaces", (16, 3, 32, 32))
    with pytest.raises(DataError, match="no such folder"):
        choose_golden_images(tiny_info, "gone")


def test_classes_of_the_data_in_another_order_are_matched_by_name(gft_edge, tiny_info, tiny_model, animals, tmp_path):
    """The same model whose classes have other numbers is as right as before."""
    order = [2, 0, 3, 1]
    weights = {name: tensor.clone() for name, tensor in tiny_model.state_dict().items()}
    other = copy.deepcopy(tiny_model)
    for name in ("head.weight", "head.bias"):
        weights[name] = weights[name][order]
    other.load_state_dict(weights)
    labels = tuple(tiny_info.labels[number] for number in order)
    save_checkpoint(tmp_path / "a", tiny_info, tiny_model)
    save_checkpoint(tmp_path / "b", dataclasses.replace(tiny_info, labels=labels), other)
    first, second = (gft_edge("evaluate", tmp_path / c, "--data", animals, "--json").json for c in "ab")
    assert [row["right"] for row in first["results"]] == [row["right"] for row in second["results"]]
    assert 0 < first["results"][0]["right"] < 24


def test_help_names_every_form_of_data(gft_edge):
    found = "".join(gft_edge("evaluate", "--help").out.split())
    for form in (
        "ROOT/CLASS",
        "{train,val,test}",
        "'typefaces'",
        "typefaces:FOLDER",
        "fgvc-aircraft:",
        "food101:",
        "coco:",
    ):
        assert form in found


@pytest.mark.parametrize(
    "command",
    [
        ["evaluate"],
        ["calibrate", "--images", 8, "--out", "new"],
        ["quantize", "--images", 8, "--out", "new"],
        ["quantize", "--precision", "int8-weights", "--out", "new"],
        ["sensitivity", "--images", 8, "--eval-images", 8, "--out", "new"],
        ["export", "--out", "new"],
    ],
    ids=lambda command: "-".join(map(str, command[:3])),
)
def test_logits_that_are_not_finite_end_every_verb(
    gft_edge, tiny_info, tiny_model, animals, tmp_path, monkeypatch, command
):
    """Finite weights whose products overflow, as after a training that went wrong."""
    model = copy.deepcopy(tiny_model)
    with torch.no_grad():
        model.head.weight.fill_(3e38)
    save_checkpoint(tmp_path / "ckpt", tiny_info, model)
    monkeypatch.chdir(tmp_path)
    done = gft_edge(command[0], "ckpt", "--data", animals, *command[1:])
    assert (done.code, done.out) == (1, "")
    assert "logits of " in done.err.splitlines()[-1] and " NaN or infinite" in done.err.splitlines()[-1]
    assert not (tmp_path / "new").exists()
