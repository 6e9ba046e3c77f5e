"""The wheel on a board: every verb where only some packages are installed, and doctor's table held against what happened."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import venv
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gft_edge.bundle import ARTIFACT, write_record
from gft_edge.cli.abilities import USES
from gft_edge.cli.main import verb_module
from gft_edge.cli.parsing import verb_parser
from gft_edge.hardware.environment import PACKAGES
from gft_edge.manifest import load_artifact
from gft_edge.runtime.backends.table import BACKENDS

LEVELS = {
    "numpy alone": ["numpy"],
    "ONNX Runtime and Pillow": ["numpy", "onnxruntime", "protobuf", "flatbuffers", "packaging", "pillow"],
    "onnx too": [
        *("numpy", "onnxruntime", "protobuf", "flatbuffers", "packaging", "pillow"),
        *("onnx", "ml_dtypes", "typing_extensions"),
    ],
}
"""Distributions that are linked into an otherwise empty environment."""

DRIVER = """
import contextlib, io, json, sys, traceback
from gft_edge.cli.main import main

found = {}
for name, argv in json.load(open(sys.argv[1])).items():
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main(argv)
        except SystemExit as stop:
            code = stop.code
        except BaseException:
            code = "traceback"
            traceback.print_exc()
    found[name] = {"code": code, "out": out.getvalue(), "err": err.getvalue()}
json.dump(found, open(sys.argv[2], "w"))
"""


@pytest.fixture(scope="module")
def inputs(tiny_checkpoint, tiny_artifact, tiny_info, tmp_path_factory):
    """A folder with what the verbs take: artefact, checkpoint, images by class, tensors, a recipe, a log of trtexec."""
    root = tmp_path_factory.mktemp("board")
    rng = np.random.default_rng(0)
    artifact = load_artifact(Path(shutil.copytree(tiny_artifact, root / "art")))
    pixels = root / "pixels"
    pixels.mkdir()
    for number, label in enumerate(tiny_info.labels):
        for split in ("train", "val", "test"):
            folder = root / "data" / split / label
            folder.mkdir(parents=True)
            image = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(image).save(folder / f"{split}{number}.png")
    Image.fromarray(image).save(pixels / "a.png")
    np.save(pixels / "a.npy", artifact.manifest.preprocess(image))
    log = Path(__file__).parent / "recorded/trtexec/orin-10.3.log"
    (root / "trtexec.log").write_text(log.read_text())
    (root / "recipe.toml").write_text((Path(__file__).parents[1] / "recipes/typeface.toml").read_text())
    (root / "weights.pth").write_bytes(b"")
    shutil.copy(artifact.path / "model.onnx", root / "vit.onnx")
    shutil.copytree(tiny_artifact, root / "bundle" / ARTIFACT)
    write_record(root / "bundle", "onnxruntime")
    (root / "public.pem").write_text("-----BEGIN PUBLIC KEY-----")
    return root, str(tiny_checkpoint)


def commands(root: Path, checkpoint: str, new: Path) -> dict[str, list[str]]:
    """Arguments for every entry of doctor's table; ``new`` is an empty folder."""
    art, data, out = str(root / "art"), str(root / "data"), str(new / "out")
    image = str(next((root / "data").rglob("*.png")))
    weights, backbone = str(root / "weights.pth"), ["--backbone", "vit_tiny_patch16_224"]
    recipe = str(root / "recipe.toml")
    quick = ["--rounds", "2", "--runs", "1", "--warmup", "0", "--skip", "stages", "throughput", "process"]
    bench = ["bench", art, "--power", "none", *quick]
    model = str(root / "vit.onnx")
    backends = {}
    for backend in BACKENDS[1:]:
        name, argument = f"{backend.name}:CKPT", f"{backend.name}:{checkpoint}"
        if backend.takes != "checkpoint":
            name = argument = backend.name
        backends[f"bench ARTIFACT --backend {name}"] = [*bench, "--backend", argument]
    return {
        "doctor": ["doctor"],
        "bench ARTIFACT": bench,
        "bench ARTIFACT --data D": [*bench, "--data", data],
        "bench ARTIFACT --trtexec-log FILE": ["bench", "--trtexec-log", str(root / "trtexec.log"), "--power", "none"],
        "selftest BUNDLE": ["selftest", art],
        "selftest BUNDLE --key PUB.pem": ["selftest", str(root / "bundle"), "--key", str(root / "public.pem")],
        "verify ARTIFACT": ["verify", art],
        "verify ARTIFACT --pixels DIR": ["verify", art, "--pixels", str(root / "pixels")],
        "verify MODEL.onnx": ["verify", model],
        "bench MODEL.onnx": ["bench", model, "--power", "none", *quick],
        "build MODEL.onnx --target DEVICE --plan": ["build", model, "--target", "orin-nano", "--plan"],
        "build MODEL.onnx --target rtx": ["build", model, "--target", "rtx"],
        "predict ARTIFACT IMAGE": ["predict", art, image],
        "evaluate ARTIFACT --data FOLDER": ["evaluate", art, "--data", data],
        "controls ARTIFACT": ["controls", art, "--data", data],
        "lint ARTIFACT": ["lint", art],
        "build ARTIFACT --target DEVICE --plan": ["build", art, "--target", "orin-nano", "--plan"],
        "bundle ARTIFACT --target jetson": [
            "bundle",
            art,
            "--target",
            "jetson",
            "--device",
            "orin-nano",
            "--out",
            str(new / "b"),
        ],
        "build ARTIFACT --target this-gpu": ["build", art, "--target", "this-gpu"],
        "build ARTIFACT --target rtx": ["build", art, "--target", "rtx"],
        "build CKPT --target torch-tensorrt": ["build", checkpoint, "--target", "torch-tensorrt"],
        **backends,
        "report RUN_DIR": ["report", str(root)],
        "train --config RECIPE": ["train", "--config", recipe, "--out", out],
        "distill --teacher CKPT": ["distill", "--teacher", checkpoint, "--config", recipe, "--out", out],
        "evaluate CKPT": ["evaluate", checkpoint, "--data", data],
        "controls CKPT": ["controls", checkpoint, "--data", data],
        "controls CKPT --out DIR": ["controls", checkpoint, "--data", data, "--out", out],
        "search CKPT": ["search", checkpoint, "--data", data, "--out", str(new / "front.json")],
        "import-published FILE.pth": ["import-published", weights, "--out", out],
        "adopt WEIGHTS": ["adopt", weights, *backbone, "--out", out],
        "adopt WEIGHTS --data D": ["adopt", weights, *backbone, "--data", data, "--out", out],
        "calibrate CKPT": ["calibrate", checkpoint, "--data", data, "--out", out],
        "calibrate ARTIFACT": ["calibrate", art, "--data", data, "--out", out],
        "sensitivity CKPT": ["sensitivity", checkpoint, "--data", data, "--out", out],
        "quantize CKPT": ["quantize", checkpoint, "--data", data, "--out", out],
        "quantize MODEL.onnx --data D": ["quantize", model, "--data", data, "--out", out],
        "export CKPT": ["export", checkpoint, "--data", data, "--out", out],
        "sweep CKPT": ["sweep", checkpoint],
        "sweep CKPT --out DIR": ["sweep", checkpoint, "--out", out],
        "verify ARTIFACT --checkpoint CKPT": ["verify", art, "--checkpoint", checkpoint, "--data", data],
        "demo": ["demo", "--small", "--out", str(new / "demo")],
    }


