"""The C++ example: preprocessing compiled and compared with numpy's bits; the TensorRT part is syntax-checked only."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from gft_edge.errors import ArtifactError
from gft_edge.manifest import load_artifact, register_files
from gft_edge.preprocess import PreprocessSpec

EXAMPLE = Path(__file__).parents[2] / "examples/cpp"
HERE = Path(__file__).parent
COMPILER = shutil.which("g++") or shutil.which("clang++")
pytestmark = pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler (g++ or clang++)")
FLAGS = ["-std=c++17", "-O0", "-Wall", "-Wextra", "-Werror", "-ffp-contract=off", f"-I{EXAMPLE}"]
SPECS = [
    PreprocessSpec(24, 32),
    PreprocessSpec(24, 32, interpolation="bilinear", color_order="bgr"),
    PreprocessSpec(24, 24, "crop", 0.875),
    PreprocessSpec(21, 33, "crop", 0.9, "bilinear", mean=(0.5, 0.4, 0.3), std=(0.5, 0.21, 0.9)),
]
SIZES = [(24, 32), (24, 90), (97, 32), (7, 5), (1, 1), (61, 130), (200, 35)]


def _describe():
    spec = importlib.util.spec_from_file_location("describe", EXAMPLE / "describe.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def check(tmp_path_factory):
    """Compiles the check and returns its path."""
    program = tmp_path_factory.mktemp("cpp") / "check"
    subprocess.run([COMPILER, *FLAGS, HERE / "check.cpp", "-o", program], check=True)
    return program


@pytest.fixture(scope="module")
def artifact(tiny_artifact, tmp_path_factory):
    """A copy with an engine that is none."""
    folder = Path(shutil.copytree(tiny_artifact, tmp_path_factory.mktemp("cpp") / "artifact"))
    (folder / "engines").mkdir(exist_ok=True)
    (folder / "engines/k.engine").write_bytes(bytes(range(256)) * 5)
    (folder / "engines/k.json").write_text(json.dumps({"module": "tensorrt", "version": "10.3.0"}))
    return register_files(load_artifact(folder), ["engines/k.engine", "engines/k.json"])


def write_ppm(path, image):
    path.write_bytes(b"P6\n# a comment\n%d %d\n255\n" % image.shape[1::-1] + image.tobytes())
    return path


def test_pixels_and_normalisation_are_numpys_bits(check, artifact, tmp_path):
    rng = np.random.default_rng(0)
    describe, cases, arguments = _describe(), [], []
    (tmp_path / "k.engine").write_bytes((artifact.path / "engines/k.engine").read_bytes())
    images = [rng.integers(0, 256, (*size, 3), np.uint8) for size in SIZES]
    images.append(np.where(rng.random((40, 50, 3)) < 0.5, 0, 255).astype(np.uint8))  # overshoots of the bicubic kernel
    files = [write_ppm(tmp_path / f"{number}.ppm", image) for number, image in enumerate(images)]
    for name, spec in enumerate(SPECS):
        for kind in ("image float32", "image uint8", "pixels float32"):
            named = dict(zip(("name", "dtype"), kind.split()))
            graph_input = dataclasses.replace(artifact.manifest.inputs[0], **named)
            manifest = dataclasses.replace(artifact.manifest, preprocess=spec, inputs=(graph_input,))
            about = tmp_path / f"{name}-{kind}.txt"
            about.write_text(describe.description(dataclasses.replace(artifact, manifest=manifest), "k"))
            for image, file in zip(images, files):
                out = tmp_path / f"{about.stem}-{file.stem}.bin"
                arguments += [about, file, out]
                pixels = spec.geometry(image)
                planes = pixels.transpose(2, 0, 1).astype(np.float32)
                cases.append(({"image float32": spec(image), "image uint8": pixels}.get(kind, planes), out))
    done = subprocess.run([check, *arguments], check=True, capture_output=True, text=True)
    labels = artifact.manifest.labels
    assert set(done.stdout.splitlines()) == {f"{len(labels)} {labels[-1]}"}
    for expected, out in cases:
        assert out.read_bytes() == np.ascontiguousarray(expected).tobytes(), out.name


def test_what_is_refused(check, artifact, tmp_path, capsys):
    describe = _describe()
    assert describe.main([str(artifact.path), "k"]) == 0
    about = artifact.path / "engines/k.txt"
    assert capsys.readouterr().out == f"{about}\n"
    text, image = about.read_text(), write_ppm(tmp_path / "i.ppm", np.zeros((4, 4, 3), np.uint8))
    (tmp_path / "k.engine").write_bytes((artifact.path / "engines/k.engine").read_bytes())
    digest = hashlib.sha256((tmp_path / "k.engine").read_bytes()).hexdigest()
    assert digest in text
    (tmp_path / "cut.ppm").write_bytes(image.read_bytes()[:-1])
    (tmp_path / "deep.ppm").write_bytes(b"P6 4 4 65535\n" + bytes(96))
    changed = {
        "good": (text, image, None),
        "hash": (text.replace(digest, "0" * 64), image, "not loaded"),
        "engine": (text.replace("k.engine", "other.engine"), image, "cannot be read"),
        "first line": (text[1:], image, "is not a description"),
        "missing": (text.replace("interpolation ", "inter "), image, "has no 'interpolation'"),
        "unknown": (text.replace("bicubic", "nearest"), image, "unknown interpolation 'nearest'"),
        "size": (text.replace("height 32", "height -1"), image, "out of range"),
        "labels": (text[: text.index("labels\n") + 7], image, "has no labels"),
        "kind": (text.replace("output_kind logits", "output_kind scores"), image, "unknown output_kind"),
        "cut image": (text, tmp_path / "cut.ppm", "cut short"),
        "deep image": (text, tmp_path / "deep.ppm", "no binary PPM"),
        "no image": (text, tmp_path / "none.ppm", "no binary PPM"),
    }
    arguments = []
    for name, (content, picture, _) in changed.items():
        (tmp_path / f"{name}.txt").write_text(content)
        arguments += [tmp_path / f"{name}.txt", picture, tmp_path / "out.bin"]
    lines = subprocess.run([check, *arguments], check=True, capture_output=True, text=True).stdout.splitlines()
    for (name, (_, _, said)), line in zip(changed.items(), lines, strict=True):
        assert line.startswith("refused: ") == (said is not None), name
        assert (said or "") in line, name


def test_an_engine_that_is_not_in_the_manifest_is_not_described(artifact):
    with pytest.raises(ArtifactError, match=r"other\.engine is not in its manifest"):
        _describe().description(artifact, "other")


def test_the_tensorrt_part_is_cpp():
    """Against minimal declarations: the real headers are not available here. The code is one for TensorRT 10 and 11."""
    stubs = [f"-I{HERE / 'stubs'}", "-DNV_TENSORRT_MAJOR=11", "-fsyntax-only"]
    subprocess.run([COMPILER, *FLAGS, *stubs, EXAMPLE / "classify.cpp"], check=True)


def test_older_tensorrt_is_refused_when_it_is_compiled():
    stubs = [f"-I{HERE / 'stubs'}", "-DNV_TENSORRT_MAJOR=8", "-E"]
    done = subprocess.run([COMPILER, *FLAGS, *stubs, EXAMPLE / "classify.cpp"], capture_output=True, text=True)
    assert done.returncode
    assert "TensorRT 10 or newer is needed" in done.stderr
