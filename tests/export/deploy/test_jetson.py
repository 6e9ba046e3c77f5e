"""The bundle for a Jetson: what it refuses, its scripts against recorded boards, and the whole of it in an empty environment.

trtexec, nvpmodel, jetson_clocks and gft-edge are small programs here that record their arguments and print what real ones print.
Tests of the scripts cover the checks, the arguments and the order of steps. Not covered is what a real trtexec does with the flags:
they are compared with the option tables of each generation. No board has run these scripts.
"""

from __future__ import annotations

import dataclasses
import os
import re
import shlex
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from gft_edge.benchmarks.trtexec.program import PLACES
from gft_edge.budget import TokenBudget
from gft_edge.bundle import load_bundle
from gft_edge.cli.main import main, verb_module
from gft_edge.cli.parsing import verb_parser
from gft_edge.errors import CheckFailed, ConfigError
from gft_edge.export.deploy import jetson
from gft_edge.export.deploy.bundling import make_bundle
from gft_edge.export.deploy.options import BundleOptions
from gft_edge.export.onnx.options import GraphOptions
from gft_edge.export.tensorrt import build as building
from gft_edge.export.tensorrt.build_plan import BuildPlan
from gft_edge.export.tensorrt.registration import read_plan, register_engine
from gft_edge.hardware.devices import device
from gft_edge.manifest import GOLDEN, MANIFEST, load_artifact
from gft_edge.runtime.backends.engine_files import EngineHost, check_engine
from gft_edge.storage.seals import write_sealed

TRTEXEC = """#!/bin/sh
echo "&&&& RUNNING TensorRT.trtexec [TensorRT v$SAYS] # $0 $*"
[ "$1" = --help ] && exit 0
printf '%s\\n' "$@" >>"$RECORD/trtexec"
for word in "$@"; do
    case $word in --saveEngine=*) printf 'ftrt engine' >"${word#*=}" ;; esac
done
[ -z "$FAILS" ] || { echo "[06/12/2026-09:10:11] [E] $FAILS"; exit 1; }
"""
NVPMODEL = "#!/bin/sh\nprintf 'NV Power Mode: MAXN_SUPER\\n2\\n'\n"
GFT_EDGE = """#!/bin/sh
printf '%s\\n' "$*" >>"$RECORD/gft-edge"
[ "$1" != build ] || cp "$4" artifact/engines/
"""

# Options of trtexec by generation, from the option tables of each tag of NVIDIA/TensorRT.
IN_ALL = set(
    re.findall(
        r"\w+",
        "onnx saveEngine loadEngine shapes minShapes optShapes maxShapes memPoolSize timingCacheFile builderOptimizationLevel "
        "hardwareCompatibilityLevel versionCompatible profilingVerbosity useDLACore allowGPUFallback skipInference noTF32 "
        "refit maxAuxStreams",
    )
)
OPTIONS = {
    "8.6": IN_ALL | {"fp16", "int8", "calib"},
    "10.3": IN_ALL | {"fp16", "bf16", "int8", "calib", "stronglyTyped", "stripWeights"},
    "10.16": IN_ALL | {"fp16", "bf16", "int8", "calib", "stronglyTyped", "stripWeights"},
    "11.4.1": IN_ALL | {"stripWeights"},
}


@pytest.fixture(scope="module")
def small_wheel(tmp_path_factory):
    """A wheel that is none of ours but in name: bundles whose wheel is not looked at are made faster."""
    path = tmp_path_factory.mktemp("small") / "gft_edge-0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("gft_edge/__init__.py", "")
    return path


@pytest.fixture(scope="module")
def bundled(exported, exported_once, small_wheel, tmp_path_factory):
    """Makes a bundle of an artefact; not to be changed."""

    def make(board="orin-nano", tensorrt="10.3", artifact=None, **options):
        chosen = BundleOptions("jetson", board, tensorrt, wheel=small_wheel, **options)
        return make_bundle(artifact or exported("fp32-none"), tmp_path_factory.mktemp("made") / "bundle", chosen)

    return make


