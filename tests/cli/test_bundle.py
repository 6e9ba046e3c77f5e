"""Verbs bundle and selftest as users run them, with a target that writes one file; and other verbs that are given a bundle."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gft_edge.bundle import ARTIFACT, RECORD, SIGNATURE, load_bundle
from gft_edge.bundle import TARGETS as bundle_targets
from gft_edge.cli.main import verb_module
from gft_edge.cli.parsing import verb_parser
from gft_edge.export.deploy import bundling
from gft_edge.manifest import GOLDEN, load_artifact, register_files
from gft_edge.stats.verdict import DEFAULT_LIMITS
from gft_edge.storage.unpack import FREE_BYTES, MAX_BYTES, MAX_ENTRIES, MAX_RATIO

TARGETS = dict(bundling.WRITERS)


@pytest.fixture
def source(tiny_artifact, tmp_path) -> Path:
    """An artefact with an engine, a cache and a report, which stay behind."""
    folder = tmp_path / "source"
    shutil.copytree(tiny_artifact, folder, ignore=shutil.ignore_patterns("reports"))
    names = ["engines/x.engine", "caches/x.cache", "reports/verify.json"]
    for name in names:
        (folder / name).parent.mkdir()
        (folder / name).write_text("of another machine")
    register_files(load_artifact(folder), names)
    return folder


@pytest.fixture(autouse=True)
def target(monkeypatch):
    """A target module: every target writes a script and one fact."""

    def write_files(folder, artifact, options):
        (folder / "run.sh").write_text(f"#!/bin/sh\necho {artifact.manifest.budget.id}\n")
        (folder / "run.sh").chmod(0o755)
        return {"secondary": options.secondary}

    stub = types.ModuleType("stub_target")
    stub.check = lambda artifact, options: None
    stub.write_files = write_files
    monkeypatch.setitem(sys.modules, "stub_target", stub)
    monkeypatch.setattr(bundling, "WRITERS", dict.fromkeys(bundling.WRITERS, "stub_target"))


def test_help_names_every_target():
    (action,) = (a for a in verb_parser("bundle", verb_module("bundle"))._actions if a.dest == "target")
    assert tuple(action.choices) == bundle_targets == tuple(TARGETS)


@pytest.mark.parametrize("inside", [".", ARTIFACT])
def test_report_leaves_a_bundle_as_it_is(gft_edge, source, tmp_path, inside):
    assert gft_edge("bundle", source, "--target", "deepstream", "--secondary", "--out", tmp_path / "b").code == 0
    done = gft_edge("report", tmp_path / "b" / inside)
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
    assert "is a bundle, which would not pass" in done.err
    load_bundle(tmp_path / "b").check()


def test_bundle_leaves_out_what_belongs_to_another_machine(gft_edge, source, tmp_path):
    done = gft_edge("bundle", source, "--target", "deepstream", "--secondary", "--out", tmp_path / "b", "--json")
    assert (done.code, done.err) == (0, "")
    assert done.json["facts"] == {"secondary": True} and list(done.json["files"]) == ["run.sh"]
    artifact = load_bundle(tmp_path / "b").check()
    assert not any(name.startswith(("engines/", "caches/", "reports/")) for name in artifact.manifest.files)
    assert not any((artifact.path / name).exists() for name in ("engines", "caches", "reports"))
    assert done.json["artifact_id"] == load_bundle(tmp_path / "b").artifact_id
    again = gft_edge("bundle", tmp_path / "b", "--target", "triton", "--out", tmp_path / "c", "--json")
    assert (
        again.json["artifact_id"] == done.json["artifact_id"]
    )  # a bundle's artefact can be bundled for another target


def test_zip_has_the_same_bytes_and_is_tested_without_unpacking(gft_edge, source, tmp_path):
    for name in ("1", "2"):
        done = gft_edge(
            "bundle", source, "--target", "jetson", "--device", "orin-nano", "--out", tmp_path / name, "--zip"
        )
        assert (done.code, done.err) == (0, "")
        assert (
            f"{name}: bundle for jetson on orin-nano-8gb-super, artefact " in done.out and f"{name}.zip: " in done.out
        )
        assert "note: TensorRT 10.16 is assumed" in done.out and "--tensorrt 10.3" in done.out
    assert (tmp_path / "1.zip").read_bytes() == (tmp_path / "2.zip").read_bytes()
    done = gft_edge("selftest", tmp_path / "1.zip")
    assert (done.code, done.err) == (0, "")
    assert "bundle for jetson on orin-nano-8gb-super" in done.out and "signature none" in done.out
    assert "passed (onnxruntime, " in done.out
    done = gft_edge("selftest", tmp_path / "1.zip", "--unpack", tmp_path / "board", "--json")
    assert (done.code, done.json["verdict"], done.json["target"]) == (0, "pass", "jetson")
    assert (tmp_path / "board/run.sh").stat().st_mode & 0o100
    done = gft_edge("bundle", source, "--target", "triton", "--out", tmp_path / "new", "--zip", "--json")
    shutil.rmtree(tmp_path / "new")
    done = gft_edge("bundle", source, "--target", "triton", "--out", tmp_path / "new", "--zip", "--json")
    assert done.code == 2 and "new.zip: exists; give another --out or remove it first" in done.err


def test_signed_bundle_is_checked_with_the_public_key(gft_edge, source, tmp_path):
    pytest.importorskip("cryptography")
    for command in (
        "genpkey -algorithm ed25519 -out key.pem",
        "pkey -in key.pem -pubout -out public.pem",
        "genpkey -algorithm ed25519 -aes256 -pass pass:x -out locked.pem",
    ):
        subprocess.run(["openssl", *command.split()], cwd=tmp_path, check=True, capture_output=True)
    out = tmp_path / "b"
    done = gft_edge("bundle", source, "--target", "triton", "--out", out, "--sign", tmp_path / "locked.pem")
    assert (done.code, out.exists()) == (2, False) and "has a passphrase; write one without" in done.err
    done = gft_edge("bundle", source, "--target", "triton", "--out", out, "--sign", tmp_path / "key.pem")
    assert done.code == 0 and f"check with gft-edge selftest {out} --key PUB.pem" in done.out
    done = gft_edge("selftest", out, "--key", tmp_path / "public.pem", "--json")
    assert (done.code, done.json["signature"]) == (0, "valid")
    (out / SIGNATURE).write_bytes(bytes(64))
    done = gft_edge("selftest", out, "--key", tmp_path / "public.pem")
    assert done.code == 2 and "bundle.sig: was not made with this key for this bundle.json" in done.err


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--target", "triton", "--secondary"], "--secondary is for --target deepstream, not for triton"),
        (["--target", "triton", "--isaac-ros"], "--isaac-ros is for --target jetson, not for triton"),
        (["--target", "deepstream", "--wheel", "x.whl"], "--wheel is for --target jetson, not for deepstream"),
        (["--target", "triton", "--device", "orin-nono"], "unknown device 'orin-nono' (did you mean 'orin-nano'?)"),
        (["--target", "triton", "--tensorrt", "ten"], "TensorRT version 'ten': expected numbers with dots"),
        (["--target", "tritan"], "argument --target: invalid choice: 'tritan'"),
        (["--target", "triton", "--sign", "none.pem"], "key none.pem: cannot be read (No such file or directory)"),
        ([], "the following arguments are required: --target"),
    ],
)
def test_wrong_flags_are_refused_in_one_line(gft_edge, source, tmp_path, flags, reason):
    done = gft_edge("bundle", source, "--out", tmp_path / "b", *flags)
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
    assert reason in done.err and not (tmp_path / "b").exists()


def test_wrong_sources_and_places_are_refused_in_one_line(gft_edge, source, tmp_path):
    for artifact, out, reason in (
        (tmp_path / "none", "b", "none: no such folder"),
        (f"{source}@12-6", "source", "not empty; give another --out"),
        (tmp_path, "b", "has no manifest.json"),
    ):
        done = gft_edge("bundle", artifact, "--target", "triton", "--out", tmp_path / out)
        assert (done.code, done.err.count("\n")) == (2, 1) and reason in done.err
    (source / "model.onnx").write_bytes(b"other")
    done = gft_edge("bundle", source, "--target", "triton", "--out", tmp_path / "b")
    assert done.code == 2 and "model.onnx was changed" in done.err and not (tmp_path / "b").exists()


def test_failed_selftest_is_exit_1_and_names_image_figure_and_limit(gft_edge, source, tmp_path):
    with np.load(source / GOLDEN) as file:
        arrays = dict(file)
    arrays["logits"][1] += np.float32(3) * arrays["logits"][1, ::-1]
    np.savez(source / GOLDEN, **arrays)
    register_files(load_artifact(source), [GOLDEN])
    done = gft_edge("selftest", source)
    assert (done.code, done.err) == (1, "")
    assert "FAILED (onnxruntime, " in done.out
    assert "budget 12-6: onnxruntime fp32 against torch fp32: logits differ by" in done.out
    assert "limit 1e-04; worst: image 1 (" in done.out
    assert gft_edge("selftest", source, "--json").json["verdict"] == "fail"


def test_selftest_of_nothing_and_by_no_backend(gft_edge, source, tmp_path):
    for arguments, reason in (
        ([tmp_path / "none"], "none: no such folder"),
        ([source, "--backend", "cuda"], "unknown backend 'cuda'"),
        ([source, "--key", "x.pem"], "is an artefact, which has no signature"),
    ):
        done = gft_edge("selftest", *arguments)
        assert (done.code, done.err.count("\n")) == (2, 1) and reason in done.err
    (tmp_path / "x.zip").write_text("no zip")
    done = gft_edge("selftest", tmp_path / "x.zip")
    assert done.code == 2 and "x.zip: is no zip, damaged or cut off" in done.err


def test_verbs_that_read_an_artefact_take_a_bundle(gft_edge, source, tmp_path, monkeypatch):
    monkeypatch.setattr(bundling, "WRITERS", TARGETS)
    bundle, image = tmp_path / "b", tmp_path / "a.png"
    assert gft_edge("bundle", source, "--target", "triton", "--out", bundle, "--zip").code == 0
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(image)
    (tmp_path / "data/test/ant").mkdir(parents=True)
    shutil.copy(image, tmp_path / "data/test/ant")
    quick = ["--power", "none", "--rounds", 2, "--runs", 1, "--warmup", 0, "--skip", "stages", "throughput", "process"]
    commands = {
        "predict": ["predict", bundle, image],
        "evaluate": ["evaluate", bundle, "--data", tmp_path / "data"],
        "lint": ["lint", bundle],
        "bench": ["bench", bundle, *quick],
        "verify": ["verify", bundle],
        "build": ["build", bundle, "--target", "orin-nano", "--plan"],
    }
    for verb, command in commands.items():
        done = gft_edge(*command, "--json")
        assert done.code == 0, (verb, done.err)
        load_bundle(bundle).check()  # a report that a verb stores keeps it valid
    assert json.loads((bundle / ARTIFACT / "reports/verify.json").read_text())["passed"]
    for verb in ("predict", "evaluate", "verify"):
        done = gft_edge(verb, f"{bundle}.zip", *commands[verb][2:])
        assert done.code == 2 and "is a zip; check and unpack it: gft-edge selftest" in done.err, done.err
    changed = next(iter(load_bundle(bundle).files))
    (bundle / changed).write_text("other")
    for command in commands.values():
        done = gft_edge(*command)
        assert (done.code, done.err.count("\n")) == (2, 1), done.err
        assert f"{changed} was changed since the bundle was made" in done.err
    (bundle / RECORD).unlink()


def test_commands_of_the_page_run(gft_edge, source, tmp_path, monkeypatch):
    """Those on signatures as they stand; the others parse."""
    pytest.importorskip("cryptography")
    page = (Path(__file__).parents[2] / "docs/bundle.md").read_text(encoding="utf-8")
    lines = [line for block in page.split("```")[1::2] for line in block.splitlines()]
    for line in lines:
        if line.startswith("gft-edge "):
            verb, *arguments = line.split()[1:]
            verb_parser(verb, verb_module(verb)).parse_args(arguments)
    monkeypatch.chdir(tmp_path)
    shutil.copytree(source, "runs/artifact")
    for line in lines[lines.index("openssl genpkey -algorithm ed25519 -out key.pem") :]:
        if line.startswith("gft-edge "):
            assert gft_edge(*line.split()[1:]).code == 0
        elif line:
            subprocess.run(line.split(), check=True, capture_output=True)


def test_figures_of_the_page_are_those_of_the_program():
    page = (Path(__file__).parents[2] / "docs/bundle.md").read_text(encoding="utf-8")
    limits = DEFAULT_LIMITS
    assert f"importance {limits.fp32_importance_sqnr_db:.0f} dB" in page and limits.fp32_relative_error == 1e-4
    assert f"logits {limits.fp16_sqnr_db:.0f} dB; kept-set Jaccard {limits.int8_jaccard:.2f}" in page
    assert (
        f"rank correlation {limits.int8_rank_correlation}; the same class on {limits.int8_top1_agreement * 100:.0f} %"
        in page
    )
    assert f"logits {limits.int8_sqnr_db:.0f} dB; the rest" in page and f"logits {limits.same_sqnr_db:.0f} dB" in page
    assert (MAX_ENTRIES, MAX_BYTES, MAX_RATIO, FREE_BYTES) == (10_000, 16 << 30, 100, 64 << 20)
