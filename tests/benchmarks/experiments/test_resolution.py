"""Large images at the cost of small ones: the training of the plain network, both commands as a user runs them, the page."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from gft_edge.benchmarks.experiments.resolution import accuracy, curriculum, page, plain_training, speed
from gft_edge.benchmarks.experiments.resolution.__main__ import main
from gft_edge.budget import TokenBudget
from gft_edge.checkpoint import CheckpointInfo, load_checkpoint, read_weights, save_checkpoint
from gft_edge.config.model import preset
from gft_edge.config.recipe import DataSection, Recipe, TrainSection
from gft_edge.data.scenes import LABELS, Scenes
from gft_edge.data.typefaces import Typefaces
from gft_edge.errors import ArtifactError, ConfigError
from gft_edge.model.build import build_model
from gft_edge.model.macs import count_macs
from gft_edge.preprocess import PreprocessSpec
from gft_edge.quant.attention import quantized_attention
from gft_edge.quant.policy import read_policy, uniform_policy

OPTIONS = plain_training.PlainOptions(steps=10, batch_size=4, eval_every=4, eval_images=16)
TRAINING = ["--steps", "10", "--batch-size", "4", "--eval-every", "4", "--eval-images", "16"]


@pytest.fixture(scope="module")
def config():
    """64 patches of 64-pixel scenes; blocks 1 and 2 of 3 select."""
    return preset(
        "gft_scenes",
        image_size=64,
        embed_dim=16,
        depth=3,
        num_heads=2,
        stages=(1, 2),
        budget=TokenBudget((16, 8), 64),
    )


@pytest.fixture(scope="module")
def large(config, tmp_path_factory):
    """A checkpoint that records two phases of training: 9 steps of windows, 21 of whole images, 5 images each."""
    torch.manual_seed(0)
    model = build_model(config)
    torch.nn.init.normal_(model.head.weight)  # timm's zeros would answer one class
    phases = ((0.0, 1.0, 6.0, 32.0), (0.3, 1.0, 6.0))
    recipe = Recipe(data=DataSection("scenes", curriculum=phases), train=TrainSection(steps=30, batch_size=5))
    info = CheckpointInfo(config, LABELS, PreprocessSpec(64, 64), {"steps": 30}, {"recipe": recipe.to_json()})
    folder = tmp_path_factory.mktemp("large") / "checkpoint"
    save_checkpoint(folder, info, model)
    return folder


@pytest.fixture(scope="module")
def measured(large, tmp_path_factory):
    """Folder and page of both commands."""
    out = tmp_path_factory.mktemp("resolution")
    arguments = ["accuracy", str(large), "--size", "32", "--images", "48", "--out", str(out), *TRAINING]
    assert main([*arguments, "--page", str(out / "first.md")]) == 0
    assert main(["speed", "--quick", "--rounds", "2", "--out", str(out), "--page", str(out / "page.md")]) == 0
    return out


def test_both_networks_are_compared_on_the_same_images(measured, large, config):
    data = json.loads((measured / "accuracy.json").read_text())
    images = Scenes("test", 48, 64)
    models = {
        accuracy.PRUNED: (load_checkpoint(large).model, 64, config.budget),
        accuracy.PLAIN: (load_checkpoint(measured / "plain-32").model, 32, None),
        accuracy.FULL: (load_checkpoint(large).model, 64, config.full_budget),
    }
    right = {}
    for name, (model, side, budget) in models.items():
        spec = PreprocessSpec(side, side)
        with torch.no_grad():
            found = [
                int(model(torch.from_numpy(spec(images[i][0]))[None], budget).argmax()) == i % 16 for i in range(48)
            ]
        right[name] = np.array(found)
    rows = {row["name"]: row for row in data["rows"]}
    assert {name: rows[name]["right"] for name in right} == {name: int(r.sum()) for name, r in right.items()}
    ours, theirs = right[accuracy.PRUNED], right[accuracy.PLAIN]
    only, other = int((ours & ~theirs).sum()), int((theirs & ~ours).sum())
    found = data["paired"][accuracy.PLAIN]
    assert (found["only_candidate"], found["only_reference"], found["images"]) == (only, other, 48)
    expected = sum(math.comb(only + other, k) for k in range(min(only, other) + 1)) / 2 ** (only + other)
    assert found["mcnemar_p"] == pytest.approx(min(1.0, 2 * expected))
    assert found["difference"] == pytest.approx((only - other) / 48)
    small = dataclasses.replace(config, image_size=32, budget=TokenBudget((16, 16), 16))
    assert rows[accuracy.PLAIN]["macs"] == rows[accuracy.UNTRAINED]["macs"] == count_macs(small)


def test_images_of_each_training_are_told(measured):
    data = json.loads((measured / "accuracy.json").read_text())
    earlier = {"windows": 45, "whole": 105}
    assert data["images_seen"] == {
        accuracy.PRUNED: earlier,
        "start": earlier,
        accuracy.PLAIN: {"windows": 28, "whole": 12},
    }
    assert [row["step"] for row in data["validation"]] == [4, 8, 10]


def test_page_has_what_is_in_the_folder(measured):
    first, both = (measured / "first.md").read_text(), (measured / "page.md").read_text()
    assert first.count("Not measured.") == 1
    assert "Not measured." not in both
    assert "| `gft_base_448` | 2, 4, 6 | 256, 128, 64 | 17.04 G | 17.56 G | 0.97 | 78.50 G | 4.61 |" in both
    assert "| pruned | 45 | 105 |" in both
    assert first.partition("## Speed")[0] == both.partition("## Speed")[0]


def test_equal_cost_is_the_size_of_the_nearest_cost(large, config, tmp_path, monkeypatch):
    sizes = []

    def stop(start, size, *rest):
        sizes.append(size)
        raise InterruptedError

    monkeypatch.setattr(accuracy, "train_plain", stop)
    with pytest.raises(InterruptedError):
        accuracy.compare(str(large), tmp_path, accuracy.AccuracyOptions(), OPTIONS)
    costs = {
        size: count_macs(
            dataclasses.replace(config, image_size=size, budget=TokenBudget((size**2 // 64,) * 2, size**2 // 64))
        )
        for size in range(16, 64, 8)
    }
    wanted = count_macs(config)
    assert sizes == [min(costs, key=lambda size: abs(costs[size] - wanted))]


def test_interrupted_training_continues_bit_by_bit(large, tmp_path, monkeypatch):
    monkeypatch.setattr(plain_training, "SAVE_EVERY", 3)
    plain_training.train_plain(large, 32, "scenes", tmp_path / "whole", OPTIONS)

    def stopping(items, title, total):
        for number, item in enumerate(items):
            if number == 5:
                raise KeyboardInterrupt
            yield item

    lines: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        plain_training.train_plain(large, 32, "scenes", tmp_path / "cut", OPTIONS, stopping)
    plain_training.train_plain(large, 32, "scenes", tmp_path / "cut", OPTIONS, report=lines.append)
    assert "continues after step 3" in lines[0]
    whole, cut = (read_weights(tmp_path / name) for name in ("whole", "cut"))
    assert all(torch.equal(whole[name], cut[name]) for name in whole)
    found = [[row["val_top1"] for row in accuracy.validation(tmp_path / name)] for name in ("whole", "cut")]
    assert found[0] == found[1]
    longer = dataclasses.replace(OPTIONS, steps=11)
    with pytest.raises(ConfigError, match=r"train.steps is 11, was 10"):
        plain_training.train_plain(large, 32, "scenes", tmp_path / "cut", longer)


def test_training_changes_every_weight_of_the_plain_network(large, measured):
    before, after = read_weights(large), read_weights(measured / "plain-32")
    assert after["pos_embed"].shape == (1, 17, 16)
    assert all(not torch.equal(before[name], after[name]) for name in before if name != "pos_embed")


def test_curriculum_leaves_out_windows_that_do_not_fit(config):
    scenes = Scenes("train", 16, 64)
    whole = (1.0, 6.0, 0.0)
    assert curriculum.fitting_curriculum(scenes, config, 32) == (
        (0.0, 1.25, 6.0, 16.0),
        (0.1, 1.0, 6.0, 16.0),
        (0.5, 1.0, 6.0, 32.0),
        (0.7, *whole),
    )
    # 16 of 64 pixels are 12 of 48, no whole number of patches; 32 are 24.
    assert curriculum.fitting_curriculum(scenes, config, 48) == ((0.0, 1.0, 6.0, 32.0), (0.7, *whole))
    assert curriculum.fitting_curriculum(scenes, dataclasses.replace(config, stem="linear"), 32) == ((0.0, *whole),)
    crowded = Scenes("train", 16, 64, share=0.05)  # marks of up to 19 pixels
    assert curriculum.fitting_curriculum(crowded, config, 32)[0][3] == 32
    assert curriculum.fitting_curriculum(Typefaces("train", 16, 64), config, 32) == ()


def test_unknown_history_is_not_guessed():
    assert curriculum.recorded_images({}, {}) is None
    assert curriculum.recorded_images({"recipe": {"train": {}, "data": {}}}, {}) is None
    assert curriculum.recorded_images({"recipe": "by hand"}, {}) is None
    train = {"steps": 10, "batch_size": 3, "accumulate": 2}
    assert curriculum.recorded_images({"recipe": {"train": train, "data": {}}}, {"steps": 4}) == {
        "windows": 0,
        "whole": 24,
    }


def test_whether_it_levelled_off_is_told():
    rows = [{"step": step, "val_top1": value} for step, value in ((50, 0.5), (75, 0.6), (90, 0.7), (100, 0.625))]
    assert page.level(rows) == "Over the steps after 75 it changed by +2.5 points."
    assert "Too few" in page.level(rows[-1:])


def test_times_are_of_the_three_networks(measured):
    data = json.loads((measured / "speed.json").read_text())
    assert [(r["name"], r["batch"], r["image_size"]) for r in data["rows"]] == [
        (name, batch, size)
        for batch in (1, 4)
        for name, size in ((speed.GFT, 64), (speed.LARGE, 64), (speed.SMALL, 32))
    ]
    assert all(len(row["rounds_ms"]) == 2 and row["p50_ms"] > 0 for row in data["rows"])
    assert all(row["faster"] == [1, 1, 1] for row in data["rows"] if row["name"] == speed.LARGE)
    config = speed.quick_config()
    full = dataclasses.replace(config, budget=TokenBudget((16,) * 3, 16))
    assert [row["macs"] for row in data["rows"][:2]] == [count_macs(config), count_macs(full)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["accuracy", "{large}", "--size", "36"], "size 36: must be a multiple of 8 px"),
        (["accuracy", "{large}", "--size", "64"], "below the model's 64 px"),
        (["accuracy", "{large}", "--budget", "64,64"], "keeps every patch"),
        (["speed", "--batches", "9"], r"batches must be 1 to 8 images, found \[9\]"),
        (["speed", "--preset", "vit_tiny"], "preset vit_tiny: has no stages"),
        (["speed", "--preset", "gft_bas_448"], "did you mean 'gft_base_448'"),
    ],
)
def test_bad_input_is_one_line(arguments, message, large, tmp_path):
    given = [text.format(large=large) for text in arguments]
    with pytest.raises(ConfigError, match=message) as caught:
        main([*given, "--out", str(tmp_path)])
    assert "\n" not in str(caught.value)


def test_missing_checkpoint_is_told(tmp_path):
    with pytest.raises(ArtifactError, match="no such folder"):
        main(["accuracy", str(tmp_path / "none"), "--out", str(tmp_path)])


def test_quantized_checkpoint_is_refused(large, config, tmp_path):
    loaded = load_checkpoint(large)
    info = dataclasses.replace(loaded.info, quantization={"precision": "int8"})
    quantized = dataclasses.replace(loaded, info=info)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(accuracy, "load_checkpoint", lambda name: quantized)
        with pytest.raises(ConfigError, match="is quantized"):
            accuracy.compare(str(large), tmp_path, accuracy.AccuracyOptions(), OPTIONS)


def test_attention_behind_the_first_cut_can_be_fused_in_int8(tmp_path):
    """The policy of docs/resolution.md, on a narrow model of the preset's tokens."""
    text = Path(__file__).parents[3].joinpath("docs", "resolution.md").read_text(encoding="utf-8")
    (written,) = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    (tmp_path / "attention.toml").write_text(written)
    model = build_model(preset("gft_tiny_448", embed_dim=48)).eval()
    chosen = quantized_attention(model, read_policy(tmp_path / "attention.toml"))
    assert chosen == {f"blocks.{block}.attn.attend": "int8" for block in range(2, 12)}
    with pytest.raises(ConfigError, match="attends to 785 tokens"):
        quantized_attention(model, uniform_policy("int8", attention="int8"))
