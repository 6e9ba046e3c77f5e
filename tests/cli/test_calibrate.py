"""calibrate and what quantize does with it, as a user would run them."""

from __future__ import annotations

import json
import re
import shutil
import struct
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from gft_edge.calibration.cache import read_cache
from gft_edge.calibration.images import CalibrationSet
from gft_edge.calibration.ranges import Convergence, Ranges, read_ranges
from gft_edge.checkpoint import load_checkpoint
from gft_edge.data.batches import evaluation_batches
from gft_edge.data.datasets import open_images
from gft_edge.manifest import load_artifact
from gft_edge.runtime.backends.sessions import onnxruntime_session
from gft_edge.storage.seals import read_sealed


@pytest.fixture
def data(animals):
    return ["--data", animals, "--images", 24]


@pytest.fixture(scope="module")
def calibrated(gft_edge, made, animals, tmp_path_factory):
    out = tmp_path_factory.mktemp("calibrated") / "out"
    done = gft_edge(
        "calibrate", made["ckpt"], "--data", animals, "--images", 24, "--method", "entropy", "--out", out, "--json"
    )
    assert done.code == 0, done.err
    return out, done.json


def test_calibrate_a_checkpoint(calibrated, made):
    out, said = calibrated
    assert sorted(path.name for path in out.iterdir()) == ["card.json", "convergence.svg", "ranges.json"]
    card = CalibrationSet.from_json(read_sealed(out / "card.json", "card", ""))
    ranges = read_ranges(out / "ranges.json")
    assert ranges.card_id == card.id
    assert ranges.model_sha256 == load_checkpoint(made["ckpt"]).sha256
    assert (ranges.method, ranges.images, len(ranges.values)) == ("entropy", 24, 12)
    assert ranges.convergence.images == (16, 24)
    assert (out / "convergence.svg").read_text().startswith("<svg")
    assert said["ranges"] == read_sealed(out / "ranges.json", "ranges", "")
    assert card.class_counts == dict.fromkeys(("ant", "bee", "cat", "dog"), 6)


def test_calibrate_in_words(gft_edge, made, data, tmp_path):
    done = gft_edge("calibrate", made["ckpt"], *data, "--choose", "coverage", "--out", tmp_path / "out")
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith(f"{tmp_path / 'out'}: ranges of 12 tensors by max\n24 train images of ")
    assert f"; 0 of them among 24 test images of {data[1]}" in done.out
    assert done.notes == (
        f"data: {data[1]} has no train, val and test folders: split by a hash of each file, 24 train, 24 val, 24 test images",
    )


def test_quantize_with_ranges_is_quantize_with_the_method(gft_edge, made, data, calibrated, tmp_path):
    command = ["quantize", made["ckpt"], *data, "--no-smoothquant", "--selection", "as-is"]
    apart = gft_edge(*command, "--ranges", calibrated[0] / "ranges.json", "--out", tmp_path / "a", "--json").json
    once = gft_edge(*command, "--method", "entropy", "--out", tmp_path / "b", "--json").json
    assert {**apart, "out": 0} == {**once, "out": 0}
    assert load_checkpoint(tmp_path / "a").sha256 == load_checkpoint(tmp_path / "b").sha256
    assert once["calibration_set"] == calibrated[1]["ranges"]["card_id"]


def test_quantize_writes_what_it_rests_on(made):
    files = sorted(path.name for path in (made["ckpt8"] / "calibration").iterdir())
    assert files == ["card.json", "certificates.json", "convergence.svg", "ranges.json", "selection.json"]
    selection = json.loads((made["ckpt8"] / "calibration/selection.json").read_text())
    assert [stage["stage"] for stage in selection["stages"]] == [0, 1]
    assert selection["images"] == 24


