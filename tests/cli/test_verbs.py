"""Verbs on a small model and a folder of images of the user's own."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sysconfig
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gft_edge.checkpoint import load_checkpoint
from gft_edge.data.datasets import image_folder
from gft_edge.manifest import load_artifact
from gft_edge.preprocess import PreprocessSpec
from gft_edge.report.figures.overlays import HEADING, LEGEND, TITLE

COMMAND = Path(sysconfig.get_path("scripts")) / "gft-edge"


@pytest.fixture(scope="module")
def trained(gft_edge, tmp_path_factory):
    folder = tmp_path_factory.mktemp("train")
    (folder / "recipe.toml").write_text(
        '[model]\npreset = "gft_typeface"\nimage_size = 32\n'
        "[data]\ntrain_images = 64\neval_images = 16\nnum_workers = 0\n"
        "[train]\nsteps = 9\nbatch_size = 4\nwarmup_steps = 1\nthreads = 1\n"
    )
    command = ["train", "--config", folder / "recipe.toml", "--out", folder / "out", "--set", "train.steps=2"]
    return folder / "out", gft_edge(*command, "--json")


def test_train_writes_a_checkpoint_that_can_be_evaluated(gft_edge, trained):
    out, done = trained
    assert done.code == 0, done.err
    assert (done.json["out"], done.json["steps"], done.json["budget"]) == (str(out), 2, "12-8-4")
    assert "step 2" in done.err
    assert load_checkpoint(out).info.provenance["recipe"]["train"]["steps"] == 2
    assert json.loads((out / "log.jsonl").read_text().splitlines()[-1])["step"] == 2
    rows = gft_edge("evaluate", out, "--images", 32, "--budget", "12,8,2", "--json").json["results"]
    assert [row["budget"] for row in rows] == ["12-8-2"]


def test_evaluate_builtin_in_words(gft_edge):
    done = gft_edge("evaluate", "builtin", "--images", 32, "--budget", "144,72,36")
    assert (done.code, done.err) == (0, "")
    head, names, _, row, *_ = done.out.splitlines()
    assert head == "builtin on 32 test images of scenes, torch"
    assert names.split() == ["budget", "precision", "top-1", "95", "%", "interval", "top-5"]
    assert row.startswith("144-72-36  fp32")


def test_artefact_and_checkpoint_are_right_on_the_same_images(gft_edge, made, animals, tmp_path):
    common = ["--data", animals, "--images", 24, "--json"]
    checkpoint = gft_edge("evaluate", made["ckpt"], *common, "--budget", "12,6").json
    artifact = gft_edge("evaluate", made["fp32"], *common, "--threads", 1, "--out", tmp_path / "e.json").json
    assert json.loads((tmp_path / "e.json").read_text()) == artifact
    assert artifact["backend"] == "onnxruntime"
    assert checkpoint["images"] == artifact["images"] == 24
    for row in (*artifact["results"], *checkpoint["results"]):
        for wrong in row["wrong"]:  # rounded differently, and only the artefact's are drawn
            del wrong["probability"], wrong["picture"]
        row["wrong"].sort(key=lambda wrong: wrong["image"])
    assert artifact["results"] == checkpoint["results"]
    assert gft_edge("evaluate", made["int8"], *common).json["results"][0]["precision"] == "int8"


def test_images_that_cannot_be_read_are_named_and_left_out(gft_edge, made, animals, write_damaged, tmp_path):
    data = Path(shutil.copytree(animals, tmp_path / "animals"))
    write_damaged(data / "bee/zz.png", "test")
    for model in (made["ckpt"], made["fp32"]):
        done = gft_edge("evaluate", model, "--data", data, "--images", 99, "--json")
        assert (done.json["images"], done.json["unreadable_images"]) == (24, 1)
        assert "zz.png: cannot be decoded" in done.err


def test_quantized_checkpoint_knows_what_it_was_made_from(made, animals):
    parent, info = load_checkpoint(made["ckpt"]), load_checkpoint(made["ckpt8"]).info
    assert info.provenance["quantized_from"] == parent.sha256
    assert info.quantization["data"] == str(animals)
    assert info.quantization["split"] == "train"
    assert info.quantization["calibration_images"] == 24
    assert info.quantization["preprocess"] == parent.info.preprocess.id
    assert len(info.quantization["ranges"]) == 12


def test_export_enters_its_budget_and_files(made):
    fp32, int8 = (load_artifact(made[name]).manifest for name in ("fp32", "int8"))
    assert (fp32.precision, fp32.maps, fp32.budget.id, fp32.quantization) == ("fp32", "none", "12-6", None)
    assert (int8.precision, int8.maps) == ("int8", "compact")
    assert set(fp32.files) == {"model.onnx", "golden.npz"}
    assert fp32.checkpoint_sha256 == load_checkpoint(made["ckpt"]).sha256


@pytest.mark.usefixtures("one_export_each")
def test_verify_in_words_and_on_record(gft_edge, copied, made, animals):
    artifact = copied("int8")
    done = gft_edge("verify", artifact)
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("int8 on 16 golden images\n")
    assert done.out.endswith("\npassed\n")
    assert "torch fp32" in done.out
    assert "torch int8" in done.out
    common = ["--checkpoint", made["ckpt8"], "--data", animals, "--images", 24]
    report = gft_edge("verify", artifact, *common, "--json").json
    assert report["passed"]
    assert report["source"] == f"24 test images of {animals}"
    manifest = load_artifact(artifact).manifest
    assert manifest.parity["verify"] == {"passed": True, "source": report["source"]}
    assert json.loads(load_artifact(artifact).file("reports/verify.json").read_text()) == report


@pytest.mark.parametrize("name", ["fp32", "int8"])
def test_build_in_words(gft_edge, copied, name):
    pytest.importorskip("tensorrt_rtx")
    artifact = copied(name)
    command = ["build", artifact, "--target", "rtx", "--compute-capability", "8.6, 12.0", "--batch", 4]
    done = gft_edge(*command)
    assert done.code == 0
    (engine,) = artifact.glob("engines/*.engine")
    assert done.out.startswith(f"{engine}: ")
    assert "compute capability 8.6, 12.0 (compiled; not yet run on a GPU)" in done.out
    assert engine.name.endswith(f"_sm86-sm120_{name}_b4-4-4.engine")
    assert all(line.startswith("build: ") for line in done.err.splitlines())


def test_predict_draws_what_was_kept(gft_edge, made, animals, tiny_info, tmp_path):
    images = [animals / "ant/00.png", animals / "bee/01.png"]
    done = gft_edge(
        "predict", made["int8"], *images, "--maps", tmp_path / "maps", "--out", tmp_path / "p.json", "--json"
    )
    rows = done.json["predictions"]
    assert [row["image"] for row in rows] == [str(path) for path in images]
    assert all(row["label"] in tiny_info.labels and 0.25 <= row["probability"] <= 1 for row in rows)
    assert [Path(row["map"]).name for row in rows] == ["00-00.png", "01-01.png"]
    assert json.loads((tmp_path / "p.json").read_text()) == done.json
    drawn = np.asarray(Image.open(rows[0]["map"]))
    top = HEADING + TITLE
    assert drawn.shape == (top + 192 + LEGEND, 4 * 192 + 3 * 8, 3)
    pixels = np.asarray(Image.open(images[0]))
    np.testing.assert_array_equal(drawn[top : top + 192 : 6, :192:6], PreprocessSpec(32, 32).geometry(pixels))


def test_predict_takes_images_of_different_sizes(gft_edge, made, tmp_path):
    for number, (mode, size) in enumerate([("RGB", (9, 70)), ("L", (64, 32)), ("RGBA", (32, 32))]):
        Image.new(mode, size, 0).save(tmp_path / f"{number}.png")
    rows = gft_edge("predict", made["fp32"], *sorted(tmp_path.glob("*.png")), "--json").json["predictions"]
    assert len(rows) == 3
    assert all(row["map"] == "" for row in rows)


def test_installed_command_prints_results_and_nothing_else(made, animals):
    for command in (["predict", made["int8"], animals / "ant/00.png"], ["verify", made["fp32"]], ["doctor"]):
        done = subprocess.run([COMMAND, *command, "--json"], capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")
        assert json.loads(done.stdout)


def test_installed_command_exports_with_clean_output(made, animals, tmp_path):
    command = [COMMAND, "export", made["ckpt8"], "--data", animals, "--budget", "50%,12.5%", "--json"]
    done = subprocess.run([*command, "--out", tmp_path / "out"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["budget"] == "8-2"
    assert done.stderr == "export: tracing at budget 8-2\n"


@pytest.mark.usefixtures("one_export_each")
def test_artefacts_are_verified_and_evaluated_on_test_images_alone(gft_edge, made, animals, seen):
    test = {hashlib.sha256(path.read_bytes()).hexdigest() for path, _ in image_folder(animals, "test").samples}
    done = gft_edge("verify", made["fp32"], "--checkpoint", made["ckpt"], "--data", animals, "--json")
    assert (done.json["source"], seen) == (f"24 test images of {animals}", test)
    seen.clear()
    done = gft_edge("evaluate", made["fp32"], "--data", animals, "--json")
    assert (done.json["split"], seen) == ("test", test)