def test_every_entry_of_the_table_is_run(inputs, tmp_path):
    assert list(commands(*inputs, tmp_path)) == [use.command for use in USES]


@pytest.fixture(scope="module", params=LEVELS)
def happened(request, wheel, inputs, link_distributions, tmp_path_factory):
    """What every command did, and doctor's entry for it."""
    root = tmp_path_factory.mktemp("site")
    venv.create(root / "empty", with_pip=False)
    site = root / "site"
    site.mkdir()
    zipfile.ZipFile(wheel).extractall(site)
    link_distributions(LEVELS[request.param], site)
    argv = commands(*inputs, root)
    (root / "commands.json").write_text(json.dumps({"table": ["doctor", "--json"], **argv}))
    (root / "driver.py").write_text(DRIVER)
    run = subprocess.run(
        [root / "empty/bin/python", root / "driver.py", root / "commands.json", root / "found.json"],
        env={"PYTHONPATH": str(site), "PATH": "", "HOME": str(root)},
        capture_output=True,
        text=True,
        cwd=root,
    )
    assert run.returncode == 0, run.stderr
    found = json.loads((root / "found.json").read_text())
    table = {entry["name"]: entry for entry in json.loads(found.pop("table")["out"])["abilities"]}
    return found, table, [PACKAGES[m][0] for m in PACKAGES if PACKAGES[m][0] in LEVELS[request.param]]


@pytest.mark.parametrize("command", [use.command for use in USES])
def test_a_verb_gives_its_result_or_one_line_as_doctor_says(happened, command):
    found, table, installed = happened
    done, entry = found[command], table[command]
    assert "Traceback" not in done["out"] + done["err"]
    if entry["works"]:
        assert done["code"] == 0, done["err"]
        assert done["out"]
        return
    assert (done["code"], done["out"]) == (3, ""), done
    *before, line = done["err"].strip().split("\n")
    assert line.startswith(f"gft-edge {command.split()[0]}: ")
    assert all(text.startswith("demo: ") for text in before)
    assert "gft-edge[" in line or "run: pip " in line
    missing = [name for need in entry["needs"] for name in need.split(" or ") if name not in installed]
    named = {name.lower().replace("-", "_").removesuffix("_cu13") for name in missing}
    said = line.lower().replace("-", "_")
    problem = r"(, [^,]+,)? is not installed|, whose \w+ the onnxruntime [\d.]+ here lacks"
    assert any(re.search(rf"\b{name}({problem})", said) for name in named), (line, named)


def test_what_a_board_has_to_do_works_without_torch(happened):
    """The list of verbs that need no PyTorch does not shrink."""
    _, table, installed = happened
    works = {name for name, entry in table.items() if entry["works"]}
    if "onnxruntime" in installed:
        assert works >= {
            "bench ARTIFACT",
            "selftest BUNDLE",
            "verify ARTIFACT",
            "predict ARTIFACT IMAGE",
            "evaluate ARTIFACT --data FOLDER",
        }
    if "onnx" in installed:
        assert works >= {
            *("lint ARTIFACT", "build ARTIFACT --target DEVICE --plan", "build MODEL.onnx --target DEVICE --plan"),
            *("controls ARTIFACT", "verify MODEL.onnx", "bench MODEL.onnx"),
        }


def test_commands_of_the_board_page_parse():
    page = (Path(__file__).parents[1] / "docs/board.md").read_text(encoding="utf-8")
    lines = [line for block in page.split("```")[1::2] for line in block.splitlines() if "gft-edge " in line]
    assert len(lines) > 10
    for line in lines:
        verb, *arguments = shlex.split(line.partition("gft-edge ")[2])
        verb_parser(verb, verb_module(verb)).parse_args(arguments)
