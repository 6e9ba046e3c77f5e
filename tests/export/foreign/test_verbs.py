"""The verbs verify, bench, build and evaluate on ONNX files of other programs, run as a user would."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import shlex
import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from PIL import Image

from gft_edge.benchmarks.measuring.fresh_process import fresh_processes
from gft_edge.benchmarks.measuring.protocol import BenchProtocol
from gft_edge.benchmarks.measuring.subjects import subjects_of
from gft_edge.benchmarks.measuring.tables import columns
from gft_edge.cli.main import main
from gft_edge.data.seeded import seeded_images
from gft_edge.errors import ArtifactError, ConfigError
from gft_edge.export.foreign.building import build_foreign
from gft_edge.export.foreign.model import ForeignQuantization, load_foreign, write_record
from gft_edge.export.foreign.opening import facts_of, open_foreign, open_model
from gft_edge.export.foreign.parting import parting_node
from gft_edge.export.tensorrt.options import BuildOptions
from gft_edge.preprocess import PreprocessSpec
from gft_edge.report.pages.bench import notes
from gft_edge.report.results.records import usable_bench
from gft_edge.runtime.backends.engine_files import EngineHost, check_engine_beside, engine_beside, keys_beside
from gft_edge.storage.seals import read_sealed, write_sealed

SPEC = PreprocessSpec(32, 32)
BENCH = ("--rounds", "2", "--runs", "1", "--warmup", "0")
QUICK = (*BENCH, "--skip", "stages", "throughput", "process")


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def run(capsys) -> Callable[..., Done]:
    def call(*command: object) -> Done:
        code = main([str(part) for part in command])
        captured = capsys.readouterr()
        return Done(code, captured.out, captured.err)

    return call


@pytest.fixture(scope="session")
def vits(filled_once) -> Path:
    """Folder with ``float.onnx``, a tiny ViT with a dynamic batch, and ``int8.onnx``, which ONNX Runtime's own tool made of it."""
    return filled_once("foreign-verbs", _write_vits)