def test_quantize_prints_reasons_and_whether_selection_survives(gft_edge, made, data, tmp_path):
    (tmp_path / "p.toml").write_text(
        'smoothquant = 0.5\n[[rules]]\npattern = "blocks.0.mlp.*"\nprecision = "fp8"\nreason = "because of a test"\n'
    )
    done = gft_edge("quantize", made["ckpt"], *data, "--policy", tmp_path / "p.toml", "--out", tmp_path / "out")
    assert done.code == 0, done.err
    assert "2 layers in FP8 (emulated), calibrated on 24 images" in done.out
    assert done.out.count("because of a test") == 2
    assert "no rule matches" in done.out
    assert "selection on 24 images: " in done.out
    assert re.search(
        r"^certificates: \d+ of 24 images are certain .* bound from 24 val images of ",
        done.out,
        re.MULTILINE,
    )
    info = load_checkpoint(tmp_path / "out").info
    assert (info.quantization["precision"], info.quantization["smoothquant"]) == ("fp8", 0.5)
    row = gft_edge("evaluate", tmp_path / "out", *data, "--json").json["results"][0]
    assert row["precision"] == "fp8"


def test_the_bound_of_certificates_is_not_of_the_images_that_found_the_ranges(gft_edge, made, data, tmp_path):
    done = gft_edge("quantize", made["ckpt"], *data, "--split", "val", "--out", tmp_path / "out")
    assert done.code == 0, done.err
    assert re.search("24 val images of .*, balanced", done.out)
    (line,) = (line for line in done.out.splitlines() if line.startswith("certificates: "))
    assert "one half of 24 test images" in line and "val images" not in line


def test_exact_selection_leaves_what_feeds_the_scores(gft_edge, made, data, tmp_path):
    done = gft_edge("quantize", made["ckpt"], *data, "--selection", "exact", "--out", tmp_path / "q", "--json")
    assert done.code == 0, done.err
    assert {name.split(".")[1] for name in done.json["precisions"]} == {"1", "2"}
    check = done.json["certificates"]["check"]
    assert (check["images"], check["certified"], check["flipped"], check["broken"]) == (24, 24, 0, [])
    assert done.json["certificates"]["bound"]["stages"][1]["noise"] < 1e-4


@pytest.mark.parametrize("precision", ["fp8", "int8-weights"])
def test_other_precisions_are_exported_and_verified(gft_edge, made, data, animals, tmp_path, precision):
    gft_edge("quantize", made["ckpt"], *data, "--precision", precision, "--out", tmp_path / "q")
    done = gft_edge("export", tmp_path / "q", "--data", animals, "--out", tmp_path / "x", "--json")
    assert (done.code, done.json["precision"]) == (0, precision), done.err
    done = gft_edge("verify", tmp_path / "x", "--json")
    same = next(c for c in done.json["comparisons"] if c["reference"] != "torch fp32")
    assert same["logit_sqnr_db"] is None or same["logit_sqnr_db"] > 30


def test_attention_is_quantized_where_asked_for(gft_edge, made, data, animals, tmp_path):
    command = ["quantize", made["ckpt"], *data, "--attention", "int8", "--no-smoothquant", "--method", "max"]
    done = gft_edge(*command, "--out", tmp_path / "q")
    assert done.code == 0, done.err
    assert "12 layers and 3 attentions in INT8, calibrated on 24 images" in done.out
    attends = re.findall(r"attend +(\d+) +int8 .*both products of the attention in INT8, asked for", done.out)
    assert sum(map(int, attends)) == 3
    ranges = read_ranges(tmp_path / "q/calibration/ranges.json")
    assert sorted(name.rpartition(".")[2] for name in ranges.values if ".attend." in name) == sorted("qkv" * 3)
    calibrate = gft_edge("calibrate", made["ckpt"], *data, "--attention", "--out", tmp_path / "r")
    assert calibrate.code == 0, calibrate.err
    done = gft_edge(*command, "--ranges", tmp_path / "r/ranges.json", "--out", tmp_path / "again")
    assert done.code == 0, done.err
    assert load_checkpoint(tmp_path / "again").sha256 == load_checkpoint(tmp_path / "q").sha256
    done = gft_edge("export", tmp_path / "q", "--data", animals, "--out", tmp_path / "x", "--json")
    assert (done.code, done.json["precision"]) == (0, "int8"), done.err
    assert gft_edge("lint", tmp_path / "x", "--target", "rtx").code == 0
    done = gft_edge("verify", tmp_path / "x", "--json")
    same = next(c for c in done.json["comparisons"] if c["reference"] != "torch fp32")
    assert same["logit_sqnr_db"] is None or same["logit_sqnr_db"] > 30


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--attention", "fp8"], "--attention fp8 goes with --precision fp8, not int8"),
        (["--attention", "high", "--policy", "x.toml"], "--policy decides on attention too"),
        (["--attention", "int8", "--ranges"], "none for the input of blocks.0.attn.attend.q and 8 others"),
    ],
)
def test_attention_that_does_not_go_with_the_rest_is_refused(
    gft_edge, made, data, calibrated, tmp_path, options, message
):
    if options[-1] == "--ranges":
        options = [*options, calibrated[0] / "ranges.json"]
    done = gft_edge("quantize", made["ckpt"], *data, *options, "--out", tmp_path / "out")
    assert done.code == 2
    assert message in done.err
    assert not (tmp_path / "out").exists()


