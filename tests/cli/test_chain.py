"""Every verb as a user types it, from the shipped checkpoint to predictions, with --json."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from gft_edge import __version__
from gft_edge.cli.main import VERBS, main
from gft_edge.data.typefaces import Typefaces
from gft_edge.manifest import load_artifact

COMMAND = Path(sys.executable).parent / "gft-edge"


def call(capsys, *command) -> dict:
    assert main([str(part) for part in (*command, "--json")]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("chain")


def test_train_from_a_recipe_and_resume(capsys, run):
    recipe = {
        "model": {"preset": "gft_typeface"},
        "data": {"eval_images": 16, "num_workers": 0},
        "train": {"init": "builtin", "steps": 2, "batch_size": 4, "lr": 1e-6, "warmup_steps": 1},
    }
    (run / "recipe.json").write_text(json.dumps(recipe))
    figures = call(capsys, "train", "--config", run / "recipe.json", "--out", run / "trained")
    assert figures["steps"] == 2
    again = call(capsys, "train", "--config", run / "recipe.json", "--out", run / "trained", "--resume")
    assert again["val_top1_full"] == figures["val_top1_full"]


def test_evaluate_a_checkpoint_at_several_budgets(capsys, run):
    command = [
        "evaluate",
        "builtin",
        "--images",
        64,
        "--budget",
        "full",
        "--budget",
        "75%,50%,25%",
        "--out",
        run / "e.json",
    ]
    data = call(capsys, *command)
    assert [row["budget"] for row in data["results"]] == ["144-144-144", "108-72-36"]
    assert all(row["top1"] >= 0.8 and row["interval"][0] < row["top1"] for row in data["results"])
    assert json.loads((run / "e.json").read_text()) == data


def test_quantize_export_build_verify_bench_evaluate_predict(capsys, run):
    quantized = call(capsys, "quantize", "builtin", "--images", 32, "--out", run / "ckpt8")
    assert quantized["calibration_images"] == 32
    exported = call(capsys, "export", run / "ckpt8", "--maps", "compact", "--align", 8, "--out", run / "int8")
    assert (exported["precision"], exported["budget"]) == ("int8", "111-71-39")
    exported = call(capsys, "export", "builtin", "--budget", "full", "--out", run / "fp32")
    assert (exported["precision"], exported["opset"]) == ("fp32", 20)

    pytest.importorskip("tensorrt_rtx", reason="the rtx extra is not installed")
    built = call(capsys, "build", run / "int8", "--target", "rtx", "--compute-capability", "8.9", "--batch", "1:2:4")
    assert built["compute_capabilities"] == ["8.9"]
    artifact = load_artifact(run / "int8")
    assert artifact.file(f"engines/{built['key']}.engine").stat().st_size == built["engine_bytes"] > 10_000

    for name, checkpoint in (("int8", run / "ckpt8"), ("fp32", "builtin")):
        report = call(capsys, "verify", run / name, "--checkpoint", checkpoint, "--images", 32)
        assert report["passed"]
        assert load_artifact(run / name).manifest.parity["verify"]["passed"]
        assert call(capsys, "verify", run / name)["source"] == "16 golden images"

    bench = call(capsys, "bench", run / "fp32", run / "int8", "--rounds", 2, "--warmup", 0.01, "--out", run / "b.json")
    assert [row["name"] for row in bench["results"]] == ["fp32", "int8"]
    assert all(len(row["rounds_ms"]) == 2 and len(row["rounds_ms"][0]) == 5 for row in bench["results"])

    assert call(capsys, "evaluate", run / "int8", "--images", 64)["results"][0]["top1"] >= 0.8

    images = Typefaces("test", 32)
    for index in (3, 5):
        Image.fromarray(images[index][0]).save(run / f"{images.labels[index]}.png")
    paths = [run / f"{images.labels[index]}.png" for index in (3, 5)]
    rows = call(capsys, "predict", run / "int8", *paths, "--maps", run / "maps")["predictions"]
    assert [row["label"] for row in rows] == [images.labels[3], images.labels[5]]
    for row in rows:
        assert Image.open(row["map"]).size == (5 * 192 + 4 * 8, 192)


def test_doctor_tells_what_works(capsys):
    data = call(capsys, "doctor")
    assert data["versions"]["gft_edge"] == __version__
    assert {ability["name"] for ability in data["abilities"] if ability["works"]} >= {"export to ONNX"}
    assert main(["doctor"]) == 0
    assert "run TensorRT engines" in capsys.readouterr().out


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_an_example(capsys, verb):
    with pytest.raises(SystemExit) as stop:
        main([verb, "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    module = importlib.import_module(f"gft_edge.cli.{verb.replace('-', '_')}")
    assert f"example: {module.EXAMPLE}" in text
    assert "--json" in text


def test_the_installed_command_runs_and_help_imports_nothing_heavy():
    assert subprocess.run([COMMAND, "--version"], capture_output=True, text=True).stdout == f"gft-edge {__version__}\n"
    done = subprocess.run([COMMAND, "evaluate", "nothing"], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    code = (
        "import contextlib, sys\nfrom gft_edge.cli.main import VERBS, main\n"
        "for verb in VERBS:\n    with contextlib.suppress(SystemExit):\n        main([verb, '--help'])\n"
        "assert not {'torch', 'onnx', 'onnxruntime', 'timm', 'numpy', 'matplotlib'} & set(sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0