def _write_vits(out: Path) -> None:
    import torch
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from timm.models.vision_transformer import VisionTransformer

    torch.manual_seed(0)
    model = VisionTransformer(img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=4).eval()
    torch.nn.init.normal_(model.head.weight, std=0.3)
    out.mkdir(parents=True)
    names: dict[str, Any] = {"input_names": ["pixels"], "output_names": ["scores"]}
    axes = {"pixels": {0: "n"}, "scores": {0: "n"}}
    images = torch.zeros(2, 3, 32, 32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model, (images,), str(out / "float.onnx"), dynamo=False, opset_version=17, dynamic_axes=axes, **names
        )

    class Reader(CalibrationDataReader):
        feeds = iter([{"pixels": SPEC.normalize(seeded_images(16, 32, 32, seed=1))}])

        def get_next(self) -> Any:
            return next(self.feeds, None)

    quantize_static(
        str(out / "float.onnx"),
        str(out / "int8.onnx"),
        Reader(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        weight_type=QuantType.QInt8,
        activation_type=QuantType.QInt8,
        op_types_to_quantize=["MatMul"],
        extra_options={"ActivationSymmetric": True, "WeightSymmetric": True},
    )


@pytest.fixture
def out(vits, tmp_path) -> Path:
    """A folder as quantize writes it, with the float file beside it."""
    shutil.copy(vits / "float.onnx", tmp_path / "float.onnx")
    folder = tmp_path / "out"
    folder.mkdir()
    shutil.copy(vits / "int8.onnx", folder / "model.onnx")
    original = load_foreign(tmp_path / "float.onnx")
    quantization = ForeignQuantization("float.onnx", original.sha256, "int8", "max", 16, None, ())
    model = dataclasses.replace(
        load_foreign(folder / "model.onnx"),
        preprocess=SPEC,
        labels=("ant", "bee", "cat", "dog"),
        quantization=quantization,
    )
    write_record(folder, model)
    return folder


@pytest.fixture(scope="session")
def animals(filled_once) -> Path:
    return filled_once("foreign-animals", _write_animals)


def _write_animals(out: Path) -> None:
    for number, label in enumerate(("ant", "bee", "cat", "dog")):
        folder = out / "test" / label
        folder.mkdir(parents=True)
        for index, image in enumerate(seeded_images(6, 32, 32, seed=10 + number)):
            Image.fromarray(image).save(folder / f"{index}.png")


def changed(source: Path, target: Path, change: Callable[[onnx.GraphProto], None]) -> Path:
    model = onnx.load(source)
    change(model.graph)
    onnx.save(model, target)
    return target


# --- verify


def test_a_damaged_image_is_replaced(run, vits, out, animals, tmp_path):
    data = Path(shutil.copytree(animals, tmp_path / "animals"))
    bad = data / "test/ant/0.png"
    bad.write_bytes(bad.read_bytes()[:200])
    done = run("verify", out, "--data", data, "--images", "12", "--json")
    assert (done.code, done.err.count("left out: ")) == (0, 1), done.err
    assert f"left out: image {bad}: cannot be decoded" in done.err
    assert done.json["source"] == f"12 test images of {data}, 1 unreadable left out"
    assert (done.json["unreadable"], done.json["comparisons"][0]["images"]) == (["test/ant/0.png"], 12)
    quantized = [
        "quantize",
        vits / "float.onnx",
        "--data",
        data / "test/ant",
        "--images",
        "5",
        "--out",
        tmp_path / "int8",
    ]
    done = run(*quantized)
    assert (done.code, "1 of 6 images cannot be read, more than a tenth" in done.err) == (2, True)
    for number in range(6):
        shutil.copy(data / "test/bee" / f"{number}.png", data / "test/ant" / f"bee{number}.png")
    quantized[5] = "10"
    done = run(*quantized)
    assert (done.code, done.err.count("left out: ")) == (0, 1), done.err
    card = read_sealed(tmp_path / "int8/calibration/card.json", "card", "")
    assert (card["images"], card["pool"], card["unreadable"]) == (10, 12, ["0.png"])


def test_verify_finds_the_float_original_and_says_what_random_images_show(run, out):
    done = run("verify", out)
    assert done.code == 0
    assert "smooth random images" in done.out
    assert "INCONCLUSIVE" in done.out
    assert "arithmetic only" in done.out
    found = run("verify", out, "--json", "--strict")
    assert found.code == 1
    (comparison,) = found.json["comparisons"]
    assert found.json["precision"] == "int8"
    assert comparison["kind"] == "compression"

    images = SPEC.normalize(seeded_images(16, 32, 32))
    sides = [load_foreign(path) for path in (out.parent / "float.onnx", out)]
    a, b = (side.logits(side.session(), images).astype(np.float64) for side in sides)
    assert comparison["logit_sqnr_db"] == pytest.approx(10 * np.log10((a**2).sum() / ((a - b) ** 2).sum()), abs=1e-6)
    assert comparison["top1_agreement"] == (a.argmax(1) == b.argmax(1)).mean()


def test_verify_on_labelled_images_gives_paired_top1_and_a_verdict(run, out, animals):
    done = run("verify", out, "--data", animals, "--json")
    (comparison,) = done.json["comparisons"]
    assert comparison["images"] == 24
    assert comparison["top1"]["images"] == 24
    text = run(
        "verify", out / "model.onnx", "--against", out, "--data", animals
    )  # preprocessing and labels of the folder
    assert "McNemar" in text.out
    assert "images would decide" in text.out or "passed" in text.out


def test_verify_names_the_first_node_that_computes_something_else(run, vits, tmp_path):
    original = onnx.load(vits / "float.onnx")
    node = next(n for n in original.graph.node if "blocks.1/mlp/fc1" in n.name and n.op_type == "MatMul")

    def stretch(graph: onnx.GraphProto) -> None:
        weight = next(n for n in graph.node if n.name == node.name).input[1]
        dequantize = next(n for n in graph.node if weight in n.output)
        scale = next(t for t in graph.initializer if t.name == dequantize.input[1])
        scale.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(scale) * 4, scale.name))

    bad = changed(vits / "int8.onnx", tmp_path / "bad.onnx", stretch)
    done = run("verify", bad, "--against", vits / "float.onnx")
    assert done.code == 1
    assert "FAILED: " in done.out
    assert f"first bad place: MatMul {node.name}" in done.out
    feed = SPEC.normalize(seeded_images(2, 32, 32))
    assert parting_node(original, onnx.load(vits / "int8.onnx"), feed, 10) is None


