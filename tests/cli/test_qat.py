"""quantize with QAT, and what it does without calibration, as a user would run it."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch

from gft_edge.checkpoint import load_checkpoint
from gft_edge.data.batches import evaluation_batches
from gft_edge.data.datasets import open_images
from gft_edge.manifest import load_artifact
from gft_edge.runtime.backends.sessions import open_session

FAST = ["--qat-set", "batch_size=4", "--qat-set", "num_workers=0", "--qat-set", "lr=1e-3"]


@pytest.fixture(scope="session")
def split(animals, tmp_path_factory):
    """Seven animals of each class: four to train on, two for tests, one for validation."""
    root = tmp_path_factory.mktemp("split") / "animals"
    for folder in sorted(animals.iterdir()):
        for number, file in enumerate(sorted(folder.iterdir())[:7]):
            target = root / ("val" if number == 6 else "test" if number % 3 == 0 else "train") / folder.name / file.name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, target)
    return root


@pytest.fixture(scope="module")
def trained(gft_edge, tiny_checkpoint, split, tmp_path_factory):
    out = tmp_path_factory.mktemp("trained") / "qat"
    command = ["quantize", tiny_checkpoint, "--data", split, "--images", 16, "--qat-epochs", 2, *FAST]
    done = gft_edge(*command, "--out", out, "--json")
    assert done.code == 0, done.err
    return out, done.json


def test_report_is_printed_and_kept(trained):
    out, said = trained
    report = said["qat_report"]
    assert report == json.loads((out / "calibration/qat.json").read_text())
    assert (report["images"], report["source"][:14]) == (8, "test images of")
    assert [f["model"] for f in report["figures"][:5]] == [
        "FP32 before",
        "PTQ",
        "FP32 after control",
        "PTQ after control",
        "QAT",
    ]
    for course in (report["course"], report["control_course"]):
        assert (course["steps"], course["images"]) == (8, 32), "two epochs of sixteen images in fours"
    assert report["course"]["data_sha256"] == report["control_course"]["data_sha256"]
    assert report["verdict"] in ("better", "worse", "inconclusive")
    assert report["sentence"].endswith(f"exact McNemar p = {report['top1']['mcnemar_p']:.2g}")
    files = sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())
    names = ("card.json", "certificates.json", "convergence.svg", "qat.json", "ranges.json", "selection.json")
    assert files == [*(f"calibration/{name}" for name in names), "config.json", "model.safetensors", "train_images.npz"]


def test_selection_is_checked_on_held_out_images(trained, split):
    out, said = trained
    selection = json.loads((out / "calibration/selection.json").read_text())
    assert said["selection"] == selection
    assert (selection["images"], selection["held_out"], selection["split"]) == (8, True, "test")
    assert selection["data"] == str(split)


def test_record_of_the_checkpoint(trained, tiny_checkpoint):
    info = load_checkpoint(trained[0]).info
    assert info.quantization["qat"]["steps"] == 8
    assert info.quantization["qat"]["lr"] == 1e-3
    assert info.quantization["precision"] == "int8"
    assert info.provenance["quantized_from"] == load_checkpoint(tiny_checkpoint).sha256


def test_weights_were_trained_and_the_artefact_is_the_twin(gft_edge, trained, tiny_checkpoint, split, tmp_path):
    checkpoint, before = load_checkpoint(trained[0]), load_checkpoint(tiny_checkpoint)
    weights = zip(checkpoint.model.parameters(), before.model.parameters(), strict=True)
    assert any(not torch.equal(a, b) for a, b in weights)
    done = gft_edge("export", trained[0], "--data", split, "--out", tmp_path / "x", "--json")
    assert (done.code, done.json["precision"]) == (0, "int8"), done.err
    images, _ = next(evaluation_batches(open_images(str(split), "test", 8, 32), checkpoint.info.preprocess))
    found = open_session(load_artifact(tmp_path / "x"))(images)["logits"]
    with torch.no_grad():
        twin = checkpoint.model(torch.from_numpy(images)).numpy()
    assert np.square(found - twin).sum() < 10**-2.5 * np.square(twin).sum()


def test_in_words_and_the_same_again(gft_edge, trained, tiny_checkpoint, split, tmp_path):
    command = ["quantize", tiny_checkpoint, "--data", split, "--images", 16, "--qat-steps", 8, *FAST]
    done = gft_edge(*command, "--out", tmp_path / "again")
    assert done.code == 0, done.err
    assert "QAT: 8 steps, 32 images, distillation loss " in done.out
    assert done.out.count("PTQ after control") == 3
    result, following = done.out.split("\nnext:\n")
    assert "PTQ after as many FP32 steps (8)" in result.splitlines()[-1]
    assert following.count("gft-edge export ") == 2
    for file in ("model.safetensors", "config.json", "calibration/qat.json"):
        assert (tmp_path / "again" / file).read_bytes() == (trained[0] / file).read_bytes()


@pytest.mark.parametrize("further", [["--precision", "fp8"], ["--precision", "int8-weights"], ["--smoothquant"]])
def test_other_precisions_are_trained_too(gft_edge, tiny_checkpoint, split, tmp_path, further):
    command = ["quantize", tiny_checkpoint, "--data", split, "--images", 16, "--qat-steps", 1, *FAST, *further]
    done = gft_edge(*command, "--out", tmp_path / "q", "--json")
    assert done.code == 0, done.err
    assert done.json["qat"]["steps"] == 1
    assert load_checkpoint(tmp_path / "q").info.quantization["precision"] == done.json["precision"]


def test_weights_alone_need_no_calibration(gft_edge, tiny_checkpoint, split, tmp_path, monkeypatch):
    def never(*_):
        raise AssertionError("ranges were gathered")

    monkeypatch.setattr("gft_edge.calibration.quantize.module_ranges", never)
    command = ["quantize", tiny_checkpoint, "--data", split, "--images", 8, "--precision", "int8-weights"]
    done = gft_edge(*command, "--out", tmp_path / "q")
    assert done.code == 0, done.err
    assert "12 layers in INT8 weights, which needs no calibration" in done.out
    info = load_checkpoint(tmp_path / "q").info
    assert (info.quantization["ranges"], len(info.quantization["precisions"])) == ({}, 12)
    assert (info.quantization["calibration_images"], info.quantization["calibration_set"]) == (0, None)
    assert sorted(path.name for path in (tmp_path / "q/calibration").iterdir()) == [
        "certificates.json",
        "selection.json",
    ]


def test_weights_alone_with_smoothquant_read_images(gft_edge, tiny_checkpoint, split, tmp_path):
    command = ["quantize", tiny_checkpoint, "--data", split, "--images", 16, "--precision", "int8-weights"]
    done = gft_edge(*command, "--smoothquant", "--out", tmp_path / "q", "--json")
    assert done.code == 0, done.err
    assert (done.json["smoothquant"], done.json["calibration_images"]) == (0.5, 0)


REFUSALS = {
    "both": (["--qat-epochs", "1", "--qat-steps", "1"], "give --qat-epochs or --qat-steps, not both"),
    "no epochs": (["--qat-epochs", "0"], "argument --qat-epochs: must be at least 1, found 0"),
    "negative steps": (["--qat-steps", "-3"], "argument --qat-steps: must be at least 1, found -3"),
    "settings alone": (["--qat-set", "lr=1e-5"], "--qat-set is for QAT; give --qat-epochs or --qat-steps too"),
    "images alone": (["--eval-images", "5"], "--eval-images is for QAT; give --qat-epochs or --qat-steps too"),
    "percentile of another method": (["--percentile", "99"], "--percentile goes with --method percentile"),
    "unknown setting": (["--qat-steps", "1", "--qat-set", "rate=1"], "--qat-set: unknown key rate"),
    "several": (
        ["--qat-steps", "1", "--qat-set", "lr=-1", "--qat-set", "temperature=0"],
        "lr must be above 0 and finite, found -1.0; temperature must be above 0",
    ),
    "steps twice": (["--qat-steps", "1", "--qat-set", "steps=3"], "steps are --qat-steps"),
    "no value": (["--qat-steps", "1", "--qat-set", "lr"], "--qat-set 'lr': expected key=value"),
    "ranges": (["--qat-steps", "1", "--ranges", "{root}/ranges.json"], "leave out --ranges"),
    "batch": (["--qat-steps", "1", "--qat-set", "batch_size=17"], "16 training images are fewer than one batch of 17"),
    "trained on the test": (
        ["--qat-steps", "1", "--split", "test", "--force", "--images", "8", "--qat-set", "batch_size=4"],
        "8 training images are also among the test images",
    ),
    "no evaluation": (
        ["--qat-steps", "1", "--data", "{root}/train", "--qat-set", "batch_size=4"],
        "QAT needs evaluation images that it is not trained on; give the data train and test folders",
    ),
    "no data": (["--qat-steps", "1", "--data", "{root}/none"], "no such folder"),
    "the same images elsewhere": (
        ["--qat-steps", "1", "--data", "{flat}", "--split", "test", "--against", "{root}", "--qat-set", "batch_size=4"],
        "8 training images are also among the test images",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals(gft_edge, tiny_checkpoint, split, animals, tmp_path, case):
    further, expected = REFUSALS[case]
    places = {"root": split, "flat": animals}
    command = ["quantize", tiny_checkpoint, "--data", split, "--images", 16]
    done = gft_edge(*command, *(part.format(**places) for part in further), "--out", tmp_path / "out")
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1), done.err
    assert expected in done.err
    assert not (tmp_path / "out").exists()


def test_a_quantized_checkpoint_is_refused(gft_edge, trained, split, tmp_path):
    done = gft_edge("quantize", trained[0], "--data", split, "--qat-steps", 1, "--out", tmp_path / "out")
    assert done.code == 2
    assert "is quantized already; give the full-precision one" in done.err
