"""Mistakes in paths, arguments and files: code 2, one line that says what is wrong, and the disk as it was."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from gft_edge.cli.verbs import export
from gft_edge.files import canonical_json
from gft_edge.manifest import MODEL, load_artifact, register_files
from gft_edge.storage.seals import sealed


def resealed(data: bytes) -> bytes:
    """An edited record with a seal that fits: what someone does who means the edit."""
    return canonical_json(sealed(json.loads(data))).encode()


def _state(folder: Path) -> dict[str, tuple[int, int]]:
    files = [p for p in folder.rglob("*") if not p.is_dir()]
    return {str(p): (p.stat().st_size, p.stat().st_mtime_ns) for p in files} | {
        str(p): (-1, -1) for p in folder.rglob("*") if p.is_dir()
    }


@pytest.fixture
def refused(gft_edge, made, tmp_path):
    """Runs a command that must be refused; returns its message."""

    def run(*command, code=2) -> str:
        folders = [tmp_path, made["fp32"].parent, made["ckpt"]]
        before = [_state(folder) for folder in folders]
        done = gft_edge(*command)
        assert done.code == code
        assert done.out == ""
        error = done.err.removeprefix("export: tracing at budget 12-6\n")
        assert error.startswith(f"gft-edge {command[0]}: ")
        assert error.count("\n") == 1
        assert "Traceback" not in error
        assert [_state(folder) for folder in folders] == before
        return error

    return run


ON_ARTEFACTS = {
    "missing": (["verify", "{tmp}/nothing"], "no such folder"),
    "a graph as a run": (["report", "{fp32}/model.onnx"], "is a file of an artefact; give its folder"),
    "the builtin": (
        ["build", "builtin", "--target", "rtx"],
        "builtin: is the checkpoint of the package; make one with",
    ),
    "manifest as bench file": (["report", "{fp32}/manifest.json"], "holds no results of gft-edge bench; give"),
    "log as run": (["report", "{log}", "--out", "{tmp}/out"], "of a log of trtexec: bench --trtexec-log FILE"),
    "result over a manifest": (["bench", "{fp32}", "--out", "{fp32}/manifest.json"], "no earlier result, which alone"),
    "result over a graph": (["evaluate", "{fp32}", "--out", "{fp32}/model.onnx"], "is an ONNX graph and no earlier"),
    "times": (
        ["bench", "--trtexec-log", "{log}", "--times", "{tmp}/none"],
        "--times {tmp}/none: no such file; check the path",
    ),
    "file as run": (["report", "{image}"], "00.png: is a PNG image; give the folder"),
    "a checkpoint": (["bench", "{ckpt}"], "is a checkpoint; make an artefact of it with gft-edge export"),
    "a file": (["predict", "{fp32}/model.onnx", "{image}"], "is a file of an artefact; give its folder"),
    "missing image": (["predict", "{fp32}", "{tmp}/none.png"], "none.png: no such file"),
    "folder as image": (["predict", "{fp32}", "{tmp}"], "cannot be decoded as an image"),
    "no maps": (["predict", "{fp32}", "{image}", "--maps", "{tmp}/maps"], "has no maps; export it with --maps compact"),
    "budget": (["evaluate", "{fp32}", "--budget", "full"], "an artefact's budget is compiled into its graph"),
    "backend": (["evaluate", "{fp32}", "--backend", "tpu"], "unknown backend 'tpu'; there are: onnxruntime"),
    "backend of verify": (["verify", "{fp32}", "--backend", "tpu"], "unknown backend 'tpu'"),
    "threads": (["bench", "{fp32}", "--threads", "-2"], "threads and warm-up must not be negative"),
    "threads of evaluate": (["evaluate", "{fp32}", "--threads", "-2"], "threads must be 0"),
    "warm-up": (["bench", "{fp32}", "--warmup", "-1"], "threads and warm-up must not be negative"),
    "batch 0": (["bench", "{fp32}", "--batch", "0"], "argument --batch: must be at least 1, found 0"),
    "batch in words": (
        ["bench", "{fp32}", "--batch", "many"],
        "argument --batch: must be a whole number, found 'many'",
    ),
    "the same twice": (["bench", "{fp32}", "{fp32}"], "artefacts must have different folder names"),
    "images without a checkpoint": (["verify", "{fp32}", "--data", "{data}"], "give --checkpoint CKPT too"),
    "other parent": (["verify", "{fp32}", "--checkpoint", "builtin"], "or export this one: gft-edge export "),
    "full-precision parent of int8": (
        ["verify", "{int8}", "--checkpoint", "{ckpt}", "--data", "{data}"],
        "give the one that it was exported from (of an INT8 artefact the quantized one)",
    ),
    "int8 parent of fp32": (["verify", "{fp32}", "--checkpoint", "{ckpt8}", "--data", "{data}"], "made from"),
    "no target": (["build", "{fp32}"], "--target is missing: rtx, this-gpu"),
    "no capability": (["build", "{fp32}", "--target", "rtx", "--compute-capability", ","], "needs at least one"),
    "old GPU": (["build", "{fp32}", "--target", "rtx", "--compute-capability", "8.6,7.5"], "use 8.0 or newer"),
    "two batch sizes": (["build", "{fp32}", "--target", "rtx", "--batch", "1:8"], "expected one number or"),
    "zero batch": (["build", "{fp32}", "--target", "rtx", "--batch", "0:1:2"], "expected 1 <= smallest"),
}
ON_CHECKPOINTS = {
    "missing": (["export", "{tmp}/nothing", "--out", "{tmp}/out"], "no such folder"),
    "an artefact": (["export", "{fp32}", "--out", "{tmp}/out"], "is an exported artefact, not a checkpoint"),
    "quantized twice": (["quantize", "{ckpt8}", "--data", "{data}", "--out", "{tmp}/out"], "is quantized already"),
    "too few images": (
        ["quantize", "{ckpt}", "--data", "{data}", "--images", "25", "--out", "{tmp}/out"],
        "24 images, 25 asked for; lower --images",
    ),
    "method of weights": (
        [
            "quantize",
            "{ckpt}",
            "--data",
            "{data}",
            "--precision",
            "int8-weights",
            "--method",
            "max",
            "--out",
            "{tmp}/out",
        ],
        "--method: weights alone are quantized",
    ),
    "no ranges": (["quantize", "{ckpt}", "--ranges", "{tmp}/none", "--out", "{tmp}/out"], "none: no such file"),
    "percentile": (
        ["calibrate", "{ckpt}", "--method", "percentile", "--percentile", "500", "--out", "{tmp}/out"],
        "--percentile must be above 0 and at most 100, found 500",
    ),
    "policy": (
        ["quantize", "{ckpt}", "--policy", "{policy}", "--out", "{tmp}/out"],
        "policy {policy}: rules[0].precision",
    ),
    "batch order": (["export", "{ckpt}", "--batch", "4:2:1", "--out", "{tmp}/out"], "expected 1 <= smallest <= usual"),
    "no images": (["quantize", "{ckpt}", "--images", "0", "--out", "{tmp}/out"], "must be at least 1, found 0"),
    "no data": (["quantize", "{ckpt}", "--data", "{tmp}/none", "--out", "{tmp}/out"], "'scenes' or 'typefaces'"),
    "no data to export": (["export", "{ckpt}", "--data", "{tmp}/none", "--out", "{tmp}/out"], "no such folder"),
    "other classes": (["quantize", "{ckpt}", "--data", "typefaces", "--out", "{tmp}/out"], "are not the model's 4"),
    "unknown data": (
        ["quantize", "{ckpt}", "--out", "{tmp}/out"],
        "does not record the data it was trained on; give --data",
    ),
    "no classes": (["evaluate", "{ckpt}", "--data", "{data}/ant"], "images but no class folders; expected ROOT/CLASS"),
    "precision": (["quantize", "{ckpt}", "--precision", "int4", "--out", "{tmp}/out"], "invalid choice: 'int4'"),
    "split": (["evaluate", "{ckpt}", "--split", "final"], "argument --split: invalid choice: 'final'"),
    "align": (["export", "{ckpt}", "--data", "{data}", "--align", "0", "--out", "{tmp}/out"], "must be at least 1"),
    "growing budget": (["evaluate", "{ckpt}", "--data", "{data}", "--budget", "6,12"], "counts must not grow"),
    "short budget": (
        ["evaluate", "{ckpt}", "--data", "{data}", "--budget", "6"],
        "1 number for a model of 2 stages",
    ),
    "large budget": (["evaluate", "{ckpt}", "--data", "{data}", "--budget", "17,6"], "the image has only 16"),
    "small budget": (["evaluate", "{ckpt}", "--data", "{data}", "--budget", "6,1"], "must keep at least 2"),
    "nonsense": (["evaluate", "{ckpt}", "--data", "{data}", "--budget", "a,b"], "expected counts such as"),
    "nan": (["evaluate", "{ckpt}", "--data", "{data}", "--budget", "nan%,5%"], "above 0 and at most 1"),
    "no budget": (["export", "{ckpt}", "--data", "{data}", "--budget", "", "--out", "{tmp}/out"], "expected counts"),
    "maps": (["export", "{ckpt}", "--maps", "all", "--out", "{tmp}/out"], "argument --maps: invalid choice: 'all'"),
    "out is a file": (["export", "{ckpt}", "--data", "{data}", "--out", "{image}"], "is a file"),
    "threads": (["evaluate", "{ckpt}", "--data", "{data}", "--threads", "-2"], "threads"),
}


@pytest.mark.parametrize(
    ("command", "message"),
    [
        *(pytest.param(*case, id=f"artefact, {name}") for name, case in ON_ARTEFACTS.items()),
        *(pytest.param(*case, id=f"checkpoint, {name}") for name, case in ON_CHECKPOINTS.items()),
    ],
)
def test_mistake_is_named(refused, made, animals, tmp_path, command, message):
    policy, log = tmp_path / "policy.json", tmp_path / "trtexec.log"
    policy.write_text('{"rules": [{"pattern": "*", "precision": "int3", "reason": "small"}]}')
    log.write_text("[I] trtexec")
    places = {"tmp": tmp_path, "data": animals, "image": animals / "ant/00.png", "policy": policy, "log": log, **made}
    error = refused(*(part.format(**places) for part in command))
    assert message.format(**places) in error


@pytest.mark.parametrize("command", [["evaluate", "{fp32}"], ["bench", "{fp32}", "--rounds", "1", "--warmup", "0"]])
@pytest.mark.parametrize("out", ["{tmp}", "{tmp}/file/result.json"], ids=["a folder", "below a file"])
def test_result_that_cannot_be_written_there_is_refused(refused, made, animals, tmp_path, command, out):
    (tmp_path / "file").write_text("mine")
    data = ["--data", animals] if command[0] == "evaluate" else []
    refused(*(part.format(**made) for part in command), *data, "--out", out.format(tmp=tmp_path))


@pytest.mark.parametrize("verb", ["quantize", "export", "train"])
def test_folder_that_cannot_be_made_there_is_refused(refused, made, animals, tmp_path, verb):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "recipe.toml").write_text("[data]\neval_images = 1\n[train]\nsteps = 1")
    sources = {"train": ["--config", tmp_path / "recipe.toml"]}
    source = sources.get(verb, [made["ckpt"], "--data", animals, *(["--images", 24] if verb == "quantize" else [])])
    refused(verb, *source, "--out", tmp_path / "file/out")


@pytest.mark.parametrize(
    ("file", "damage", "message"),
    [
        ("model.safetensors", lambda data: b"", "damaged or not a safetensors file"),
        ("model.safetensors", lambda data: data[:-1], "damaged or not a safetensors file"),
        ("model.safetensors", lambda data: bytes(8) + data[8:], "damaged or not a safetensors file"),
        ("config.json", lambda data: data[:-20], "cannot be read as JSON"),
        ("config.json", lambda data: b"[]", "expected a JSON object"),
        ("config.json", lambda data: b"{}", "has no seal"),
        ("config.json", lambda data: data.replace(b'"bee"', b'"cow"'), "its seal does not match"),
        ("config.json", lambda data: resealed(data.replace(b'"bee",', b"")), "3 labels for 4 classes"),
        ("config.json", lambda data: resealed(data.replace(b'"depth": 3', b'"depth": 4')), "missing tensors"),
        ("config.json", lambda data: b"\xff\xfe", "cannot be read as JSON"),
    ],
)
def test_damaged_checkpoint_is_named(refused, copied, animals, tmp_path, file, damage, message):
    path = copied("ckpt")
    (path / file).write_bytes(damage((path / file).read_bytes()))
    assert message in refused("export", path, "--data", animals, "--out", tmp_path / "out")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[:-20], "cannot be read as JSON"),
        (lambda data: data.replace(b'"bee"', b'"cow"'), "its seal does not match"),
        (lambda data: resealed(data.replace(b'"schema": 1', b'"schema": 2')), "schema 2, this version reads 1"),
        (
            lambda data: resealed(data.replace(b'"model.onnx"', b'"../model.onnx"')),
            "leads out of the artefact's folder",
        ),
        (lambda data: resealed(data.replace(b'"bicubic"', b'"bilinear"')), "preprocessing does not match its id"),
        (lambda data: resealed(data.replace(b'"files"', b'"papers"')), "incomplete or malformed"),
    ],
)
@pytest.mark.parametrize("verb", ["verify", "bench"])
def test_damaged_manifest_is_named(refused, copied, damage, message, verb):
    path = copied("fp32")
    file = path / "manifest.json"
    file.write_bytes(damage(file.read_bytes()))
    assert message in refused(verb, path)


@pytest.mark.parametrize("verb", ["verify", "bench", "evaluate", "predict", "build"])
def test_graph_that_is_missing_or_changed_is_named(refused, copied, animals, verb):
    more = {"predict": [animals / "ant/00.png"], "build": ["--target", "rtx"], "evaluate": ["--data", animals]}
    if verb == "build":
        pytest.importorskip("tensorrt_rtx")
    path = copied("fp32")
    data = (path / MODEL).read_bytes()
    (path / MODEL).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert "model.onnx was changed since it was written" in refused(verb, path, *more.get(verb, []))
    (path / MODEL).unlink()
    assert "model.onnx is missing; export it again" in refused(verb, path, *more.get(verb, []))


def test_graph_that_contradicts_itself_is_named(gft_edge, copied):
    path = copied("fp32")
    (path / MODEL).write_bytes(b"junk")
    register_files(load_artifact(path), [MODEL])
    done = gft_edge("bench", path)
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "model.onnx is no ONNX model" in done.err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[train]\nsteps = 0", "steps must be at least 1"),
        ("[model]\nstages = [4, 2]\nbudget = '9,9'", "stages must be increasing"),
        ("[modle]\n", "unknown key modle (did you mean 'model'?)"),
        ("[train]\nlr =", "recipe "),
        ("[train]\nprecision = 'fp8'", "train.precision must be one of"),
        ("[data]\nname = 'nowhere'", "no such folder"),
        ("[train]\ninit = 'nowhere'", "no such folder"),
    ],
)
def test_recipe_that_cannot_be_used_is_named(refused, tmp_path, text, message):
    (tmp_path / "recipe.toml").write_text(text)
    assert message in refused("train", "--config", tmp_path / "recipe.toml", "--out", tmp_path / "out")


def test_recipe_of_several_mistakes_names_them_all(refused, tmp_path):
    recipe = {"model": {"preset": 3}, "data": {"nmae": "x"}, "train": {"steps": "many"}}
    (tmp_path / "recipe.json").write_text(json.dumps(recipe))
    error = refused("train", "--config", tmp_path / "recipe.json", "--out", tmp_path / "out")
    for part in ("model.preset must be of type str", "unknown key data.nmae", "train.steps must be of type int"):
        assert part in error


def test_missing_recipe_and_nothing_to_resume_are_named(refused, tmp_path):
    assert "cannot be read" in refused("train", "--config", tmp_path / "no.toml", "--out", tmp_path / "out")
    (tmp_path / "recipe.toml").write_text("[data]\neval_images = 1\n[train]\nsteps = 1")
    error = refused("train", "--config", tmp_path / "recipe.toml", "--out", tmp_path / "out", "--resume")
    assert "state.pt does not exist; start without --resume" in error


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--dialect", "trt8", "--precision", "fp16"],
            "gft-edge export: --dialect trt8: TensorRT 8.6 takes a graph typed FP32",
        ),
        (["--budget", "50%"], "1 number for a model of 2 stages; give one for each, for example 12,6"),
        (["--budget", "12,6", "--budget", "12,6,3"], "3 numbers for a model of 2 stages"),
    ],
)
def test_what_cannot_be_exported_is_refused_before_tracing(gft_edge, made, animals, tmp_path, options, message):
    done = gft_edge("export", made["ckpt"], "--data", animals, *options, "--out", tmp_path / "out")
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
    assert message in done.err


def test_size_of_a_family_counts_its_shared_weights():
    sizes = {"model.onnx": 80_000, "model-8-4.onnx": 70_000, "weights.bin": 6_440_000, "golden.npz": 1_000_000}
    files = {name: SimpleNamespace(size=size) for name, size in sizes.items()}
    family = {"8-4": SimpleNamespace(model="model-8-4.onnx")}
    assert (
        export._size(SimpleNamespace(files=files, family=family))
        == "2 graphs with 6.44 MB of shared weights, together 6.59 MB"
    )
    alone = {name: files[name] for name in ("model.onnx", "golden.npz")}
    assert export._size(SimpleNamespace(files=alone, family={})) == "model.onnx 0.08 MB"


def test_quantize_prints_layers_alike_as_one_row(gft_edge, made, animals, tmp_path):
    done = gft_edge("quantize", made["ckpt"], "--data", animals, "--images", 24, "--out", tmp_path / "out")
    assert done.code == 0
    rows = [line for line in done.out.splitlines() if line.startswith("blocks.")]
    assert any(line.split()[:3] == ["blocks.*.mlp.fc1", "3", "int8"] for line in rows)
    assert len(done.out.splitlines()) < 30