def test_verify_a_lone_file_with_itself(run, vits):
    done = run("verify", vits / "float.onnx", "--strict")
    assert done.code == 0
    assert "node by node" in done.out
    assert "one by one" in done.out
    assert "lint for TensorRT" in done.out
    quantized = run("verify", vits / "int8.onnx")
    assert quantized.code == 0
    assert "give --against" in quantized.out


def test_verify_finds_images_that_depend_on_others(run, vits, tmp_path):
    def mix(graph: onnx.GraphProto) -> None:
        graph.node.append(helper.make_node("ReduceMean", ["scores"], ["mean"], axes=[0], keepdims=1))
        graph.node.append(helper.make_node("Sub", ["scores", "mean"], ["centred"]))
        graph.output[0].name = "centred"

    done = run("verify", changed(vits / "float.onnx", tmp_path / "mixed.onnx", mix))
    assert done.code == 1
    assert "one by one" in done.out.splitlines()[-1]


def test_verify_finds_broken_numbers(run, vits, tmp_path):
    def break_head(graph: onnx.GraphProto) -> None:
        bias = next(t for t in graph.initializer if t.name == "head.bias")
        bias.CopyFrom(numpy_helper.from_array(np.array([0, np.nan, 0, 0], np.float32), bias.name))

    broken = changed(vits / "float.onnx", tmp_path / "broken.onnx", break_head)
    done = run("verify", broken)
    assert done.code == 1
    assert "not finite" in done.out
    assert run("verify", broken, "--against", vits / "float.onnx").code == 1  # on random images too


def test_verify_compares_probabilities_by_their_logarithms(run, vits, tmp_path):
    def add_softmax(graph: onnx.GraphProto) -> None:
        graph.node.append(helper.make_node("Softmax", ["scores"], ["shares"], axis=1))
        graph.output[0].name = "shares"

    done = run("verify", changed(vits / "float.onnx", tmp_path / "soft.onnx", add_softmax), "--json")
    assert done.code == 0
    assert done.json["comparisons"][0]["max_relative_error"] < 1e-5


def test_verify_a_static_batch(run, vits, tmp_path):
    def fix(graph: onnx.GraphProto) -> None:
        for value in (*graph.input, *graph.output):
            value.type.tensor_type.shape.dim[0].dim_value = 2

    static = changed(vits / "float.onnx", tmp_path / "static.onnx", fix)
    done = run("verify", static)
    assert done.code == 0
    assert "takes 2 image(s) at a time" in done.out
    plan = run("build", static, "--target", "orin-nano", "--plan", "--json")
    assert plan.json["plan"]["batch"] == [2, 2, 2]
    refused = run("bench", static, *QUICK)
    assert refused.code == 2
    assert "dynamic batch" in refused.err


# --- bench


def test_bench_compares_files_folders_and_artefacts(run, out, tiny_artifact, animals, tmp_path):
    done = run(
        "bench", out.parent / "float.onnx", out, tiny_artifact, *QUICK, "--batch", "2", "--data", animals, "--json", "--out",
        tmp_path / "bench.json",
    )  # fmt: skip
    assert done.code == 0, done.err
    rows = done.json["results"]
    assert [row["name"] for row in rows] == ["float.onnx", "out", tiny_artifact.name]
    assert [row["precision"] for row in rows] == ["fp32", "int8", "fp32"]
    assert [row["budget"] for row in rows][:2] == [None, None]
    assert rows[1]["options"]["disabled_optimizers"] == ["MatMulAddFusion", "BiasGeluFusion"]
    assert "random float32, batch x 3 x 32 x 32" in rows[0]["lacks"]
    assert rows[0]["energy"]["accuracy"]["source"] == rows[1]["energy"]["accuracy"]["source"]
    assert all("gft" not in str(row["model"]) for row in rows[:2])
    shown = usable_bench(tmp_path / "bench.json")["results"]  # as the pages read it
    assert "float.onnx, out: an ONNX file of another program: no budget, stages or roofline" in notes(shown)
    assert "top-1" in [column.title for column in columns(shown)]


