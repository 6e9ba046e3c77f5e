"""What is installed is what is on disk, and the edge runtime needs numpy alone."""

import json
import re
import shutil
import subprocess
import tarfile
import venv
import zipfile
from pathlib import Path

import package_contents
import pytest

tomllib = pytest.importorskip("tomllib", reason="part of Python from 3.11")

ROOT = Path(__file__).parents[1]
DEPLOY = ("normalize_graph", "onnxruntime_context", "place_engine", "triton.bundle")
NEEDS = {
    "benchmarks.measuring.layer_times": "torch",
    "benchmarks.measuring.linears": "onnx",
    "calibration.*": "torch",
    "calibration.observing": "",
    "calibration.observing.*": "torch",
    "calibration.sensitivity": "",
    "calibration.sensitivity.*": "torch",
    **dict.fromkeys(
        (f"calibration.{name}" for name in ("cache", "certificates", "images", "modelopt_recipe", "options", "ranges")),
        "",
    ),
    "calibration.graph": "onnx",
    "control_checkpoint": "torch",
    "data.training": "torch",
    "distill.*": "torch",
    "export.deploy.jetson": "onnx",
    **dict.fromkeys((f"export.deploy.{name}" for name in DEPLOY), "onnx"),
    **dict.fromkeys(
        (
            f"export.foreign.{name}"
            for name in ("building", "loading", "parting", "pattern", "qdq", "quantize", "verification", "vit_parts")
        ),
        "onnx",
    ),
    "export.graph.*": "onnx",
    "export.graph.native": "",
    "export.onnx.torch_session": "torch",
    "export.lint.*": "onnx",
    **dict.fromkeys(
        (f"export.lint_deployment{folder}.*" for folder in ("", ".bundles", ".nvinfer", ".shared", ".triton")), "onnx"
    ),
    **dict.fromkeys(
        (
            *(f"export.lint_deployment.{folder}" for folder in ("bundles", "nvinfer", "shared", "triton")),
            *("export.lint_deployment.bundles.subject", "export.lint_deployment.nvinfer.keys"),
            *("export.lint_deployment.shared.source", "export.lint_deployment.triton.pbtxt_lines"),
        ),
        "",
    ),
    "export.onnx.*": "onnx",
    **dict.fromkeys(("export.onnx.golden_images", "export.onnx.interface", "export.onnx.options"), ""),
    **dict.fromkeys((f"export.onnx.{name}" for name in ("plain_modules", "quantized", "reference")), "torch"),
    "export.tensorrt.*": "onnx",
    **dict.fromkeys(
        (f"export.tensorrt.{name}" for name in ("build_plan", "builders", "interrupts", "registration")), ""
    ),
    "export.tensorrt.torch_tensorrt": "torch",
    "export.verify.causes": "torch",
    **dict.fromkeys(
        (f"export.verify.{name}" for name in ("claims", "module_trace", "tensors", "trace", "with_checkpoint")), "onnx"
    ),
    "model.*": "torch",
    **dict.fromkeys((f"model.{name}" for name in ("adapt", "backbone", "baselines", "foreign.adopt")), "timm"),
    "model.foreign": "",
    "model.foreign.*": "torch",
    **dict.fromkeys(("model.macs", "model.places"), ""),
    **dict.fromkeys(("quant.attention", "quant.modules"), "torch"),
    "report.figures.*": "matplotlib",
    **dict.fromkeys((f"report.figures.{name}" for name in ("map_pictures", "overlays", "pictures")), ""),
    "report.pages.*": "matplotlib",
    **dict.fromkeys((f"report.pages.{name}" for name in ("html", "quantization", "tables")), ""),
    "search.*": "torch",
    **dict.fromkeys((f"search.{name}" for name in ("front", "latency", "options", "point", "recommend", "table")), ""),
    **dict.fromkeys(
        (f"search.{name}" for name in ("candidates", "costs", "graphs", "measuring", "pricing", "record", "staircase")),
        "onnx",
    ),
    "train.*": "torch",
    "train.log": "",
    "train.loop": "timm",
}
"""What the import of a module needs beyond numpy, by name, or by the package it lies in."""
EXTRAS = {"torch": "train", "timm": "train", "onnx": "onnx", "matplotlib": "report"}
"""Extra that brings each of these packages."""
IMPORT_ALL = """
import importlib, json, pkgutil, sys
import gft_edge

found = {}
for module in pkgutil.walk_packages(gft_edge.__path__, "gft_edge.", onerror=lambda name: None):
    try:
        importlib.import_module(module.name)
        found[module.name] = ""
    except ImportError as error:
        found[module.name] = error.name or str(error)
json.dump(found, sys.stdout)
"""
EPOCH = 315532800  # 1980, the first year of a zip
MAPPED = ("benchmarks", "calibration", "export")
NOT_SHIPPED = {("benchmarks", "experiments"), ("benchmarks", "torture")}


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_packages_listed_are_the_folders_on_disk():
    listed = set(project()["tool"]["setuptools"]["packages"])
    found = {p.parent.relative_to(ROOT) for top in ("gft_edge", *MAPPED) for p in (ROOT / top).rglob("__init__.py")}
    shipped = {path for path in found if path.parts[:2] not in NOT_SHIPPED}
    folders = {".".join(path.parts if path.parts[0] == "gft_edge" else ("gft_edge", *path.parts)) for path in shipped}
    assert listed == folders


