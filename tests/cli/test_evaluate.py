"""``gft-edge evaluate``: what is wrong, by class and by image, of checkpoints and artefacts alike."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gft_edge.checkpoint import load_checkpoint, save_checkpoint
from gft_edge.data.images import read_image
from gft_edge.errors import ConfigError
from gft_edge.evaluation import EvaluationOptions, evaluate
from gft_edge.manifest import load_artifact


@pytest.fixture(scope="module")
def photos(animals, tmp_path_factory):
    """Twenty-four images of ``animals``, in whatever splits they are, as one test split."""
    root = tmp_path_factory.mktemp("evaluate") / "photos"
    for path in sorted(animals.rglob("*.png"), key=lambda path: path.name)[:24]:
        (root / "test" / path.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, root / "test" / path.parent.name)
    return root


@pytest.fixture(scope="module")
def truth(photos, tiny_model, tiny_info):
    """Files, their classes, and what PyTorch says of them: classes and probabilities."""
    files = sorted(photos.rglob("*.png"))
    classes = [tiny_info.labels.index(path.parent.name) for path in files]
    with torch.no_grad():
        logits = tiny_model(torch.from_numpy(tiny_info.preprocess.batch([read_image(path) for path in files])))
    probabilities = logits.double().softmax(dim=1).numpy()
    return files, classes, logits.argmax(dim=1).tolist(), probabilities.max(axis=1)


@pytest.mark.parametrize("name", ["ckpt", "fp32"])
def test_result_agrees_with_a_count_image_by_image(gft_edge, made, photos, truth, tiny_info, tmp_path, name):
    files, classes, predicted, probabilities = truth
    more = ["--budget", "12,6"] if name == "ckpt" else []
    out = tmp_path / "e.json"
    done = gft_edge("evaluate", made[name], "--data", photos, *more, "--out", out, "--json")
    assert json.loads(out.read_text()) == done.json
    assert done.json["labels"] == list(tiny_info.labels)
    (row,) = done.json["results"]
    confusion = np.zeros((4, 4), int)
    np.add.at(confusion, (classes, predicted), 1)
    assert row["confusion"] == confusion.tolist()
    assert row["top5"] is None
    assert row["per_class"] == [
        {"label": label, "right": int(confusion[number, number]), "count": int(confusion[number].sum())}
        for number, label in enumerate(tiny_info.labels)
    ]
    wrong = [index for index in np.argsort(-probabilities, kind="stable") if classes[index] != predicted[index]]
    assert row["wrong_total"] == len(wrong) == len(row["wrong"]) > 3
    found = {entry["image"]: entry for entry in row["wrong"]}
    assert set(found) == {str(files[index]) for index in wrong}
    for index in wrong:
        entry = found[str(files[index])]
        assert (entry["truth"], entry["predicted"]) == tuple(
            tiny_info.labels[number] for number in (classes[index], predicted[index])
        )
        assert entry["probability"] == pytest.approx(probabilities[index], abs=1e-4)
        shown = np.asarray(Image.open(tmp_path / entry["picture"]))
        np.testing.assert_array_equal(shown, tiny_info.preprocess.geometry(read_image(files[index])))
    values = [entry["probability"] for entry in row["wrong"]]
    assert values == sorted(values, reverse=True)


def test_the_library_returns_what_the_verb_prints(gft_edge, made, photos):
    threads = torch.get_num_threads()
    options = EvaluationOptions(data=str(photos), budgets=("full", "12,6"), threads=1)
    notes = []
    found = evaluate(load_checkpoint(made["ckpt"]), options, notes.append)
    assert torch.get_num_threads() == threads
    assert [result.budget for result in found.results] == ["16-16", "12-6"]
    printed = gft_edge("evaluate", made["ckpt"], "--data", photos, "--budget", "full", "--budget", "12,6", "--json")
    assert {"model": str(made["ckpt"]), **found.to_json()} == printed.json
    assert printed.err.splitlines()[: len(notes)] == notes
    exported = evaluate(load_artifact(made["fp32"]), EvaluationOptions(data=str(photos)))
    assert (exported.backend, exported.results[0].budget) == ("onnxruntime", "12-6")
    with pytest.raises(ConfigError):
        evaluate(load_artifact(made["fp32"]), options)


def test_without_out_there_are_no_pictures(gft_edge, made, photos):
    done = gft_edge("evaluate", made["fp32"], "--data", photos, "--json")
    assert {entry["picture"] for entry in done.json["results"][0]["wrong"]} == {""}


def test_worst_classes_and_mistakes_in_words(gft_edge, made, photos, truth, tiny_info):
    _, classes, predicted, _ = truth
    lines = gft_edge("evaluate", made["fp32"], "--data", photos).out.splitlines()
    share = {
        label: np.mean([p == number for c, p in zip(classes, predicted) if c == number])
        for number, label in enumerate(tiny_info.labels)
    }
    start = lines.index("classes with wrong answers, the worst first")
    assert lines[start + 1].split() == ["class", "images", "right"]
    rows = [line.split() for line in lines[start + 3 :]]
    rows = rows[: rows.index([])] if [] in rows else rows
    assert {row[0]: row[2] for row in rows} == {label: f"{value:.1%}" for label, value in share.items() if value < 1}
    assert [float(row[2].rstrip("%")) for row in rows] == sorted(float(row[2].rstrip("%")) for row in rows)
    pairs = [(c, p) for c, p in zip(classes, predicted) if c != p]
    most = max(pairs.count(pair) for pair in pairs)
    start = lines.index("most frequent mistakes at 12-6")
    first = lines[start + 3].split()
    assert int(first[2]) == most
    assert pairs.count((tiny_info.labels.index(first[0]), tiny_info.labels.index(first[1]))) == most


def test_an_output_that_cannot_be_written_is_refused_before_the_work(gft_edge, made, photos, tmp_path):
    (tmp_path / "e-wrong").mkdir()
    (tmp_path / "e-wrong/mine.txt").write_text("mine")
    done = gft_edge("evaluate", made["fp32"], "--data", photos, "--out", tmp_path / "e.json")
    assert (done.code, done.out, len(done.err.splitlines())) == (2, "", 1)
    assert "holds 'mine.txt'" in done.err


def test_damaged_images_of_any_kind_are_counted(gft_edge, made, photos, tmp_path):
    data = Path(shutil.copytree(photos, tmp_path / "photos"))
    cases = Path(__file__).parents[1] / "data/images"
    for name in ("avif_bad.png", "dds_bad.png", "damaged_avif.jpg"):
        shutil.copy(cases / name, data / "test/bee")
    for model in ("ckpt", "fp32"):
        done = gft_edge("evaluate", made[model], "--data", data, "--images", 99, "--json")
        assert (done.code, done.json["unreadable_images"]) == (0, 3)
        assert done.json["images"] == len(list(photos.rglob("*.png")))
        assert sum(line.startswith("left out: image ") for line in done.err.splitlines()) == 3


def test_overflowing_checkpoint_is_an_error_and_exports_nothing(
    gft_edge, tiny_config, tiny_info, make_model, photos, tmp_path
):
    model = make_model(tiny_config)
    with torch.no_grad():
        weight = dict(model.named_parameters())["head.weight"]
        weight.copy_(weight.sign() * 3e38)  # finite, but its products are not
    save_checkpoint(tmp_path / "ckpt", tiny_info, model)
    done = gft_edge("evaluate", tmp_path / "ckpt", "--data", photos, "--budget", "12,6", "--json")
    assert (done.code, done.out) == (1, "")
    assert "ckpt at 12-6: logits of " in done.err
    done = gft_edge("export", tmp_path / "ckpt", "--data", photos, "--out", tmp_path / "artefact")
    assert done.code == 1
    assert "golden images at 12-6: logits of " in done.err
    assert {path.name for path in tmp_path.iterdir()} == {"ckpt"}