def test_bench_gives_files_of_one_name_that_of_their_folder(run, vits, tmp_path):
    other = Path(shutil.copytree(vits, tmp_path / "other")) / "float.onnx"
    done = run("bench", vits / "float.onnx", other, *QUICK, "--data", "scenes")
    assert done.code == 0, done.err
    assert all(f"\n{folder}/float.onnx  " in done.out for folder in ("content", "other"))
    assert "no budget, stages or roofline" in done.out
    assert done.out.count("top-1: none") == 2, "their preprocessing is not known"


def test_cold_start_of_a_file(vits):
    (subject,) = subjects_of([load_foreign(vits / "int8.onnx")])
    assert subject.form == "int8,0x3x32x32"
    found = fresh_processes(subject.address, "onnxruntime", BenchProtocol(processes=1, batch=2), subject.form)
    assert found["cold_start_ms"] >= found["first_ms"] > 0


def test_evaluate(run, out, animals):
    done = run("evaluate", out, "--data", animals, "--json")
    assert done.code == 0, done.err
    model = load_foreign(out)
    images = [SPEC(np.array(Image.open(path))) for path in sorted((animals / "test").rglob("*.png"))]
    truth = np.repeat(np.arange(4), 6)
    right = (model.logits(model.session(), np.stack(images)).argmax(1) == truth).mean()
    assert done.json["results"][0]["top1"] == right
    assert done.json["results"][0]["precision"] == "int8"


# --- build


def test_plan_follows_from_the_graph_alone(run, out):
    done = run("build", out, "--target", "orin-nano", "--tensorrt", "10.3", "--batch", "1:4:16", "--plan")
    assert done.code == 0
    words = done.out.splitlines()[-1]
    assert f"--onnx={out / 'model.onnx'}" in words
    assert "--minShapes=pixels:1x3x32x32 --optShapes=pixels:4x3x32x32 --maxShapes=pixels:16x3x32x32" in words
    assert "INT8, rest FP32" in done.out
    data = run("build", out.parent / "float.onnx", "--target", "rtx", "--plan", "--json").json
    assert data["plan"]["precision"] == "fp32"
    assert data["plan"]["batch"] == [1, 1, 8]


def test_engine_stands_beside_the_file_with_a_record_that_is_checked(run, out, monkeypatch):
    pytest.importorskip("tensorrt_rtx")
    done = run("build", out.parent / "float.onnx", "--target", "rtx", "--compute-capability", "8.6", "--json")
    assert done.code == 0, done.err
    record = done.json
    graph = out.parent / "float.onnx"
    model = load_foreign(graph)
    host = EngineHost("tensorrt_rtx", record["version"], "8.6")
    (key,) = keys_beside(graph, "tensorrt_rtx")
    engine, sidecar = engine_beside(graph, key)
    assert str(engine) == record["file"]
    assert check_engine_beside(graph, model.sha256, key, host)[0] == engine
    for other, words in (
        (dataclasses.replace(host, compute_capability="8.9"), "compute capability"),
        (dataclasses.replace(host, version="9.9"), "here is 9.9"),
    ):
        with pytest.raises(ArtifactError, match=words):
            check_engine_beside(graph, model.sha256, key, other)
    with pytest.raises(ArtifactError, match="another graph than float.onnx"):
        check_engine_beside(graph, load_foreign(out).sha256, key, host)
    kept = engine.read_bytes()
    engine.write_bytes(kept[:-1])
    with pytest.raises(ArtifactError, match="of another file"):
        check_engine_beside(graph, model.sha256, key, host)
    engine.write_bytes(kept)
    data = read_sealed(sidecar, "", "")
    sidecar.write_text(json.dumps({**data, "seal": "0"}))
    with pytest.raises(ArtifactError, match="not loaded"):
        check_engine_beside(graph, model.sha256, key, host)
    write_sealed(sidecar, {**data, "key": "x"})
    with pytest.raises(ArtifactError, match="of engine x"):
        check_engine_beside(graph, model.sha256, key, host)
    sidecar.unlink()
    with pytest.raises(ArtifactError, match="is missing"):
        check_engine_beside(graph, model.sha256, key, host)


