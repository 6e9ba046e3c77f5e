"""verify as a user runs it: faults named, verdicts and exit codes, another program's pixels, maps on the report page."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from gft_edge.data.images import read_image
from gft_edge.manifest import MODEL, load_artifact, register_files

pytestmark = pytest.mark.usefixtures("one_export_each")


@pytest.fixture
def copied(made, tmp_path):
    return lambda name: Path(shutil.copytree(made[name], tmp_path / "run" / name))


@pytest.fixture
def on_data(made, animals):
    return lambda name: ["--checkpoint", made[name], "--data", animals, "--images", 24]


def _large_epsilon(path):
    model = onnx.load(path / MODEL)
    node = [n for n in model.graph.node if n.op_type == "LayerNormalization"][1]
    del node.attribute[:]
    node.attribute.extend([helper.make_attribute("axis", -1), helper.make_attribute("epsilon", 0.1)])
    onnx.save(model, path / MODEL)
    register_files(load_artifact(path), [MODEL])


def test_first_bad_place_is_named(gft_edge, copied, on_data):
    path = copied("fp32")
    _large_epsilon(path)
    done = gft_edge("verify", path, *on_data("ckpt"))
    assert done.code == 1
    assert "first bad place: LayerNormalization " in done.out
    assert "epsilon is 0.1" in done.out and "(in blocks.0.norm2)" in done.out
    assert "\nFAILED: the graph is not the export of its checkpoint: LayerNormalization " in done.out
    assert "; onnxruntime fp32 against torch fp32: logits differ by " in done.out
    report = json.loads((path / "reports/verify.json").read_text())
    assert (report["verdict"], report["fresh_export"]) == ("fail", "different")
    assert report["places"][0]["module"] == "blocks.0.norm2"
    done = gft_edge("verify", path)
    assert done.code == 1
    assert "give --checkpoint to have the node named" in done.out


def test_verdict_decides_the_exit_code(gft_edge, copied, on_data):
    path = copied("int8")
    command = ["verify", path, *on_data("ckpt8"), "--map-images", 0]
    done = gft_edge(*command)
    assert done.code == 0
    assert "a fresh export of the checkpoint is identical" in done.out
    assert "INCONCLUSIVE: onnxruntime int8 against torch fp32: top-1 changes by +0.00%" in done.out
    assert "about 299 images would decide" in done.out
    assert gft_edge(*command, "--strict").code == 1
    assert not (path / "reports/maps.json").exists()
    assert gft_edge("verify", path, "--strict").code == 0  # golden images say nothing of accuracy


def test_backends_may_be_repeated_and_unknown_ones_are_refused(gft_edge, copied):
    path = copied("fp32")
    report = gft_edge("verify", path, "--backend", "onnxruntime", "--backend", "onnxruntime", "--json").json
    assert [b["backend"] for b in report["backends"]] == ["onnxruntime"]
    done = gft_edge("verify", path, "--backend", "onnxruntime", "--backend", "tpu")
    assert (done.code, done.out) == (2, "")
    assert "unknown backend 'tpu'" in done.err


def test_file_that_is_no_graph_is_one_line(gft_edge, copied, on_data):
    path = copied("fp32")
    (path / MODEL).write_bytes(b"junk")
    register_files(load_artifact(path), [MODEL])
    done = gft_edge("verify", path, *on_data("ckpt"))
    assert (done.code, done.out) == (2, "")
    assert "model.onnx is no ONNX model" in done.err
    assert "Traceback" not in done.err


def test_maps_are_measured_and_shown(gft_edge, copied, on_data):
    path = copied("int8")
    done = gft_edge("verify", path, *on_data("ckpt8"), "--map-images", 8)
    assert done.code == 0
    assert "insertion (high is good)" in done.out and "; stage 2: rank correlation" in done.out
    artifact = load_artifact(path)
    record = json.loads(artifact.file("reports/maps.json").read_text())
    assert record["images"] == 8
    assert [side["name"] for side in record["sides"]] == ["torch fp32", "onnxruntime int8"]
    assert record["stages"][0]["rank_correlation"] > 0.9
    assert len(record["pictures"]) == 6
    assert read_image(artifact.file("reports/maps-0.png")).shape == (192, 3 * 192 + 16, 3)
    run = path.parent
    assert gft_edge("report", run).code == 0
    page = (run / "report.html").read_text()
    assert "insertion and deletion of patches" in page
    assert page.count('alt="image, importance by torch fp32, importance by onnxruntime int8"') == 6
    assert "about 299 images would decide" in page
    assert page.count("<svg") >= 2


@pytest.fixture
def dumped(made, animals, tmp_path):
    """A folder of images with the tensors that some program made of them."""

    def dump(change):
        spec = load_artifact(made["fp32"]).manifest.preprocess
        folder = tmp_path / "pixels"
        folder.mkdir()
        for file in sorted(animals.glob("ant/*.png"))[:3]:
            shutil.copy(file, folder)
            np.save(folder / f"{file.stem}.npy", change(spec, read_image(file)))
        return folder

    return dump


def test_pixels_of_another_program_pass(gft_edge, made, dumped):
    folder = dumped(lambda spec, image: spec(image))
    done = gft_edge("verify", made["fp32"], "--pixels", folder)
    assert (done.code, done.err) == (0, "")
    assert done.out == "3 images, difference 0.00 levels of 255 at most\npassed\n"
    assert gft_edge("verify", made["fp32"], "--pixels", folder, "--json").json["passed"]


def test_pixels_in_another_colour_order_are_named(gft_edge, made, dumped):
    done = gft_edge("verify", made["fp32"], "--pixels", dumped(lambda spec, image: spec(image[..., ::-1])))
    assert done.code == 1
    assert "FAILED: preprocess: the channels are bgr instead of rgb" in done.out


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (np.zeros_like, ".npy is all zeros: the buffer was never filled"),
        (lambda right: np.full_like(right, 0.5), ".npy is 0.5 throughout: the buffer was never filled"),
        (lambda right: np.where(right > 1, np.nan, right), ".npy are not finite"),
    ],
)
def test_a_buffer_that_was_never_filled_is_called_that(gft_edge, made, dumped, change, words):
    done = gft_edge("verify", made["fp32"], "--pixels", dumped(lambda spec, image: change(spec(image))))
    assert (done.code, done.err) == (1, "")
    assert "FAILED: preprocess: " in done.out and words in done.out
    assert "nan]" not in done.out


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: shutil.rmtree(folder), "no such folder"),
        (lambda folder: [file.unlink() for file in folder.glob("*.npy")], "holds no .npy file"),
        (lambda folder: [file.unlink() for file in folder.glob("*.png")], "no image of that name beside it"),
        (lambda folder: [file.write_bytes(b"no array") for file in folder.glob("*.npy")], "cannot be read as an array"),
        (
            lambda folder: [np.savez(file.open("wb"), a=1) for file in folder.glob("*.npy")],
            "cannot be read as an array",
        ),
        (lambda folder: [file.write_bytes(b"") for file in folder.glob("*.npy")], "cannot be read as an array"),
        (
            lambda folder: [np.save(file, np.zeros((2, 2))) for file in folder.glob("*.npy")],
            "npy has shape (2, 2)",
        ),
    ],
)
def test_pixels_that_cannot_be_compared_are_refused(gft_edge, made, dumped, damage, message):
    folder = dumped(lambda spec, image: spec(image))
    damage(folder)
    done = gft_edge("verify", made["fp32"], "--pixels", folder)
    assert (done.code, done.out) == (2, "")
    assert message in done.err and done.err.count("\n") == 1
    assert "unsafe" not in done.err


def test_pixels_are_found_whatever_the_case_of_their_names(gft_edge, made, dumped):
    folder = dumped(lambda spec, image: spec(image))
    for file in list(folder.iterdir()):
        file.rename(file.with_suffix(file.suffix.upper()))
    assert gft_edge("verify", made["fp32"], "--pixels", folder).code == 0
    done = gft_edge("verify", made["fp32"], "--pixels", next(folder.iterdir()))
    assert (done.code, done.out) == (2, "") and "give a folder" in done.err


@pytest.mark.parametrize("change", [None, _large_epsilon])
def test_verdict_is_printed_where_its_record_cannot_be_stored(gft_edge, copied, change):
    path = copied("fp32")
    if change is not None:
        change(path)
    (path / "reports").write_text("in the way")
    done = gft_edge("verify", path)
    assert done.code == 2
    assert ("FAILED" if change else "passed") in done.out.splitlines()[-1]
    assert "the record cannot be stored" in done.err and done.err.count("\n") == 1


def test_disk_full_while_the_record_is_stored_is_one_line(gft_edge, copied, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("gft_edge.export.verify.verification.write_json", full)
    done = gft_edge("verify", copied("fp32"))
    assert done.code == 2
    assert done.out.endswith("passed\n")
    assert "cannot be stored (No space left on device)" in done.err and done.err.count("\n") == 1


def test_negative_number_of_map_images_is_refused(gft_edge, made):
    done = gft_edge("verify", made["fp32"], "--map-images", -1)
    assert done.code == 2
    assert "map images must be 0 (none) or more, found -1" in done.err


def test_graph_without_compact_maps_says_that_their_fidelity_is_not_measured(gft_edge, copied, on_data):
    path = copied("fp32")
    done = gft_edge("verify", path, *on_data("ckpt"))
    assert "fidelity of maps is measured of graphs with --maps compact, this one has none" in done.out
    assert not (path / "reports/maps.json").exists()
    assert "fidelity" not in gft_edge("verify", path, *on_data("ckpt"), "--map-images", 0).out


@pytest.mark.parametrize(
    ("backend", "code", "words"), [("tensorrt", 3, "gft-edge[trt]"), ("tensorrt_rtx", 2, "no NVIDIA driver")]
)
def test_engines_without_tensorrt_or_a_gpu_are_one_line(gft_edge, copied, on_data, monkeypatch, backend, code, words):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    if backend == "tensorrt_rtx":
        pytest.importorskip(backend)
        monkeypatch.setattr("gft_edge.runtime.backends.engine.has_nvidia_driver", lambda: False)
    path = copied("fp32")
    for command in (["verify", path], ["verify", path, *on_data("ckpt")], ["bench", path], ["predict", path, path]):
        done = gft_edge(*command, "--backend", backend)
        assert (done.code, done.out) == (code, "")
        assert words in done.err
        assert "Traceback" not in done.err
