from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from gft_edge.calibration.ptq import quantize_int8, quantize_with
from gft_edge.calibration.sensitivity import effects
from gft_edge.calibration.sensitivity.effects import MixedModel, measure_sensitivity, run_mixed
from gft_edge.calibration.sensitivity.replay import Replay
from gft_edge.config.model import preset
from gft_edge.errors import CheckFailed, ConfigError, DataError
from gft_edge.model.baselines import TimmClassifier
from gft_edge.quant.modules import QuantLinear, quantized_names
from gft_edge.quant.policy import DEFAULT_POLICY, QuantPolicy, QuantRule


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    return [(rng.standard_normal((n, 3, 32, 32)).astype(np.float32), rng.integers(0, 4, n)) for n in (5, 7)]


@pytest.fixture(scope="module")
def names(tiny_model):
    return quantized_names(tiny_model, DEFAULT_POLICY)


@pytest.fixture(scope="module")
def ranges(tiny_model, data):
    return quantize_int8(tiny_model, [images for images, _ in data]).summary["ranges"]


@pytest.fixture(scope="module")
def mixed(tiny_model, ranges, names):
    return MixedModel(tiny_model, ranges, names)


@pytest.fixture(scope="module")
def measured(tiny_model, ranges, names, data):
    return measure_sensitivity(MixedModel(tiny_model, ranges, names), lambda: data, len(data), 16)


def slow(model, ranges, data, int8):
    """Logits and kept sets by a copy quantized with one rule per layer."""
    if int8:
        policy = QuantPolicy(tuple(QuantRule(name, "int8", "test") for name in int8))
        model = quantize_with(model, ranges, policy, "max", 1).model
    with torch.no_grad():
        outs = [model(torch.from_numpy(images), maps=True) for images, _ in data]
    kept = [[set(row.tolist()) for out in outs for row in out.stages[s].kept] for s in range(2)]
    return torch.cat([out.logits for out in outs]).numpy(), kept


def judged(logits, kept, full, full_kept, labels):
    noise = (logits.astype(np.float64) - full) ** 2
    right, full_right = logits.argmax(1) == labels, full.argmax(1) == labels
    return {
        "noise": noise.mean(),
        "sqnr": 10 * np.log10((full.astype(np.float64) ** 2).sum() / noise.sum()),
        "top1": right.mean(),
        "lost": 100 * (full_right.mean() - right.mean()),
        "jaccard": [np.mean([len(a & b) / len(a | b) for a, b in zip(x, y)]) for x, y in zip(kept, full_kept)],
    }


def test_every_figure_is_that_of_a_model_quantized_with_one_rule_per_layer(tiny_model, ranges, names, data, measured):
    found, _ = measured
    labels = np.concatenate([truth for _, truth in data])
    full, full_kept = slow(tiny_model, ranges, data, [])
    assert (found.images, len(found.layers)) == (12, 12)
    assert found.top1 == (full.argmax(1) == labels).mean()
    assert found.signal == pytest.approx((full.astype(np.float64) ** 2).mean())
    assert np.array_equal(found.reference, full)
    assert np.array_equal(found.quantized, slow(tiny_model, ranges, data, names)[0])
    cases = [(found.everything, names)]
    for layer in found.layers:
        cases += [(layer.only, [layer.name]), (layer.all_but, [name for name in names if name != layer.name])]
    for effect, int8 in cases:
        expected = judged(*slow(tiny_model, ranges, data, int8), full, full_kept, labels)
        assert effect.noise == pytest.approx(expected["noise"], rel=1e-12)
        assert effect.sqnr_db == pytest.approx(expected["sqnr"], rel=1e-12)
        assert (effect.top1, effect.lost_points) == pytest.approx((expected["top1"], expected["lost"]))
        assert effect.jaccard == pytest.approx(expected["jaccard"])


def test_layers_differ_and_all_together_are_worse_than_most_alone(measured):
    found, _ = measured
    alone = [layer.only.noise for layer in found.layers]
    assert len(set(alone)) > 10
    assert found.everything.noise > np.median(alone)
    assert any(min(layer.only.jaccard) < 1 for layer in found.layers)


def test_it_is_deterministic(tiny_model, ranges, names, data, measured):
    again, _ = measure_sensitivity(MixedModel(tiny_model, ranges, names), lambda: data, len(data), 16)
    assert again.layers == measured[0].layers
    assert again.everything == measured[0].everything


def test_any_set_of_layers_is_what_a_policy_of_them_gives(tiny_model, ranges, names, data, mixed):
    for int8 in (names[::2], names[:3], []):
        outputs = run_mixed(mixed, int8, lambda: data)
        assert np.array_equal(outputs["logits"], slow(tiny_model, ranges, data, int8)[0])
        assert set(outputs) == {"logits", "kept_0", "kept_1"}
        inside = {name for name, module in mixed.model.named_modules() if isinstance(module, QuantLinear)}
        assert inside == set(int8)


