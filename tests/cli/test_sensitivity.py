"""sensitivity and the policy it chooses, as a user would run them."""

from __future__ import annotations

import json
import shutil

import pytest

from gft_edge.calibration.ranges import read_ranges
from gft_edge.checkpoint import load_checkpoint
from gft_edge.files import sha256
from gft_edge.quant.policy import read_policy

SMALL = ["--images", 16, "--eval-images", 16]


@pytest.fixture(scope="module")
def chosen(gft_edge, small_builtin, tmp_path_factory):
    """A run on trained weights: which layers save time on a device is arithmetic, so nothing here depends on clocks."""
    out = tmp_path_factory.mktemp("run") / "sensitivity"
    done = gft_edge("sensitivity", small_builtin, *SMALL, "--min-sqnr", 36, "--target", "orin-nano-4gb", "--out", out)
    assert done.code == 0, done.err
    return out, done


def test_what_is_written(chosen, small_builtin):
    out, _ = chosen
    names = ["card.json", "convergence.svg", "policy.json", "ranges.json"]
    assert sorted(p.name for p in out.iterdir()) == [
        *names,
        "sensitivity.html",
        "sensitivity.json",
        "sensitivity.svg",
    ]
    data = json.loads((out / "sensitivity.json").read_text())
    assert (data["schema"], data["budget"], len(data["layers"])) == (1, "36-18-18", 24)
    assert data["checkpoint"] == load_checkpoint(small_builtin).sha256
    assert data["ranges"]["sha256"] == sha256(out / "ranges.json")
    assert data["ranges"]["calibration_set"] == json.loads((out / "card.json").read_text())["id"]
    assert (data["evaluation"]["images"], data["evaluation"]["split"]) == (16, "val")
    assert data["times"]["kind"] == "bound"
    assert all({"only", "all_but", "high_ms", "int8_ms"} <= row.keys() for row in data["layers"])
    assert (out / "sensitivity.svg").read_text().startswith("<svg")
    page = (out / "sensitivity.html").read_text()
    for text in ("blocks.0.attn.qkv", "Mixed precision", "logit SQNR of at least 36 dB", "Jetson Orin Nano 4GB"):
        assert text in page


def test_what_is_said(chosen):
    out, done = chosen
    assert done.out.startswith(
        f"{out}: 24 layers on 16 val images\n16 train images of scenes, balanced, seed 0, chosen from 64 candidates"
    )
    assert "0 of them among the 16 val images of scenes" in done.out
    assert "time of layers alone: roofline of Jetson Orin Nano 4GB, a bound" in done.out
    assert "blocks.0.attn.qkv   145 x 128 x 384" in done.out
    assert "mixed precision, logit SQNR of at least 36 dB" in done.out
    assert f"--ranges {out}/ranges.json --policy {out}/policy.json" in done.out
    assert "layers in INT8" in done.err