@pytest.fixture(scope="module")
def plain(bundled):
    return bundled()


@pytest.fixture(scope="module")
def family(exported_once):
    return exported_once("fp32", GraphOptions("compact"), (TokenBudget((12, 6), 16), TokenBudget((8, 4), 16)))


@pytest.fixture(scope="module")
def old(exported_once):
    """Of the dialect for TensorRT 8.6."""
    return exported_once("fp32", GraphOptions("compact", dialect="trt8"))


def test_the_bundle_is_whole_and_describes_itself(plain, exported):
    plain.check()
    assert set(plain.files) == {
        "README.md", "bench.sh", "build.sh", "checks.sh", "gft_edge-0-py3-none-any.whl", "labels.txt", "plan.json"
    }  # fmt: skip
    assert (plain.target, device(plain.device).name) == ("jetson", "orin-nano-8gb-super")
    assert {key: plain.facts[key] for key in ("tensorrt", "generation", "dialect", "budgets")} == {
        "tensorrt": "10.3", "generation": "10.3", "dialect": "trt10", "budgets": ["12-6"]
    }  # fmt: skip
    assert (plain.path / "labels.txt").read_text() == "ant\nbee\ncat\ndog\n"
    assert (plain.path / "artifact" / GOLDEN).read_bytes() == (exported("fp32-none").path / GOLDEN).read_bytes()
    assert isinstance(read_plan(plain.path / "plan.json"), BuildPlan)
    for name in ("build.sh", "bench.sh"):
        assert os.access(plain.path / name, os.X_OK)


def test_no_placeholder_is_left_and_the_shells_accept_the_scripts(plain):
    for name in ("README.md", "build.sh", "bench.sh", "checks.sh"):
        assert not re.search(r"@[A-Z_]+@", (plain.path / name).read_text()), name
        if name.endswith(".sh"):
            for shell in ("sh", "bash"):
                subprocess.run([shell, "-n", plain.path / name], check=True)
    assert tuple(map(str, PLACES)) == jetson.TRTEXEC_PLACES


def test_commands_of_the_page_parse_and_its_files_exist(plain):
    page = (plain.path / "README.md").read_text()
    assert "Not verified on hardware" in page
    assert "JetPack 6.1 to 6.2.2, which has TensorRT 10.3.0 and Python 3.10" in page and "cuda-python==12.6.*" in page
    lines = [line for block in page.split("```")[1::2] for line in block.splitlines() if line.startswith("gft-edge ")]
    assert len(lines) == 5
    for line in lines:
        verb, *arguments = shlex.split(line)[1:]
        verb_parser(verb, verb_module(verb)).parse_args(arguments)
    for name in re.findall(r"^\| `([^`]+)` \|", page, re.MULTILINE)[:7]:
        assert (plain.path / name).exists(), name


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"device": ""}, "target jetson needs --device, for example orin-nano"),
        ({"device": "orin-nono"}, "unknown device 'orin-nono' (did you mean 'orin-nano'?)"),
        ({"device": "h100"}, "H100 SXM is no Jetson"),
        ({"device": "xavier-nx"}, "the last for Xavier"),
        ({"device": "orin-nano", "tensorrt": "11.4.1"}, "not documented for Jetson Orin Nano"),
        ({"device": "orin-nano", "tensorrt": "8.5.2"}, "8.6 is the oldest supported; on JetPack 5 (8.5) install"),
        ({"device": "thor", "tensorrt": "10.3"}, "does not support Jetson Thor"),
        ({"device": "orin-nano", "tensorrt": "ten"}, "expected numbers with dots"),
        (
            {"device": "orin-nano", "tensorrt": "8.6"},
            "needs dialect trt8 (opset 7 to 17), this graph is of trt10 (opset 20); export it again: "
            "gft-edge export CKPT --dialect trt8 --budget 12-6 --batch 1:1:8 --out ",
        ),
        ({"device": "orin-nano", "wheel": Path("none.whl")}, "wheel none.whl: no such file"),
    ],
)
def test_what_the_board_cannot_build_is_refused_in_one_line(exported, tmp_path, options, words):
    with pytest.raises(ConfigError) as caught:
        make_bundle(exported("fp32-none"), tmp_path / "out", BundleOptions("jetson", **options))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_the_verb_makes_it_or_says_why_not(exported, small_wheel, tmp_path, capsys):
    words = ["bundle", str(exported("fp32-none").path), "--target", "jetson", "--out", str(tmp_path / "out")]
    assert main(words) == 2
    error = capsys.readouterr().err
    assert "target jetson needs --device" in error and error.count("\n") == 1
    more = ["--device", "agx-orin", "--tensorrt", "10.3", "--wheel", str(small_wheel), "--zip"]
    assert main([*words, *more]) == 0, capsys.readouterr().err
    with zipfile.ZipFile(tmp_path / "out.zip") as archive:
        (entry,) = (entry for entry in archive.infolist() if entry.filename.endswith("build.sh"))
    assert entry.external_attr >> 16 & 0o111, "it can be run after unzip"