def test_the_given_model_is_left_alone(tiny_model, ranges, names, data):
    model = copy.deepcopy(tiny_model)
    measure_sensitivity(MixedModel(model, ranges, names), lambda: data, len(data), 16)
    assert not any(isinstance(module, QuantLinear) for module in model.modules())
    assert not any("forward" in vars(module) for module in model.modules())


def test_progress_counts_every_configuration(tiny_model, ranges, names, data):
    seen = []

    def track(items, title, total):
        seen.append((title, total, len([seen.append(0) for _ in items])))
        return iter(())

    measure_sensitivity(MixedModel(tiny_model, ranges, names), lambda: data, len(data), 16, track)
    assert seen[-1] == ("sensitivity", 52, 52)


def test_ranges_that_miss_a_layer_and_no_images_are_refused(tiny_model, ranges, names, mixed):
    with pytest.raises(ConfigError, match=r"ranges: none for the input of blocks\.0\.attn\.qkv and 11 others"):
        MixedModel(tiny_model, {}, names)
    with pytest.raises(DataError, match="no images"):
        measure_sensitivity(mixed, lambda: [], 0, 16)


@pytest.mark.parametrize(("value", "where"), [(np.nan, "in full precision"), (np.inf, "in full precision")])
def test_logits_that_are_not_finite_are_refused(tiny_model, ranges, names, data, value, where):
    model = copy.deepcopy(tiny_model)
    with torch.no_grad():
        model.head.bias[0] = value
    with pytest.raises(CheckFailed, match=where):
        measure_sensitivity(MixedModel(model, ranges, names), lambda: data, len(data), 16)


class Counting(nn.Module):
    """A linear layer that counts how often it is run."""

    def __init__(self, count):
        super().__init__()
        self.linear, self.count = nn.Linear(4, 4), count

    def forward(self, x):
        self.count.append(1)
        return self.linear(x)


class Chain(nn.Module):
    def __init__(self, repeats=1):
        super().__init__()
        self.counts = [[], [], []]
        self.first = Counting(self.counts[0])
        self.blocks = nn.ModuleList(Counting(count) for count in self.counts[1:])
        self.repeats = repeats

    def forward(self, x):
        x = self.first(x)
        for _ in range(self.repeats):
            for block in self.blocks:
                x = block(x)
        return x


@pytest.mark.parametrize(
    ("changed", "expected"),
    [("first.linear", [2, 2, 2]), ("blocks.0.linear", [1, 2, 2]), ("blocks.1.linear", [1, 1, 2]), (None, [1, 1, 1])],
)
@torch.no_grad()
def test_what_comes_before_the_change_is_not_run_again(changed, expected):
    model = Chain()
    replay, x = Replay(model), torch.randn(2, 4)
    first, recording = replay.record(lambda: model(x))
    if changed:
        model.get_submodule(changed).weight.mul_(2)
    again = replay.again(lambda: model(x), recording, [changed] if changed else [])
    assert [len(count) for count in model.counts] == expected
    assert torch.equal(again, model(x))
    assert torch.equal(again, first) == (changed is None)


@torch.no_grad()
def test_a_model_that_runs_a_part_twice_is_run_whole():
    model = Chain(repeats=2)
    replay, x = Replay(model), torch.randn(2, 4)
    _, recording = replay.record(lambda: model(x))
    model.blocks[1].linear.weight.mul_(2)
    assert torch.equal(replay.again(lambda: model(x), recording, ["blocks.1.linear"]), model(x))


def require_the_same_as_whole_runs(model, policy):
    images = np.random.default_rng(0).standard_normal((4, 3, 32, 32)).astype(np.float32)
    names = quantized_names(model, policy)
    ranges = quantize_int8(model, [images], policy).summary["ranges"]
    mixed = MixedModel(model, ranges, names)
    replay = Replay(mixed.model)
    for (what, name), outputs in effects._configurations(mixed, replay, images):
        int8 = {"none": [], "all": names, "only": [name], "all but": [other for other in names if other != name]}[what]
        plain = MixedModel(model, ranges, names)
        plain.set(int8)
        assert np.array_equal(outputs["logits"], plain.outputs(images)["logits"]), (what, name)


@pytest.mark.parametrize("backbone", ["test_vit", "test_resnet"])
def test_a_baseline_goes_on_from_where_it_differs(backbone):
    torch.manual_seed(0)
    model = TimmClassifier(preset("vit_tiny", backbone=backbone, image_size=32, num_classes=4)).eval()
    require_the_same_as_whole_runs(model, DEFAULT_POLICY)


def test_layers_that_are_parts_themselves_are_exchanged_too(tiny_model):
    require_the_same_as_whole_runs(
        tiny_model, QuantPolicy((QuantRule("*", "int8", "the classifier and the stem too"),))
    )
