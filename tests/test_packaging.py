"""What is installed is what is on disk, and the edge runtime needs numpy alone."""

import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

tomllib = pytest.importorskip("tomllib", reason="part of Python from 3.11")

ROOT = Path(__file__).parents[1]
EDGE = ["budget", "manifest", "preprocess", "errors", "config.model", "files", "hardware.environment", "resample"]
EDGE += ["runtime.sessions", "runtime.classifier", "runtime.maps", "cli.main", "benchmarks.measuring.bench"]
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


def test_wheel_holds_one_top_level_package_with_its_data(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"gft_edge"}
    wanted = [
        "export/onnx/artifact.py",
        "calibration/ptq.py",
        "benchmarks/measuring/latency.py",
        "report/templates/page.html.j2",
        "py.typed",
    ]
    wanted += ["builtin/model.safetensors", "builtin/config.json", "builtin/card.md", "builtin/recipes/typeface.toml"]
    wanted += [f"builtin/recipes/{name}.toml" for name in ("real-backbone", "image-folder", "image-folder-pretrained")]
    wanted += ["export/verify/claims.py", "export/tensorrt/interrupts.py"]
    assert {f"gft_edge/{name}" for name in wanted} <= set(names)


def test_edge_modules_import_with_numpy_alone(wheel, tmp_path):
    venv.create(tmp_path / "empty", with_pip=False)
    site = tmp_path / "site"
    site.mkdir()
    zipfile.ZipFile(wheel).extractall(site)
    import numpy

    # numpy is linked in by itself, so that nothing else of this environment can be found.
    for name in ("numpy", "numpy.libs"):
        if (Path(numpy.__file__).parents[1] / name).exists():
            (site / name).symlink_to(Path(numpy.__file__).parents[1] / name)
    code = "import importlib, sys\n"
    code += "".join(f"importlib.import_module('gft_edge.{name}')\n" for name in EDGE)
    code += "assert not {'torch', 'onnx', 'onnxruntime', 'timm', 'PIL', 'matplotlib'} & set(sys.modules)\n"
    code += "from gft_edge.cli.main import main\nsys.exit(main(['doctor']))"
    python = tmp_path / "empty/bin/python"
    run = subprocess.run(
        [python, "-c", code], env={"PYTHONPATH": str(site), "PATH": ""}, capture_output=True, text=True, cwd=tmp_path
    )
    assert run.returncode == 0, run.stderr
    assert "not installed" in run.stdout


@pytest.mark.parametrize("name", MAPPED)
def test_mapped_folders_refuse_their_bare_name(name):
    run = subprocess.run([sys.executable, "-c", f"import {name}"], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 1
    assert f"gft_edge.{name}" in run.stderr


def test_importing_the_package_imports_neither_torch_nor_onnx():
    code = "import sys, gft_edge; assert not {'torch', 'onnx', 'onnxruntime', 'numpy'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_pins_cover_every_extra():
    pins = {line.split("==")[0] for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line}
    extras = project()["project"]["optional-dependencies"]
    wanted = {
        requirement.split(">")[0].split(";")[0].strip()
        for name, requirements in extras.items()
        for requirement in requirements
        if name in ("train", "onnx", "rtx", "report", "cli", "dev")
    }
    assert {name for name in wanted if not name.startswith(("gft-edge", "tomli"))} <= pins