def test_names_that_a_shell_would_interpret_are_refused(exported, family, small_wheel, tmp_path):
    """The scripts of a bundle contain names out of a manifest or graph, which a stranger may have written."""
    options = BundleOptions("jetson", "orin-nano", "10.3", wheel=small_wheel)
    plan = jetson._plan(exported("fp32-none"), options)
    for name in ("image$(id)", "image;id", "im age", "image'", "image`id`", "$HOME", "image\n"):
        shapes = {name: plan.profile["image"]}
        with pytest.raises(ConfigError, match="has characters that a shell interprets"):
            jetson._words(dataclasses.replace(plan, profile=shapes), shown=True)
    copy = load_artifact(shutil.copytree(family.path, tmp_path / "family"))
    member = dataclasses.replace(copy.manifest.family["8-4"], model="x'$(id)'.onnx")
    (copy.path / copy.manifest.family["8-4"].model).rename(copy.path / member.model)
    files = {**copy.manifest.files, member.model: copy.manifest.files[copy.manifest.family["8-4"].model]}
    manifest = dataclasses.replace(copy.manifest, family={"8-4": member}, files=files)
    write_sealed(copy.path / MANIFEST, manifest.to_json())
    with pytest.raises(ConfigError, match="has characters that a shell interprets"):
        jetson.write_files(tmp_path, load_artifact(copy.path), options)


def test_launch_files_of_isaac_ros_are_added(bundled):
    pytest.importorskip("gft_edge.export.deploy.isaac")
    made = bundled(isaac_ros=True)
    made.check()
    assert set(made.facts["isaac_ros"]) == {"12-6"}
    assert made.facts["isaac_ros"]["12-6"] in made.files


@pytest.mark.parametrize(
    ("precision", "tensorrt", "words"),
    [
        ("fp8", "10.3", "FP8 needs compute capability 8.9 or newer, this is 8.7; use INT8"),
        ("fp8", "8.6", "TensorRT 8.6 has no FP8 networks"),
        ("bf16", "8.6", "TensorRT 8.6 has no BF16 networks; they need 10.x"),
        ("bf16", "10.3", None),
    ],
)
def test_types_that_the_board_lacks_are_refused(exported, old, monkeypatch, precision, tensorrt, words):
    """The figures of the graph are changed before it is planned: an export for each type would take seconds."""
    real = building.summary_of
    typed = {"precision": precision, "rest": "bf16" if precision == "bf16" else "fp32"}
    monkeypatch.setattr(building, "summary_of", lambda graph: dataclasses.replace(real(graph), **typed))
    artifact = old if tensorrt == "8.6" else exported("fp32-none")
    if words is None:  # Orin computes BF16
        jetson.check(artifact, BundleOptions("jetson", "orin-nano", tensorrt))
        return
    with pytest.raises(ConfigError) as caught:
        jetson.check(artifact, BundleOptions("jetson", "orin-nano", tensorrt))
    assert words in str(caught.value)
    if tensorrt == "10.3":
        jetson.check(artifact, BundleOptions("jetson", "thor"))


