"""Bad input: one line that says what is wrong, the promised exit code, no traceback, nothing half-written."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gft_edge.checkpoint import builtin_path
from gft_edge.cli.main import main
from gft_edge.manifest import load_artifact, register_files


@pytest.fixture(scope="module")
def artifact(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("refusals") / "artifact"
    assert main(["export", "builtin", "--out", str(path)]) == 0
    return path


@pytest.fixture
def copy(artifact, tmp_path) -> Path:
    return Path(shutil.copytree(artifact, tmp_path / "copy"))


def refused(capsys, code: int, *command) -> str:
    before = capsys.readouterr()
    del before
    assert main([str(part) for part in command]) == code
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if not line.startswith("export: tracing")]
    assert len(lines) == 1, captured.err
    assert lines[0].startswith(f"gft-edge {command[0]}: ")
    assert "Traceback" not in captured.err
    assert captured.out == ""
    return lines[0]


def test_missing_checkpoint(capsys, tmp_path):
    for verb, *more in (("evaluate",), ("export", "--out", tmp_path / "x"), ("quantize", "--out", tmp_path / "x")):
        text = refused(capsys, 2, verb, tmp_path / "nothing", *more)
        assert "no such folder" in text
        assert "builtin" in text
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("damage", [b"", b"junk", None])
def test_corrupt_checkpoint(capsys, tmp_path, damage):
    folder = Path(shutil.copytree(builtin_path(), tmp_path / "ckpt"))
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-9] if damage is None else damage)
    assert "damaged or not a safetensors file" in refused(capsys, 2, "export", folder, "--out", tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_image_that_is_no_image(capsys, artifact, tmp_path):
    (tmp_path / "cat.png").write_text("not an image")
    text = refused(capsys, 2, "predict", artifact, tmp_path / "cat.png")
    assert "cat.png: cannot be decoded as an image" in text
    assert "no such file" in refused(capsys, 2, "predict", artifact, tmp_path / "dog.png")


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        ("72,108,36", "stage 1 keeps 108 but stage 0 keeps only 72; counts must not grow"),
        ("145,72,36", "stage 0 keeps 145 but the image has only 144"),
        ("108,72,1", "stage 2 keeps 1, must keep at least 2"),
        ("108,72", "does not fit a model of 144 patches and 3 stages"),
        ("many", "expected counts such as"),
        ("150%,50%,25%", "ratios must be above 0 and at most 1"),
    ],
)
def test_bad_budget(capsys, tmp_path, budget, message):
    assert message in refused(capsys, 2, "export", "builtin", "--budget", budget, "--out", tmp_path / "x")
    assert not (tmp_path / "x").exists()


def write_recipe(folder: Path, **sections) -> Path:
    (folder / "recipe.json").write_text(json.dumps(sections))
    return folder / "recipe.json"


def test_unknown_preset_and_unknown_key(capsys, tmp_path):
    recipe = write_recipe(tmp_path, model={"preset": "gft_tyny"})
    text = refused(capsys, 2, "train", "--config", recipe, "--out", tmp_path / "x")
    assert "unknown preset 'gft_tyny' (did you mean 'gft_tiny'?)" in text
    recipe = write_recipe(tmp_path, train={"stepps": 3, "lr": "fast"})
    text = refused(capsys, 2, "train", "--config", recipe, "--out", tmp_path / "x")
    assert "unknown key train.stepps (did you mean 'steps'?)" in text
    assert "train.lr must be of type float" in text
    text = refused(capsys, 2, "train", "--config", recipe, "--out", tmp_path / "x", "--set", "nonsense")
    assert "expected section.key=value" in text
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("verb", ["train", "quantize", "export", "demo"])
def test_output_folder_that_is_not_empty(capsys, tmp_path, verb):
    (tmp_path / "full").mkdir()
    (tmp_path / "full/thesis.txt").write_text("precious")
    source = {"train": ["--config", write_recipe(tmp_path)], "demo": []}.get(verb, ["builtin"])
    assert "not empty" in refused(capsys, 2, verb, *source, "--out", tmp_path / "full")
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["thesis.txt"]


def test_build_without_the_compiler_names_the_extra(capsys, artifact, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    text = refused(capsys, 3, "build", artifact, "--target", "rtx")
    assert "pip install 'gft-edge[rtx]'" in text
    assert not (artifact / "engines").exists()


def test_verb_without_its_extra_names_it(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    for name in [name for name in sys.modules if name.startswith(("gft_edge.checkpoint", "gft_edge.data"))]:
        monkeypatch.delitem(sys.modules, name)
    assert "pip install 'gft-edge[train]'" in refused(capsys, 3, "evaluate", "builtin")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--target", "toaster"], "unknown target 'toaster'; there are: rtx"),
        (["--target", "rtx", "--compute-capability", "7.5"], "use 8.0 or newer"),
        (["--target", "rtx", "--compute-capability", "ampere"], "expected two numbers"),
        (["--target", "rtx", "--compute-capability", "9.9"], "cannot compile for it; it knows"),
        (["--target", "rtx", "--batch", "8:4:1"], "expected 1 <= smallest <= usual <= largest"),
        (["--target", "rtx", "--batch", "few"], "expected one number or smallest:usual:largest"),
    ],
)
def test_builds_that_cannot_be(capsys, artifact, flags, message):
    assert message in refused(capsys, 2, "build", artifact, *flags)
    assert not list(artifact.glob("engines/*"))


def test_artefact_that_was_changed(capsys, copy):
    with (copy / "model.onnx").open("ab") as file:
        file.write(b"!")
    for verb, *more in (("verify",), ("evaluate",), ("bench",), ("build", "--target", "rtx")):
        assert "model.onnx was changed since it was written" in refused(capsys, 2, verb, copy, *more)


def test_artefact_of_another_checkpoint(capsys, artifact, tmp_path):
    from gft_edge.checkpoint import load_checkpoint, save_checkpoint

    other = load_checkpoint("builtin")
    next(other.model.parameters()).data.add_(1)
    save_checkpoint(tmp_path / "other", other.info, other.model)
    text = refused(capsys, 2, "verify", artifact, "--checkpoint", tmp_path / "other")
    assert "was made from weights" in text


def test_wrong_results_end_with_code_1(capsys, copy):
    import onnx
    from onnx import numpy_helper

    model = onnx.load(copy / "model.onnx")
    head = next(t for t in model.graph.initializer if list(t.dims) in ([16, 128], [128, 16]))
    head.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(head) * np.float32(1.01), head.name))
    onnx.save(model, copy / "model.onnx")
    register_files(load_artifact(copy), ["model.onnx"])
    assert main(["verify", str(copy)]) == 1
    assert "FAILED" in capsys.readouterr().out
    assert json.loads((copy / "reports/verify.json").read_text())["passed"] is False


def test_maps_of_an_artefact_that_has_none(capsys, artifact, tmp_path):
    Image.new("RGB", (30, 20)).save(tmp_path / "a.png")
    text = refused(capsys, 2, "predict", artifact, tmp_path / "a.png", "--maps", tmp_path / "maps")
    assert "export it with --maps compact" in text
    assert not (tmp_path / "maps").exists()


def test_data_that_is_not_there_or_of_other_classes(capsys, artifact, tmp_path):
    assert "no such folder" in refused(capsys, 2, "evaluate", "builtin", "--data", tmp_path / "none")
    for name in ("cat", "dog"):
        (tmp_path / "pets" / name).mkdir(parents=True)
        Image.new("RGB", (30, 20)).save(tmp_path / "pets" / name / "0.png")
    assert "not the model's 16" in refused(capsys, 2, "evaluate", artifact, "--data", tmp_path / "pets")
    text = refused(capsys, 2, "quantize", "builtin", "--data", tmp_path / "pets", "--out", tmp_path / "x")
    assert "not the model's 16" in text
    assert not (tmp_path / "x").exists()


def test_fewer_calibration_images_than_asked(capsys, tmp_path):
    from gft_edge.data.typefaces import LABELS

    for name in LABELS:
        (tmp_path / "faces" / name).mkdir(parents=True)
        Image.new("RGB", (96, 96)).save(tmp_path / "faces" / name / "0.png")
    data = ["--data", tmp_path / "faces", "--images", 64]
    # An image folder's classes come in alphabetical order, the typefaces' do not.
    text = refused(capsys, 2, "quantize", "builtin", *data, "--out", tmp_path / "x")
    assert "16 images, 64 asked for" in text or "order differs" in text
    assert not (tmp_path / "x").exists()


def test_unknown_verb_and_missing_argument(capsys):
    for command in (["fly"], ["export", "builtin"], ["bench"]):
        with pytest.raises(SystemExit) as stop:
            main(command)
        assert stop.value.code == 2
        assert capsys.readouterr().err.count("\n") == 1