def test_the_policy_is_what_was_run(chosen, gft_edge, small_builtin, tmp_path):
    out, _ = chosen
    search = json.loads((out / "sensitivity.json").read_text())["search"]
    best = search["tries"][search["best"]]
    policy = read_policy(out / "policy.json")
    assert 0 < len(best["int8"]) < 24
    assert best["observed"]["sqnr_db"] >= 36 > search["tries"][0]["observed"]["sqnr_db"]
    done = gft_edge(
        "quantize", small_builtin, "--images", 16, "--ranges", out / "ranges.json", "--policy", out / "policy.json",
        "--out", tmp_path / "mixed", "--json",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert set(done.json["ranges"]) == set(best["int8"])
    assert all(policy.precision_of(name) == "int8" for name in best["int8"])
    assert "dB alone" in policy.rule_for(best["int8"][0]).reason
    row = gft_edge("evaluate", tmp_path / "mixed", "--split", "val", "--images", 16, "--json").json["results"][-1]
    assert row["top1"] == best["observed"]["top1"]
    done = gft_edge("export", tmp_path / "mixed", "--out", tmp_path / "artefact")
    assert done.code == 0, done.err
    done = gft_edge("verify", tmp_path / "artefact")
    assert done.code == 0, done.out + done.err
    row = gft_edge("evaluate", tmp_path / "artefact", "--split", "val", "--images", 16, "--json").json["results"][0]
    assert row["top1"] == best["observed"]["top1"]
    shutil.copytree(out, tmp_path / "sensitivity")
    done = gft_edge("report", tmp_path)
    assert done.code == 0, done.err
    assert "Sensitivity of each layer to INT8" in (tmp_path / "report.html").read_text()


def test_the_same_input_gives_the_same_files(gft_edge, tiny_checkpoint, animals, tmp_path):
    command = ["sensitivity", tiny_checkpoint, "--data", animals, "--images", 8, "--eval-images", 24, "--force"]
    command += ["--target", "t4"]
    hashes = []
    for name in ("a", "b"):
        done = gft_edge(*command, "--out", tmp_path / name)
        assert done.code == 0, done.err
        hashes.append({p.name: sha256(p) for p in (tmp_path / name).iterdir()})
    assert hashes[0] == hashes[1]


def test_measured_times_and_known_ranges(gft_edge, tiny_checkpoint, animals, tmp_path):
    data = ["--data", animals, "--images", 24]
    assert gft_edge("calibrate", tiny_checkpoint, *data, "--out", tmp_path / "ranges").code == 0
    (tmp_path / "few.toml").write_text('[[rules]]\npattern = "blocks.0.*"\nprecision = "int8"\nreason = "test"\n')
    command = ["sensitivity", tiny_checkpoint, "--data", animals, "--policy", tmp_path / "few.toml"]
    command += ["--ranges", tmp_path / "ranges/ranges.json", "--out", tmp_path / "out", "--json"]
    refused = gft_edge(*command, "--eval-split", "train")
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert "24 calibration images are also among the 24 train images of" in refused.err
    assert not (tmp_path / "out").exists()
    (tmp_path / "ranges/card.json").unlink()
    done = gft_edge(*command)
    assert done.code == 0, done.err
    assert [row["name"].partition(".mlp")[0] for row in done.json["layers"]][-1] == "blocks.0"
    assert (done.json["times"]["kind"], done.json["search"]) == ("measured", None)
    assert done.json["times"]["machine"]["versions"]["onnxruntime"]
    assert read_ranges(tmp_path / "out/ranges.json") == read_ranges(tmp_path / "ranges/ranges.json")
    assert not (tmp_path / "out/policy.json").exists()


def test_a_limit_that_cannot_be_met_keeps_what_was_measured(
    gft_edge, tiny_checkpoint, small_builtin, animals, tmp_path
):
    command = ["sensitivity", tiny_checkpoint, "--data", animals, "--images", 8, "--eval-images", 8, "--force"]
    done = gft_edge(*command, "--target", "orin-nano", "--min-sqnr", 20, "--out", tmp_path / "slow")
    assert done.code == 1
    assert "no layer is faster in INT8 here, so there is nothing to choose" in done.err
    (tmp_path / "one.toml").write_text('[[rules]]\npattern = "blocks.0.mlp.fc1"\nprecision = "int8"\nreason = "x"\n')
    done = gft_edge(
        "sensitivity", small_builtin, *SMALL, "--policy", tmp_path / "one.toml", "--target", "orin-nano-4gb",
        "--min-sqnr", 190, "--out", tmp_path / "out",
    )  # fmt: skip
    assert (done.code, done.err.count("\n")) == (1, 1)
    assert "no layer that saves time is within the limit (logit SQNR of at least 190 dB)" in done.err
    assert "the least harmful, blocks.0.mlp.fc1, alone has " in done.err
    assert "blocks.0.mlp.fc1  145 x 128 x 512" in done.out
    assert json.loads((tmp_path / "out/sensitivity.json").read_text())["search"]["best"] is None
    assert not (tmp_path / "out/policy.json").exists()
    assert "there is no policy" in (tmp_path / "out/sensitivity.html").read_text()


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["{ckpt}", "--target", "orin-nanno"], "unknown device 'orin-nanno' (did you mean 'orin-nano'?)"),
        (["{ckpt}", "--target", "xavier-nx"], "no FP16 peak of Jetson Xavier NX is known"),
        (["{ckpt}", "--max-loss", "-1"], "--max-loss must be points of top-1 from 0 to below 100, found -1"),
        (["{ckpt}", "--max-loss", "nan"], "--max-loss must be points"),
        (["{ckpt}", "--min-sqnr", "0"], "--min-sqnr must be above 0 and at most 200 dB"),
        (["{ckpt}", "--threads", "-1"], "threads must be 0 (one per core) or more"),
        (["{ckpt8}"], "is quantized already; give the full-precision one"),
        (["{tmp}/none"], "no such folder"),
        (["{ckpt}", "--images", "25"], "24 images, 25 asked for"),
        (["{ckpt}", "--eval-split", "train"], "calibration images are also among the 24 train images"),
        (["{ckpt}", "--eval-data", "{tmp}/none"], "no such folder"),
        (["{ckpt}", "--eval-data", "typefaces"], "are not the model's 4"),
        (["{ckpt}", "--eval-data", "{tmp}/broken"], "zz.png: cannot be decoded as an image"),
        (["{ckpt}", "--ranges", "{tmp}/none.json"], "no such file"),
        (["{small}", "--data", "scenes", "--ranges", "{ckpt8}/calibration/ranges.json"], "were found on the model"),
        (["{ckpt}", "--policy", "{tmp}/fp8.toml"], "compares INT8 with full precision only; remove '*' in fp8"),
        (["{ckpt}", "--policy", "{tmp}/smooth.toml"], "remove SmoothQuant from the policy"),
        (["{ckpt}", "--policy", "{tmp}/nothing.toml"], "no linear layer or convolution of this model matches"),
        (["{ckpt}", "--eval-images", "0"], "must be at least 1"),
        (["{ckpt}", "--eval-split", "all"], "invalid choice: 'all'"),
    ],
)
def test_mistakes_are_named(gft_edge, tiny_checkpoint, small_builtin, quantized, animals, tmp_path, command, message):
    (tmp_path / "fp8.toml").write_text('[[rules]]\npattern = "*"\nprecision = "fp8"\nreason = "x"\n')
    (tmp_path / "smooth.toml").write_text(
        'smoothquant = 0.5\n[[rules]]\npattern = "*"\nprecision = "int8"\nreason = "x"\n'
    )
    (tmp_path / "nothing.toml").write_text('[[rules]]\npattern = "nothing"\nprecision = "int8"\nreason = "x"\n')
    for label in ("ant", "bee", "cat", "dog"):
        (tmp_path / "broken/val" / label).mkdir(parents=True)
        (tmp_path / "broken/val" / label / "zz.png").write_bytes(b"\x89PNG\r\n")
    places = {"tmp": tmp_path, "ckpt": tiny_checkpoint, "small": small_builtin, "ckpt8": quantized}
    parts = [part.format(**places) for part in command]
    few = ["--force"] if "broken" in command[-1] or "xavier-nx" in command else []
    done = gft_edge("sensitivity", "--data", animals, "--images", 8, *few, *parts, "--out", tmp_path / "out")
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
    assert message in done.err
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".out*"))