# --- refusals

NEEDS_GPU = ("onnxruntime-cuda", "tensorrt_rtx") if importlib.util.find_spec("tensorrt_rtx") else ("onnxruntime-cuda",)


def one_line(done: Done, *words: str) -> None:
    assert done.code in (2, 3), done.out
    assert len(done.err.strip().splitlines()) == 1, done.err
    assert "Traceback" not in done.err
    for word in words:
        assert word in done.err


@pytest.mark.parametrize("verb", [("verify",), ("bench", "--rounds", "1"), ("build", "--target", "rtx", "--plan")])
def test_wrong_paths_are_one_line(run, verb, vits, tiny_artifact, tmp_path):
    one_line(run(*verb, tmp_path / "none.onnx"), "none.onnx: no such file")
    one_line(run(*verb, tmp_path / "none"), "no such folder")
    text, folder, bare, cut = (tmp_path / name for name in ("notes.txt", "folder", "bare", "cut.onnx"))
    text.write_text("hello")
    one_line(run(*verb, text), "a text file")
    folder.mkdir()
    one_line(run(*verb, folder), "manifest.json")
    bare.mkdir()
    shutil.copy(vits / "float.onnx", bare / "model.onnx")
    one_line(run(*verb, bare), "quantization.json", f"give the file {bare / 'model.onnx'}")
    one_line(run(*verb, tiny_artifact / "model.onnx"), "give its folder")
    cut.write_bytes((vits / "float.onnx").read_bytes()[:5000])
    one_line(run(*verb, cut), "cut.onnx")


def test_other_verbs_say_that_they_need_an_artefact(run, vits, tmp_path):
    file = vits / "float.onnx"
    for command in (
        ("predict", file, tmp_path),
        ("bundle", file, "--target", "jetson", "--out", tmp_path / "b"),
        ("build", file, "--engine", file, "--plan-file", file, "--tensorrt", "10.3.0"),
    ):
        one_line(run(*command), "ONNX graph", "artefact")
    one_line(run("selftest", file), "float.onnx")


def test_options_that_do_not_fit_are_one_line(run, out, vits, tiny_artifact, tmp_path):
    file = vits / "float.onnx"
    one_line(run("verify", file, "--checkpoint", "builtin"), "--checkpoint", "--against")
    one_line(run("verify", file, "--data", "scenes"), "preprocessing")
    one_line(run("verify", tiny_artifact, "--against", file), "give --checkpoint")
    one_line(run("verify", file, "--backend", "torch"), "checkpoint")
    one_line(run("verify", file, "--backend", "onnxruntime,x=1"), "no setting 'x'")
    for backend in NEEDS_GPU:
        one_line(run("verify", file, "--backend", backend))
    one_line(run("evaluate", file, "--data", "scenes"), "preprocessing")
    one_line(run("evaluate", out), "--data")
    one_line(run("evaluate", out, "--data", "scenes", "--budget", "full"), "every patch")
    one_line(run("build", file, "--target", "rtx", "--precision", "fp16"), "--precision")
    one_line(run("build", file, "--target", "rtx", "--out", file), "is a file")
    one_line(run("build", file, "--target", "orin-nano", "--calibration-cache", file), "gft-edge quantize")
    one_line(run("build", file, "--target", "rtx", "--out", tmp_path, "--tensorrt", "10.3"), "--tensorrt")
    one_line(run("build", tiny_artifact, "--target", "rtx", "--out", tmp_path), "--out")