def test_interrupted_calibration_goes_on(gft_edge, made, data, calibrated, tmp_path):
    command = ["calibrate", made["ckpt"], *data, "--method", "entropy", "--state", tmp_path / "state"]
    assert gft_edge(*command, "--out", tmp_path / "a").code == 0
    assert gft_edge(*command, "--out", tmp_path / "b", "--json").json["ranges"] == calibrated[1]["ranges"]
    other = gft_edge(*command, "--seed", 1, "--out", tmp_path / "c")
    assert other.code == 2
    assert "belongs to another calibration set; remove it" in other.err


@pytest.fixture
def artifact(made, tmp_path):
    return Path(shutil.copytree(made["fp32"], tmp_path / "fp32"))


def test_calibrate_an_artefact(gft_edge, artifact, data, animals):
    done = gft_edge("calibrate", artifact, *data, "--calibrator", "minmax")
    assert done.code == 0, done.err
    assert "one for each version of --tensorrt 8.6.1,10.3.0): " in done.out
    loaded = load_artifact(artifact)
    names = {"card.json", "ranges.json", "convergence.svg"}
    names |= {f"tensorrt-{v}-minmax.cache{s}" for v in ("8.6.1", "10.3.0") for s in ("", ".json")}
    assert {name for name in loaded.manifest.files if name.startswith("calibration/")} == {
        f"calibration/{n}" for n in names
    }
    for name in names:
        loaded.file(f"calibration/{name}")
    ranges = read_ranges(artifact / "calibration/ranges.json")
    graph = onnx.load(artifact / "model.onnx")
    linears = [
        n
        for n in graph.graph.node
        if n.op_type == "MatMul" and n.input[1] in {i.name for i in graph.graph.initializer if len(i.dims) == 2}
    ]
    assert len(linears) == 12
    assert {n.input[0] for n in linears} | {n.output[0] for n in linears} <= set(ranges.values)
    del graph.graph.output[:]
    graph.graph.output.extend(onnx.helper.make_tensor_value_info(n, 1, None) for n in ranges.values)
    images = open_images(str(animals), "train", 24, 32)
    batch, _ = next(evaluation_batches(images, loaded.manifest.preprocess))
    for name, values in onnxruntime_session(graph.SerializeToString(), False)(batch).items():
        assert ranges.values[name] == pytest.approx(np.abs(values).max(), rel=1e-4)
    path = artifact / "calibration/tensorrt-8.6.1-minmax.cache"
    cache = read_cache(path, graph_sha256=loaded.manifest.files["model.onnx"].sha256, method="max")
    assert path.read_text().splitlines()[0] == "TRT-8601-MinMaxCalibration"
    name = linears[0].input[0]
    assert cache.scales[name] == struct.unpack("!I", struct.pack("!f", ranges.values[name] / 127))[0]


def test_coverage_of_an_artefact_is_that_of_its_checkpoint(gft_edge, artifact, made, animals, tmp_path):
    command = ["--data", animals, "--images", 6, "--choose", "coverage", "--json", "--out"]
    cards = [
        gft_edge("calibrate", m, *command, tmp_path / str(i)).json["card"]
        for i, m in enumerate((artifact, made["ckpt"]))
    ]
    assert cards[0] == cards[1]