def test_what_lint_calls_an_error_is_refused(exported, monkeypatch):
    real = jetson.plan_build

    def broken(*arguments):
        planned = real(*arguments)
        finding = planned.report.findings[0].__class__("GE000", "error", "node", "is wrong")
        monkeypatch.setattr(type(planned.report), "errors", property(lambda self: (finding,)))
        return planned

    monkeypatch.setattr(jetson, "plan_build", broken)
    with pytest.raises(CheckFailed, match="GE000 node: is wrong; all reasons: gft-edge lint .* --target orin-nano"):
        jetson.check(exported("fp32-none"), BundleOptions("jetson", "orin-nano", "10.3"))


@pytest.mark.parametrize("tensorrt", OPTIONS)
def test_flags_are_options_of_that_trtexec(exported, old, tensorrt):
    board = "agx-orin" if tensorrt == "11.4.1" else "orin-nano"
    artifact = old if tensorrt == "8.6" else exported("fp32-none")
    words = jetson._words(jetson._plan(artifact, BundleOptions("jetson", board, tensorrt)))
    names = {word.partition("=")[0].removeprefix("--") for word in words[1:]}
    assert names <= OPTIONS[tensorrt]
    assert {"onnx", "saveEngine", "skipInference", "timingCacheFile", "memPoolSize"} <= names
    assert ("fp16" in names) == (tensorrt == "8.6"), "its FP16 is a flag; later ones take it from the graph"
    assert ("stronglyTyped" in names) == tensorrt.startswith("10")
    (pool,) = (word for word in words if word.startswith("--memPoolSize"))
    assert re.fullmatch(r"--memPoolSize=workspace:\d+", pool), "8.6 takes plain MiB"