def test_another_float_original_is_refused(run, out, vits, tmp_path):
    one_line(run("verify", out, "--against", out / "model.onnx"), "is another file")
    one_line(run("verify", vits / "float.onnx", "--against", out), "is quantized; give the float original")
    one_line(run("predict", out, tmp_path / "a.png"), "quantized ONNX file of another program", "adopt")

    def fewer(graph: onnx.GraphProto) -> None:
        graph.node.append(helper.make_node("Concat", ["scores", "scores"], ["more"], axis=1))
        graph.output[0].name = "more"
        graph.output[0].type.tensor_type.shape.dim[1].dim_value = 8

    wider = changed(vits / "float.onnx", tmp_path / "wider.onnx", fewer)
    one_line(run("verify", vits / "int8.onnx", "--against", wider), "8 classes")
    (out.parent / "float.onnx").unlink()
    one_line(run("verify", out), "float.onnx", "--against FILE")


def test_a_graph_that_is_too_new_for_the_old_tensorrt(vits, tmp_path):
    def newer(model: onnx.ModelProto) -> None:
        model.opset_import[0].version = 20

    model = onnx.load(vits / "float.onnx")
    newer(model)
    onnx.save(model, tmp_path / "new.onnx")
    from gft_edge.export.foreign.building import plan_foreign

    with pytest.raises(ConfigError, match="opset 7 to 17, this graph has 20"):
        plan_foreign(load_foreign(tmp_path / "new.onnx"), "orin-nano", BuildOptions(tensorrt="8.6"))


def test_engine_of_no_file(vits):
    model = open_model(vits / "float.onnx")
    with pytest.raises(ConfigError, match="one of its providers"):
        open_foreign(model, facts_of(model), "torch-compiled")
    with pytest.raises(ConfigError):
        build_foreign(model, "orin-nano", BuildOptions())


# --- mistakes


def test_graph_that_was_put_in_the_place_of_the_quantized_one_is_named(run, out, vits):
    assert run("lint", out).code == 0
    shutil.copy(vits / "float.onnx", out / "model.onnx")
    done = run("lint", out)
    assert (done.code, done.out) == (2, "")
    assert "was changed since it was quantized (its hash differs)" in done.err
    assert run("lint", out / "model.onnx").code == 0  # a file has no record


@pytest.mark.parametrize("verb", [["predict"], ["bundle", "--target", "triton", "--out", "none"], ["selftest"]])
@pytest.mark.parametrize("path", ["float.onnx", "out"])
def test_verbs_that_need_an_artefact_name_the_way_to_one(run, out, verb, path):
    images = ["none.png"] if verb == ["predict"] else []
    done = run(verb[0], out.parent / path, *images, *verb[1:])
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "gft-edge adopt takes the weights that it came from" in done.err


@pytest.mark.parametrize(("content", "kind"), [(b"", "an empty file"), (b"hello", "a text file")])
def test_file_that_is_no_graph_is_not_called_one(run, tmp_path, content, kind):
    (tmp_path / "vit.onnx").write_bytes(content)
    for command in (["quantize", "--data", tmp_path, "--out", tmp_path / "out"], ["selftest"], ["lint"], ["verify"]):
        done = run(command[0], tmp_path / "vit.onnx", *command[1:])
        assert done.code == 2
        assert f"is {kind}" in done.err
        assert command == ["selftest"] or "cannot be read as ONNX" in done.err


def test_trtexec_command_of_a_plan_is_quoted(run, vits, tmp_path):
    file = tmp_path / "my models" / "vit ü.onnx"
    file.parent.mkdir()
    shutil.copy(vits / "float.onnx", file)
    words = shlex.split(run("build", file, "--target", "orin-nano", "--plan").out.splitlines()[-1])
    assert words[:3] == ["trtexec", f"--onnx={file}", f"--saveEngine={file.with_suffix('.engine')}"]