@pytest.fixture(scope="module")
def archives(tmp_path_factory, git_checkout):
    """The tracked files, the sdist of them, and the wheel of that sdist."""
    root = tmp_path_factory.mktemp("archives")
    tree = root / "tree"
    package_contents.copy_tracked(ROOT, tree)
    sdist = package_contents.build(tree, root / "dist", "sdist", EPOCH)
    source = package_contents.unpacked(sdist, root / "unpacked")
    return tree, sdist, package_contents.build(source, root / "dist", "wheel", EPOCH)


def test_archives_hold_the_tracked_files_and_nothing_else(archives):
    _, sdist, wheel = archives
    files = package_contents.tracked(ROOT)
    assert package_contents.wheel_problems(wheel, ROOT, files) == []
    assert package_contents.sdist_problems(sdist, ROOT, files) == []


def test_the_list_of_shipped_files_has_the_data_and_no_studies(archives):
    names = set(zipfile.ZipFile(archives[2]).namelist())
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"gft_edge"}
    recipes = (
        "scenes",
        "scenes-selection",
        "scenes-finish",
        "real-backbone",
        "image-folder",
        "image-folder-pretrained",
    )
    wanted = [
        *("py.typed", "report/templates/page.html.j2", "export/deploy/templates/jetson-build.sh"),
        *("builtin/model.safetensors", "builtin/config.json", *(f"builtin/recipes/{name}.toml" for name in recipes)),
    ]
    assert {f"gft_edge/{name}" for name in wanted} <= names
    words = ("tests", "experiments", "torture", "RESULTS")
    assert [name for name in names if any(word in name for word in words)] == []
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


def test_the_wheel_has_the_same_bytes_from_the_tree_and_from_the_sdist(archives, tmp_path):
    tree, _, wheel = archives
    assert package_contents.build(tree, tmp_path, "wheel", EPOCH).read_bytes() == wheel.read_bytes()


def test_missing_extra_and_changed_files_are_named(archives, tmp_path):
    _, sdist, wheel = archives
    files = package_contents.tracked(ROOT)
    changed = tmp_path / wheel.name
    with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(changed, "w") as new:
        for name in old.namelist():
            if name != "gft_edge/py.typed":
                new.writestr(name, b"" if name == "gft_edge/errors.py" else old.read(name))
        new.writestr("gft_edge/note.txt", "")
    assert [line.partition(": ")[2] for line in package_contents.wheel_problems(changed, ROOT, files)] == [
        "gft_edge/py.typed is missing",
        "gft_edge/note.txt does not belong in it",
        "gft_edge/errors.py differs from gft_edge/errors.py",
    ]
    smaller = Path(shutil.copytree(package_contents.unpacked(sdist, tmp_path / "u"), tmp_path / "s" / sdist.name[:-7]))
    (smaller / "LICENSE").unlink()
    (smaller / "extra").touch()
    with tarfile.open(tmp_path / sdist.name, "w:gz") as archive:
        archive.add(smaller, smaller.name)
    assert [
        line.partition(": ")[2] for line in package_contents.sdist_problems(tmp_path / sdist.name, ROOT, files)
    ] == [
        "LICENSE is missing",
        "extra does not belong in it",
    ]


@pytest.fixture(scope="module")
def empty(wheel, tmp_path_factory):
    """Runs Python code in an environment that holds the wheel and numpy alone."""
    root = tmp_path_factory.mktemp("empty")
    venv.create(root / "venv", with_pip=False)
    site = root / "site"
    zipfile.ZipFile(wheel).extractall(site)
    import numpy

    for name in ("numpy", "numpy.libs"):
        if (Path(numpy.__file__).parents[1] / name).exists():
            (site / name).symlink_to(Path(numpy.__file__).parents[1] / name)

    def run(code: str) -> subprocess.CompletedProcess:
        command = [root / "venv/bin/python", "-c", code]
        return subprocess.run(
            command, env={"PYTHONPATH": str(site), "PATH": ""}, capture_output=True, text=True, cwd=root
        )

    return run


def needed(module: str) -> str:
    """Package that the table names for a module."""
    name = module.removeprefix("gft_edge.")
    return NEEDS[name] if name in NEEDS else NEEDS.get(f"{name.rpartition('.')[0]}.*", "")


def test_every_module_imports_with_numpy_alone_or_misses_the_package_of_its_extra(empty):
    run = empty(IMPORT_ALL)
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    assert len(found) > 200
    assert {module: missing for module, missing in found.items() if missing != needed(module)} == {}
    assert set(NEEDS.values()) - {""} <= set(EXTRAS)


def test_extras_bring_the_packages_of_the_table():
    extras = project()["project"]["optional-dependencies"]
    for package, extra in EXTRAS.items():
        assert any(re.split(r"[<>=;\[ ]", requirement)[0] == package for requirement in extras[extra])


def test_doctor_runs_with_numpy_alone(empty):
    run = empty("import sys; from gft_edge.cli.main import main; sys.exit(main(['doctor']))")
    assert run.returncode == 0, run.stderr
    assert "not installed" in run.stdout