@pytest.fixture
def refused(gft_edge, tmp_path):
    def run(*command):
        done = gft_edge(*command)
        assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
        assert not (tmp_path / "out").exists()
        return done.err

    return run


def test_refusals(refused, made, data, calibrated, artifact, tmp_path):
    out = ["--out", tmp_path / "out"]
    assert "is quantized already" in refused("calibrate", made["ckpt8"], *data, *out)
    assert "graph is quantized already" in refused("calibrate", made["int8"], *data)
    assert "needs --out DIR" in refused("calibrate", made["ckpt"], *data)
    assert "--tensorrt is for artefacts" in refused("calibrate", made["ckpt"], *data, "--tensorrt", "10.3.0", *out)
    assert "--calibrator is for artefacts" in refused("calibrate", made["ckpt"], *data, "--calibrator", "minmax", *out)
    assert "24 images, 25 asked for" in refused("calibrate", artifact, *data, "--images", 25)
    assert "version '11.4.1' has none" in refused("calibrate", artifact, *data, "--tensorrt", "11.4.1")
    assert "percentile must be above 0" in refused(
        "calibrate", made["ckpt"], *data, "--method", "percentile", "--percentile", 0, *out
    )
    ranges = calibrated[0] / "ranges.json"
    assert "were found on the model" in refused("quantize", "builtin", "--ranges", ranges, *out)
    assert "leave out --ranges" in refused(
        "quantize", made["ckpt"], *data, "--ranges", ranges, "--smoothquant", 0.5, *out
    )
    assert "no such file" in refused("quantize", made["ckpt"], *data, "--ranges", tmp_path / "none", *out)
    assert "argument --smoothquant: must be from 0 to 1" in refused(
        "quantize", made["ckpt"], *data, "--smoothquant", 7, *out
    )
    assert "cannot be read" in refused("quantize", made["ckpt"], *data, "--policy", tmp_path / "none.toml", *out)


def test_images_of_the_evaluation_need_force(refused, gft_edge, made, animals, tmp_path):
    root = tmp_path / "data"
    for split in ("train", "test"):
        shutil.copytree(animals, root / split)
    command = ["quantize", made["ckpt"], "--data", root, "--images", 24, "--out", tmp_path / "out"]
    assert "every training image is also a val or test image" in refused(*command)
    command += ["--split", "test"]
    assert "24 calibration images are also among the test images" in refused(*command)
    done = gft_edge(*command, "--force")
    assert done.code == 0
    assert "24 of them among 72 test images" in done.out


def test_a_damaged_image_is_named(refused, made, tmp_path):
    Image.new("L", (40, 20)).save(tmp_path / "grey.png")
    (tmp_path / "bad.png").write_text("no image")
    said = refused("calibrate", made["ckpt"], "--data", tmp_path, "--images", 2, "--out", tmp_path / "out")
    assert "bad.png: cannot be decoded as an image" in said


def test_grey_and_small_images_of_a_flat_folder_are_taken(gft_edge, made, tmp_path):
    folder = tmp_path / "flat"
    folder.mkdir()
    for number, (mode, size) in enumerate([("L", (40, 20)), ("RGBA", (8, 8)), ("RGB", (32, 32))]):
        Image.new(mode, size, number).save(folder / f"{number}.png")
    done = gft_edge("calibrate", made["ckpt"], "--data", folder, "--images", 3, "--out", tmp_path / "out", "--json")
    assert done.code == 0, done.err
    assert done.json["card"]["class_counts"] == {"": 3}


def test_note_on_ranges_names_those_that_the_quantized_model_uses():
    curve = Convergence.of((4, 8), {"raised": (1.0, 2.0), "used": (1.0, 1.0), "late": (3.0, 5.0)})
    values = {name: found[-1] for name, found in curve.ranges.items()}
    ranges = Ranges(values, "module inputs", "max", 8, "0" * 64, None, None, convergence=curve)
    assert "after half of the 8 images, last that of raised;" in ranges.describe()
    assert "last that of blocks.0.attn.qkv;" in ranges.describe({"late": "blocks.0.attn.qkv", "used": "b"})
    assert ranges.describe({"used": "b"}) == "ranges change by less than 1 % after 4 of 8 images"