class TestScripts:
    @pytest.fixture
    def board(self, plain, plant, tmp_path):
        """Runs a script of a copy of the bundle on a recorded board; returns exit code, stderr, and what was recorded."""
        programs, record, here = tmp_path / "bin", tmp_path / "record", tmp_path / "BUNDLE"
        for folder in (programs, record):
            folder.mkdir()
        for name, text in (("trtexec", TRTEXEC), ("nvpmodel", NVPMODEL), ("gft-edge", GFT_EDGE)):
            (programs / name).write_text(text)
            (programs / name).chmod(0o755)

        def run(script, name="orin-nano-super", bundle=plain, without=(), words=(), **more):
            if not here.exists():
                shutil.copytree(bundle.path, here)
            for program in without:
                (programs / program).unlink()
            root = plant(name) if name else tmp_path / "pc"
            system = f"{programs}:/usr/bin:/bin"
            variables = {
                "PATH": system,
                "RECORD": str(record),
                "BOARD_ROOT": str(root),
                "SAYS": "100300",
                "FAILS": "",
                **more,
            }
            done = subprocess.run(
                [here / script, *words], env=variables, cwd=tmp_path, capture_output=True, text=True, check=False
            )
            recorded = {path.name: path.read_text().splitlines() for path in record.iterdir()}
            return done.returncode, done.stderr, recorded, here

        return run

    def test_build_runs_the_plan_and_registers_what_trtexec_wrote(self, board, plain, plant):
        code, said, recorded, here = board("build.sh")
        assert code == 0, said
        key = "trt10.3.0_sm87_orin-nano-8gb-super_fp32_b1-1-8"
        plan = read_plan(here / "plan.json")
        expected = shlex.split(plan.command("artifact/model.onnx", f"artifact/caches/{key}.engine"))[1:]
        cache = f"artifact/caches/{plan.timing_cache.removesuffix('.cache')}_mode2.cache"
        assert recorded["trtexec"] == [
            f"--timingCacheFile={cache}" if word.startswith("--timing") else word for word in expected
        ]
        assert recorded["gft-edge"] == [
            f"build artifact --engine artifact/caches/{key}.engine --plan-file plan.json --tensorrt 10.3.0"
        ]
        assert "power mode: MAXN_SUPER (mode 2)" in said and "free between 306000000 and 1020000000" in said
        verb_parser("build", verb_module("build")).parse_args(shlex.split(recorded["gft-edge"][0])[1:])
        assert not list(here.glob("artifact/caches/*")), "what was entered is not kept twice"
        engine = here / f"artifact/engines/{key}.engine"
        record = register_engine(load_artifact(here / "artifact"), engine, plan, "10.3.0", plant("orin-nano-super"))
        assert record["key"] == key == Path(shlex.split(recorded["gft-edge"][0])[3]).stem, (
            "the script and the registration name the engine alike"
        )
        host = EngineHost("tensorrt", "10.3.0", "8.7", "orin-nano-8gb")
        assert check_engine(load_artifact(here / "artifact"), key, host)[0].read_bytes() == engine.read_bytes()
        load_bundle(here).check()

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            (
                {"name": "agx-orin-64gb"},
                "this is NVIDIA Jetson AGX Orin Developer Kit, and the bundle is for Jetson Orin Nano",
            ),
            ({"name": None}, "so this is no Jetson"),
            ({"SAYS": "100700"}, "this board has TensorRT 10.7.0, and the bundle is planned for 10.3 (JetPack 6.1 to"),
            ({"SAYS": "8602"}, "this board has TensorRT 8.6.2"),
            (
                {"SAYS": "110401"},
                "gft-edge bundle ARTIFACT --target jetson --device orin-nano-8gb-super --tensorrt 11.4.1",
            ),
            ({"SAYS": "x"}, "the version of"),
            ({"without": ["trtexec"]}, "sudo apt install libnvinfer-bin"),
            ({"without": ["gft-edge"]}, "gft-edge is not on PATH"),
            ({"FAILS": "Error Code 10: no memory"}, "[E] Error Code 10: no memory"),
        ],
    )
    def test_build_stops_with_what_to_do(self, board, changes, words):
        code, said, _, here = board("build.sh", **changes)
        assert (code, words in said) == (2, True), said
        assert not list(here.glob("artifact/engines/*"))

    def test_power_mode_comes_from_nvpmodel_a_file_or_the_user(self, board):
        assert "power mode: mode 2" in board("build.sh", without=["nvpmodel"])[1]
        code, said, recorded, _ = board("build.sh", POWER_MODE="7")
        assert code == 0 and any(word.endswith("_mode7.cache") for word in recorded["trtexec"])
        code, said, *_ = board("build.sh", POWER_MODE="MAXN")
        assert (code, "the power mode is unknown" in said) == (2, True)

    def test_each_budget_of_a_family_is_built(self, board, bundled, family):
        code, said, recorded, here = board("build.sh", bundle=bundled(artifact=family))
        assert code == 0, said
        graphs = [word for word in recorded["trtexec"] if word.startswith("--onnx")]
        assert len(graphs) == 2 and all((here / graph.partition("=")[2]).is_file() for graph in graphs)
        assert [shlex.split(line)[1] for line in recorded["gft-edge"]] == ["artifact", "artifact@8-4"]
        engine = here / "artifact/engines" / Path(shlex.split(recorded["gft-edge"][1])[3]).name
        plan, member = read_plan(here / "plan.json"), load_artifact(here / "artifact@8-4")
        root = Path(here.parent)  # the recorded board was planted there
        assert register_engine(member, engine, plan, "10.3.0", root)["key"] == engine.stem

    @pytest.mark.parametrize(
        ("locked", "words", "code", "lock"),
        [(False, [], 2, None), (False, ["--unlocked"], 0, False), (True, [], 0, False), (False, ["root"], 0, True)],
    )
    def test_bench_asks_for_locked_clocks(self, board, tmp_path, locked, words, code, lock):
        asked = [word for word in words if word != "root"]
        (tmp_path / "bin/id").write_text(f"#!/bin/sh\necho {0 if 'root' in words else 1000}\n")
        (tmp_path / "bin/id").chmod(0o755)
        if locked:
            shown = "GPU MinFreq=1020000000 MaxFreq=1020000000 CurrentFreq=1020000000"
            (tmp_path / "bin/jetson_clocks").write_text(f"#!/bin/sh\necho '{shown}'\n")
            (tmp_path / "bin/jetson_clocks").chmod(0o755)
        assert board("build.sh")[0] == 0
        found, said, recorded, _ = board("bench.sh", words=asked)
        assert found == code, said
        runs = [shlex.split(line) for line in recorded["gft-edge"] if line.startswith("bench ")]
        if lock is None:
            assert "free between 306000000 and 1020000000 Hz; run 'sudo jetson_clocks' first" in said and not runs
            return
        assert [("--trtexec-engine" in run, "--lock-clocks" in run) for run in runs] == [(True, lock), (False, lock)]
        for verb, *arguments in runs:
            verb_parser(verb, verb_module(verb)).parse_args(arguments)
        assert ("warning" in said) == ("--unlocked" in words)

    def test_bench_runs_the_trtexec_of_the_environment(self, board, tmp_path):
        assert board("build.sh")[0] == 0
        code, said, recorded, _ = board("bench.sh", words=["--unlocked"], TRTEXEC=str(tmp_path / "bin/trtexec"))
        assert code == 0, said
        runs = [shlex.split(line) for line in recorded["gft-edge"] if line.startswith("bench ")]
        found = [verb_parser(verb, verb_module(verb)).parse_args(arguments) for verb, *arguments in runs]
        assert [str(args.trtexec) for args in found if args.trtexec_engine] == [str(tmp_path / "bin/trtexec")]

    @pytest.mark.parametrize(("code", "ends"), [("3", 0), ("1", 1)])
    def test_bench_goes_on_without_bindings_and_stops_on_failures(self, board, tmp_path, code, ends):
        assert board("build.sh")[0] == 0
        text = f'#!/bin/sh\necho "$*" >>"$RECORD/gft-edge"\ncase $* in *tensorrt:*) exit {code} ;; esac\n'
        (tmp_path / "bin/gft-edge").write_text(text)
        found, said, *_ = board("bench.sh", words=["--unlocked"])
        assert (found, "measured with trtexec alone" in said) == (ends, code == "3"), said

    def test_bench_without_engines_or_with_another_argument_stops(self, board):
        code, said, *_ = board("bench.sh", words=["--unlocked"])
        assert (code, "no engine for artifact in artifact/engines; run ./build.sh first" in said) == (2, True)
        assert "unknown argument --fast" in board("bench.sh", words=["--fast"])[1]


def test_the_bundle_runs_where_only_numpy_and_onnxruntime_are(exported, link_distributions, tmp_path):
    bundle = make_bundle(exported("fp32-none"), tmp_path / "BUNDLE", BundleOptions("jetson", "orin-nano", "10.3"))
    venv.create(tmp_path / "gft", with_pip=False)
    python = tmp_path / "gft/bin/python"
    site = next((tmp_path / "gft/lib").glob("python*/site-packages"))
    link_distributions(["numpy", "onnxruntime", "protobuf", "flatbuffers", "packaging"], site)
    wheel = bundle.path / bundle.facts["wheel"]
    options = ["install", "--quiet", "--no-deps", "--no-index", "--no-compile"]
    command = [sys.executable, "-m", "pip", "--python", python, *options, wheel]
    subprocess.run(command, check=True, capture_output=True)
    words = shlex.split(jetson.SELFTEST)
    variables = {"PATH": str(tmp_path / "gft/bin"), "HOME": str(tmp_path)}
    done = subprocess.run(
        [tmp_path / "gft/bin" / words[0], *words[1:]], env=variables, cwd=bundle.path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "pass" in done.stdout
    load_bundle(bundle.path).check()
