"""A damaged image among those that calibrate, quantize and verify take: left out, named, recorded, replaced."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from gft_edge.calibration.images import CalibrationSet, hash_images
from gft_edge.data.datasets import Files, image_folder
from gft_edge.data.sets import spread
from gft_edge.manifest import load_artifact
from gft_edge.storage.seals import read_sealed

COUNT = 16


@pytest.fixture(scope="module")
def parted(animals, tmp_path_factory) -> Path:
    """The animals in folders of their parts, so that damage moves no image to another part."""
    root = tmp_path_factory.mktemp("parted") / "animals"
    for split in ("train", "val", "test"):
        files = image_folder(animals, split)
        for path, label in files.samples:
            target = root / split / files.labels[label] / path.name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
    return root


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:200])


def _card(path: Path) -> CalibrationSet:
    return CalibrationSet.from_json(read_sealed(path, "card", ""))


def _file_of(root: Path, digest: str) -> Path:
    return next(path for path in sorted(root.rglob("*.png")) if hash_images(Files(("",), ((path, 0),)))[1] == (digest,))


@pytest.fixture(scope="module")
def calibrated(gft_edge, made, parted, tmp_path_factory):
    """A calibration without damage, then the same data with its third calibration image truncated: data and damaged file."""
    out = tmp_path_factory.mktemp("whole")
    done = gft_edge("calibrate", made["ckpt"], "--data", parted, "--images", COUNT, "--out", out / "ranges")
    assert (done.code, "left out" in done.err) == (0, False)
    whole = _card(out / "ranges/card.json")
    assert whole.unreadable == ()
    data = Path(shutil.copytree(parted, out / "animals"))
    bad = _file_of(data / "train", whole.hashes[2])
    _truncate(bad)
    return data, bad, whole


def _require_replaced(card: CalibrationSet, data: Path, bad: Path, whole: CalibrationSet) -> None:
    assert len(card.hashes) == COUNT
    assert [card.hashes[i] == whole.hashes[i] for i in range(COUNT)] == [i != 2 for i in range(COUNT)]
    assert _file_of(data / "train", card.hashes[2]).parent == bad.parent, "the next image is one of the same class"
    assert (card.unreadable, card.class_counts) == ((bad.relative_to(data).as_posix(),), whole.class_counts)


def _require_named(done, bad: Path) -> None:
    assert done.code == 0, done.err
    lines = [line for line in done.err.splitlines() if line.startswith("left out: ")]
    assert len(lines) == 1 and lines[0].startswith(f"left out: image {bad}: cannot be decoded")


def test_calibrate(gft_edge, made, calibrated, tmp_path):
    data, bad, _ = calibrated
    cards = []
    for name in ("a", "b"):
        done = gft_edge("calibrate", made["ckpt"], "--data", data, "--images", COUNT, "--out", tmp_path / name)
        _require_named(done, bad)
        cards.append(_card(tmp_path / name / "card.json"))
        _require_replaced(cards[-1], *calibrated)
    assert f"left out, cannot be read: train/{bad.parent.name}/{bad.name}" in done.out
    assert (tmp_path / "a/ranges.json").read_bytes() == (tmp_path / "b/ranges.json").read_bytes()
    assert cards[0].id == cards[1].id


def test_calibrate_an_artefact_by_coverage(gft_edge, copied, calibrated, tmp_path):
    data, bad, _ = calibrated
    command = ["calibrate", copied("fp32"), "--data", data, "--images", 23, "--choose", "coverage"]
    _require_named(gft_edge(*command, "--out", tmp_path / "out"), bad)
    card = _card(tmp_path / "out/card.json")
    assert (len(card.hashes), card.pool, card.unreadable) == (23, 24, (bad.relative_to(data).as_posix(),))


def test_quantize(gft_edge, made, calibrated, tmp_path):
    data, bad, _ = calibrated
    done = gft_edge("quantize", made["ckpt"], "--data", data, "--images", COUNT, "--out", tmp_path / "int8", "--json")
    _require_named(done, bad)
    card = _card(tmp_path / "int8/calibration/card.json")
    _require_replaced(card, *calibrated)
    assert done.json["calibration_set"] == card.id


@pytest.mark.usefixtures("one_export_each")
def test_verify(gft_edge, copied, made, parted, tmp_path):
    data = Path(shutil.copytree(parted, tmp_path / "animals"))
    files = [path for path, _ in image_folder(data, "test").samples]
    wanted = spread(len(files), COUNT)
    bad = files[wanted[5]]
    spare = next(i for i in range(wanted[5], len(files)) if i not in wanted and files[i].parent == bad.parent)
    _truncate(bad)
    artifact = copied("fp32")
    command = ["verify", artifact, "--checkpoint", made["ckpt"], "--data", data, "--images", COUNT, "--json"]
    done = gft_edge(*command)
    _require_named(done, bad)
    report = done.json
    assert report["source"] == f"{COUNT} test images of {data}, 1 unreadable left out"
    assert report["unreadable"] == [bad.relative_to(data).as_posix()]
    assert {c["images"] for c in report["comparisons"]} == {COUNT}
    written = load_artifact(artifact).file("reports/verify.json").read_bytes()
    assert json.loads(written) == report
    assert gft_edge(*command).json == report
    assert load_artifact(artifact).file("reports/verify.json").read_bytes() == written

    shutil.copytree(artifact, tmp_path / "run/fp32")
    assert gft_edge("report", tmp_path / "run").code == 0
    text = (tmp_path / "run/report.html").read_text()
    assert f"unreadable images left out (1): <code>test/{bad.parent.name}/{bad.name}</code>" in text

    # The images are those of a folder in which the next image stands in the place of the damaged one.
    other = tmp_path / "other/test"
    for number, index in enumerate(spare if index == wanted[5] else index for index in wanted):
        target = other / files[index].parent.name / f"{number:02d}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(files[index], target)
    (same,) = gft_edge(*command[:5], other.parent, *command[6:]).json["comparisons"]
    (found,) = report["comparisons"]
    assert {**same, "top1": 0} == {**found, "top1": 0}


@pytest.mark.parametrize("verb", ["calibrate", "quantize", "verify"])
def test_more_than_a_tenth_ends_the_verb(gft_edge, made, parted, tmp_path, verb):
    data = Path(shutil.copytree(parted, tmp_path / "animals"))
    for split in ("train", "test"):
        for path in sorted((data / split).rglob("*.png"))[:3]:
            _truncate(path)
    of = [made["fp32"], "--checkpoint", made["ckpt"]] if verb == "verify" else [made["ckpt"], "--out", tmp_path / "out"]
    done = gft_edge(verb, *of, "--data", data, "--images", 24)
    assert done.code == 2
    assert done.err.splitlines()[-1].startswith(
        f"gft-edge {verb}: data {data}: 3 of 24 images cannot be read, more than a tenth"
    )
    assert not [line for line in done.err.splitlines() if line.startswith("left out: ")], "the error has the first"
    assert not (tmp_path / "out").exists()
