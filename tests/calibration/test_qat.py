from __future__ import annotations

import copy
import dataclasses
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gft_edge.calibration.ptq import PostTrained, quantize_int8
from gft_edge.calibration.qat import Distillation, QatSettings, fine_tune, quantization_aware
from gft_edge.calibration.qat_report import FULL, PTQ, PTQ_CONTROL, QAT, report_qat, reported_budgets
from gft_edge.checkpoint import load_checkpoint, save_checkpoint
from gft_edge.config.model import GFTConfig
from gft_edge.distill.losses import distillation_loss
from gft_edge.errors import CheckFailed, ConfigError
from gft_edge.export.onnx.artifact import export_artifact
from gft_edge.files import sha256
from gft_edge.model.gft import GFTOutput
from gft_edge.preprocess import PreprocessSpec
from gft_edge.quant.levels import SMALLEST_RANGE
from gft_edge.quant.modules import (
    QUANTIZED,
    QuantConv2d,
    QuantLinear,
    channel_ranges,
    follow_weights,
    insert_quantizers,
)
from gft_edge.quant.policy import uniform_policy
from gft_edge.runtime.backends.sessions import open_session
from gft_edge.train.schedule import step_budgets


class Noise:
    """Labelled images of noise, so that nothing has to be drawn or decoded."""

    labels = ("ant", "bee", "cat", "dog")

    def __init__(self, count, seed):
        self.images = np.random.default_rng(seed).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
        self.read = []

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        self.read.append(index)
        return self.images[index], index % 4


@pytest.fixture(scope="module")
def images():
    return Noise(40, 0)


@pytest.fixture(scope="module")
def calibration(tiny_info):
    return [tiny_info.preprocess.normalize(Noise(16, 1).images)]


@pytest.fixture(scope="module")
def held_out(tiny_info):
    noise = Noise(24, 2)
    return [(tiny_info.preprocess.normalize(noise.images), np.arange(24) % 4)]


SETTINGS = QatSettings(steps=4, batch_size=4, lr=1e-3, label_weight=0.5, num_workers=0)


@pytest.fixture(scope="module")
def task(tiny_model, tiny_config, tiny_info, images):
    return Distillation(tiny_model, tiny_config, images, tiny_info.preprocess, SETTINGS)


def clamped(model, calibration, precision="int8"):
    """A quantized model with ranges so narrow that clamping hurts."""
    quantized = quantize_int8(model, calibration, uniform_policy(precision))
    for module in quantized.model.modules():
        if isinstance(module, QuantLinear) and module.input_quantizer is not None:
            module.input_quantizer.scale /= 3
    return quantized


# Gradients


class _Ste(torch.autograd.Function):
    """Straight-through estimator, value by value: the gradient passes where the code is within the range."""

    @staticmethod
    def forward(ctx, x, scale, low, high):
        flat = [(value, unit) for value, unit in zip(x.flatten().tolist(), scale.expand_as(x).flatten().tolist())]
        codes = [round(value / unit) for value, unit in flat]
        ctx.inside = torch.tensor([low <= code <= high for code in codes]).reshape(x.shape)
        return torch.tensor([min(max(c, low), high) * u for c, (_, u) in zip(codes, flat)], dtype=x.dtype).reshape(
            x.shape
        )

    @staticmethod
    def backward(ctx, gradient):
        return torch.where(ctx.inside, gradient, 0), None, None, None


def _ste(x, scale):
    return _Ste.apply(x.double(), scale.double(), -128, 127)


def _gradients(output, *leaves):
    weights = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).reshape(output.shape)
    return torch.autograd.grad((output * weights).sum(), leaves)


def test_gradients_of_a_linear_layer_are_those_of_the_straight_through_estimator():
    torch.manual_seed(0)
    linear, x = nn.Linear(6, 5), torch.randn(7, 6, requires_grad=True)
    layer = QuantLinear(linear, "int8", 1.0)
    assert (x.abs() > 1.01).any(), "some inputs are clamped"
    found = _gradients(layer(x), x, layer.weight, layer.bias)
    weight_scale = linear.weight.detach().abs().amax(dim=1, keepdim=True) / 127
    y = F.linear(_ste(x, torch.tensor(1 / 127)), _ste(linear.weight, weight_scale), linear.bias.double())
    expected = _gradients(y, x, linear.weight, linear.bias)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b.to(a.dtype), rtol=1e-4, atol=1e-5)
    assert (found[0][x.abs() > 1.01] == 0).all()
    assert (found[1] != 0).all()


def test_gradients_of_a_convolution_likewise():
    torch.manual_seed(0)
    conv, x = nn.Conv2d(3, 4, 3, stride=2, padding=1), torch.randn(2, 3, 5, 5, requires_grad=True)
    layer = QuantConv2d(conv, 1.5)
    found = _gradients(layer(x), x, layer.weight)
    weight_scale = conv.weight.detach().abs().amax(dim=(1, 2, 3), keepdim=True) / 127
    rounded = _ste(x, torch.tensor(1.5 / 127)), _ste(conv.weight, weight_scale)
    expected = _gradients(F.conv2d(*rounded, conv.bias.double(), stride=2, padding=1), x, conv.weight)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b.to(a.dtype), rtol=1e-4, atol=1e-5)


def test_gradients_of_weight_only_and_fp8_layers():
    torch.manual_seed(0)
    linear, x = nn.Linear(6, 5, bias=False), torch.randn(7, 6, requires_grad=True)
    weights = torch.linspace(-1, 1, 35).reshape(7, 5)
    (found,) = _gradients(QuantLinear(linear, "int8-weights")(x), linear.weight)
    torch.testing.assert_close(found, weights.T @ x.detach())
    layer = QuantLinear(linear, "fp8", 1.0)
    to_x, to_weight = _gradients(layer(x), x, linear.weight)
    within = x.detach().abs() < 464 / 448
    rounded = (x.detach() * 448).clamp(-448, 448).to(torch.float8_e4m3fn).float() / 448
    torch.testing.assert_close(to_weight, weights.T @ rounded, rtol=1e-4, atol=1e-5)
    scale = linear.weight.detach().abs().max() / 448
    weight = (linear.weight.detach() / scale).to(torch.float8_e4m3fn).float() * scale
    torch.testing.assert_close(to_x, torch.where(within, weights @ weight, 0), rtol=1e-4, atol=1e-5)
    assert not within.all()
    assert (to_weight != 0).all(), "the largest weight learns too"


@pytest.mark.parametrize("precision", ["int8", "int8-weights", "fp8"])
def test_every_parameter_has_a_gradient(tiny_model, calibration, precision):
    model = quantize_int8(tiny_model, calibration, uniform_policy(precision)).model
    model(torch.from_numpy(calibration[0])).square().sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []
    for name, module in model.named_modules():
        if isinstance(module, QUANTIZED):
            share = (module.weight.grad != 0).float().mean()
            assert share > 0.9, f"{name}: only {share:.0%} of its weights learn"
    model.zero_grad()


def test_ranges_follow_the_weights_as_they_do_when_a_checkpoint_is_read():
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 3), nn.Linear(3, 2), nn.Conv2d(2, 2, 3))
    kinds = dict(zip("0123", ("int8", "fp8", "int8-weights", "int8"), strict=True))
    insert_quantizers(model, {"0": 1.0, "1": 1.0, "3": 1.0}, kinds)
    with torch.no_grad():
        for module in model:
            module.weight.mul_(3)
        model[0].weight[0] = 0
    follow_weights(model)
    again = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 3), nn.Linear(3, 2), nn.Conv2d(2, 2, 3))
    again.load_state_dict(model.state_dict())
    insert_quantizers(again, {"0": 1.0, "1": 1.0, "3": 1.0}, kinds)
    for index in (0, 2, 3):
        assert torch.equal(model[index].weight_quantizer.ranges, again[index].weight_quantizer.ranges)
    assert model[1].weight_quantizer.scale == again[1].weight_quantizer.scale
    assert model[0].weight_quantizer.ranges[0] == np.float32(SMALLEST_RANGE)
    assert torch.equal(channel_ranges(model[3].weight), model[3].weight.detach().abs().amax(dim=(1, 2, 3)))


def test_a_layer_that_quantizes_its_input_needs_a_range():
    with pytest.raises(ConfigError, match="an input range must be positive and finite"):
        insert_quantizers(nn.Sequential(nn.Linear(4, 3)), {}, {"0": "int8"})


# Loss and training


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_training_brings_the_model_nearer_to_its_teacher(
    task, tiny_model, tiny_config, tiny_info, images, calibration, precision
):
    quantized = clamped(tiny_model, calibration, precision)
    settings = dataclasses.replace(SETTINGS, steps=25, label_weight=0.0, batch_size=8, lr=5e-4)

    @torch.no_grad()
    def loss(budget):
        pixels = torch.from_numpy(tiny_info.preprocess.normalize(images.images))
        logits = [m(pixels, budget) for m in (quantized.model, tiny_model)]
        return distillation_loss(*logits, settings.temperature).item()

    budgets = step_budgets(tiny_config, settings.schedule(elastic=True), 0)
    assert len(budgets) == 2, "the full and the smallest"
    before = [loss(budget) for budget in budgets]
    before_scales = [m.input_quantizer.scale for m in quantized.model.modules() if isinstance(m, QuantLinear)]
    (record,) = fine_tune(dataclasses.replace(task, settings=settings), [quantized.model])
    after = [loss(budget) for budget in budgets]
    assert all(b < 0.75 * a for a, b in zip(before, after, strict=True)), (before, after)
    losses = record.to_json()
    assert losses["distillation_last"] < losses["distillation_first"]
    scales = [m.input_quantizer.scale for m in quantized.model.modules() if isinstance(m, QuantLinear)]
    assert scales == before_scales, "activation ranges stay those of the calibration"
    for module in quantized.model.modules():
        if isinstance(module, QuantLinear) and module.precision == "int8":
            assert torch.equal(module.weight_quantizer.ranges, channel_ranges(module.weight))


def test_what_runs_is_what_is_trained(task, tiny_model):
    """Batch norms keep their statistics; every model ends as it came, in eval mode."""
    student = copy.deepcopy(tiny_model)
    fine_tune(task, [student])
    assert not any(module.training for module in student.modules())
    before, after = dict(tiny_model.named_buffers()), dict(student.named_buffers())
    assert [name for name in before if not torch.equal(before[name], after[name])] == []
    assert all(p.grad is None for p in student.parameters())


def test_each_model_sees_the_same_batches_and_trains_as_if_alone(task, tiny_model, tiny_config, calibration):
    def models():
        return [quantize_int8(tiny_model, calibration).model, copy.deepcopy(tiny_model)]

    def run(students):
        seen = [[] for _ in students]
        handles = [
            student.register_forward_pre_hook(lambda _, inputs, s=s: s.append((inputs[0].clone(), inputs[1])))
            for student, s in zip(students, seen, strict=True)
        ]
        records = fine_tune(task, students)
        for handle in handles:
            handle.remove()
        return records, seen

    together, alone = models(), models()
    records, (seen, control_seen) = run(together)
    assert len(seen) == len(control_seen) == 2 * SETTINGS.steps
    for (pixels, budget), (others, other_budget) in zip(seen, control_seen, strict=True):
        assert torch.equal(pixels, others)
        assert budget == other_budget
    assert {budget for _, budget in seen} > {tiny_config.full_budget}
    assert [(one.steps, one.images) for one in records] == [(4, 16)] * 2
    assert records[0].data_sha256 == records[1].data_sha256
    for a, b in zip(together, alone, strict=True):
        (record,), _ = run([b])
        assert record.data_sha256 == records[0].data_sha256
        assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))
        assert any(not torch.equal(x, y) for x, y in zip(a.parameters(), tiny_model.parameters(), strict=True))


def test_another_seed_is_another_order(task, tiny_model):
    hashes = set()
    for seed in (0, 0, 1):
        settings = dataclasses.replace(SETTINGS, seed=seed, steps=1)
        seeded = dataclasses.replace(task, settings=settings)
        hashes.add(fine_tune(seeded, [copy.deepcopy(tiny_model)])[0].data_sha256)
    assert len(hashes) == 2


def test_without_labels_the_control_stays_what_it_is(task, tiny_model):
    control = copy.deepcopy(tiny_model)
    settings = dataclasses.replace(SETTINGS, label_weight=0.0, lr=1e-4)
    (record,) = fine_tune(dataclasses.replace(task, settings=settings), [control])
    assert record.distillation[0] == 0
    for before, after in zip(tiny_model.parameters(), control.parameters(), strict=True):
        torch.testing.assert_close(after, before, rtol=0, atol=settings.steps * settings.lr)


def test_a_loss_that_is_not_finite_ends_it(task, tiny_model):
    student = copy.deepcopy(tiny_model)
    nn.init.constant_(student.head.bias, float("inf"))
    with pytest.raises(CheckFailed, match=r"QAT: loss is nan at step 0; lower lr"):
        fine_tune(task, [student])


def test_settings_are_checked_all_at_once():
    with pytest.raises(ConfigError) as caught:
        QatSettings(steps=0, lr=0.0, temperature=0.0, label_weight=-1.0, train_images=0)
    for text in ("steps must be at least 1", "lr must be above 0", "temperature must", "label_weight", "train_images"):
        assert text in str(caught.value)


# The whole of it


def trained(task, quantized, calibration):
    start = PostTrained(task.teacher, None, quantized)
    return quantization_aware(task, start, lambda control: quantize_int8(control, calibration))


@pytest.fixture(scope="module")
def done(task, calibration):
    quantized = quantize_int8(task.teacher, calibration)
    return quantized, trained(task, quantized, calibration)


def test_policy_and_ranges_are_kept_and_the_record_says_how(done):
    quantized, outcome = done
    summary = outcome.quantized.summary
    assert summary["qat"] == dataclasses.asdict(SETTINGS)
    assert {k: v for k, v in summary.items() if k != "qat"} == quantized.summary
    assert outcome.quantized_control.summary["ranges"] != quantized.summary["ranges"], "calibrated anew"
    assert json.loads(json.dumps(summary)) == summary


def test_report_figures(done, task, tiny_model, tiny_config, tiny_info, held_out):
    quantized, outcome = done
    report = report_qat(task, quantized.model, outcome, held_out, "noise", tiny_info.labels)
    pixels, truth = torch.from_numpy(held_out[0][0]), held_out[0][1]
    models = {FULL: tiny_model, PTQ: quantized.model, QAT: outcome.quantized.model}
    assert len(report.figures) == 5 * len(reported_budgets(tiny_config)) == 15
    assert report.figures[0].budget == tiny_config.budget.id
    for budget in reported_budgets(tiny_config):
        with torch.no_grad():
            reference = tiny_model(pixels, budget, maps=True)
        for name, model in models.items():
            (row,) = [f for f in report.figures if f.model == name and f.budget == budget.id]
            with torch.no_grad():
                out = model(pixels, budget, maps=True)
            assert row.right == int((out.logits.argmax(1).numpy() == truth).sum())
            noise = (out.logits - reference.logits).double().square().sum()
            if name == FULL:
                assert row.logit_sqnr_db is None
            else:
                expected = 10 * torch.log10(reference.logits.double().square().sum() / noise)
                assert row.logit_sqnr_db == pytest.approx(expected.item(), abs=1e-3)
            kept = [
                np.mean([len(set(x) & set(y)) / len(set(x) | set(y)) for x, y in zip(a.kept.tolist(), b.kept.tolist())])
                for a, b in zip(reference.stages, out.stages)
                if budget != tiny_config.full_budget
            ]
            assert row.jaccard == pytest.approx(kept)
    assert json.loads(json.dumps(report.to_json())) == report.to_json()
    assert report.training.data_sha256 == report.control_training.data_sha256


class _FixedAnswers(nn.Module):
    """A model that gives fixed answers."""

    def __init__(self, answers, classes=4):
        super().__init__()
        self.logits = F.one_hot(torch.tensor(answers), classes).float()

    def forward(self, images, budget, maps):
        return GFTOutput(self.logits, [])


@pytest.mark.parametrize(
    ("qat_wrong", "control_wrong", "verdict", "p"),
    [(0, 6, "better", 0.03125), (6, 0, "worse", 0.03125), (0, 5, "inconclusive", 0.0625), (3, 3, "inconclusive", 1.0)],
)
def test_verdict_is_the_exact_test_of_qat_against_ptq_of_the_control(done, task, qat_wrong, control_wrong, verdict, p):
    _, outcome = done
    truth = np.arange(24) % 4

    def wrong(first, count):
        answers = truth.copy()
        answers[first : first + count] = (answers[first : first + count] + 1) % 4
        return _FixedAnswers(answers.tolist())

    outcome = dataclasses.replace(
        outcome,
        quantized=dataclasses.replace(outcome.quantized, model=wrong(0, qat_wrong)),
        control=_FixedAnswers(truth.tolist()),
        quantized_control=dataclasses.replace(outcome.quantized_control, model=wrong(12, control_wrong)),
    )
    batches = [(np.zeros((24, 3, 32, 32), np.float32), truth)]
    exact = _FixedAnswers(truth.tolist())
    report = report_qat(dataclasses.replace(task, teacher=exact), exact, outcome, batches, "made up")
    assert (report.verdict, report.top1.mcnemar_p) == (verdict, p)
    expected = {"inconclusive": "inconclusive: QAT and PTQ after as many FP32 steps (4) "}
    assert report.sentence.startswith(
        expected.get(verdict, f"QAT is {verdict} than PTQ after as many FP32 steps (4): top-1")
    )
    assert next(f.right for f in report.figures if f.model == PTQ_CONTROL) == 24 - control_wrong


@torch.no_grad()
def test_the_trained_checkpoint_is_read_exported_and_runs(done, tiny_model, tiny_info, calibration, tmp_path):
    _, outcome = done
    model = outcome.quantized.model
    info = dataclasses.replace(tiny_info, quantization=outcome.quantized.summary)
    save_checkpoint(tmp_path / "qat", info, model)
    assert sorted(path.name for path in (tmp_path / "qat").iterdir()) == ["config.json", "model.safetensors"]
    checkpoint = load_checkpoint(tmp_path / "qat")
    pixels = calibration[0]
    twin = checkpoint.model(torch.from_numpy(pixels)).numpy()
    np.testing.assert_array_equal(twin, model(torch.from_numpy(pixels)).numpy())
    assert not np.array_equal(twin, tiny_model(torch.from_numpy(pixels)).numpy())
    artifact = export_artifact(checkpoint, tmp_path / "artifact", pixels[:4])
    found = open_session(artifact)(pixels)["logits"]
    noise = np.square(found - twin).sum() / np.square(twin).sum()
    assert noise < 10**-2.5, "rounding ties apart, the graph is its twin: 25 dB"
    assert artifact.manifest.quantization["qat"] == dataclasses.asdict(SETTINGS)


def test_same_seed_same_file(done, task, tiny_info, calibration, tmp_path):
    quantized, outcome = done
    again = trained(task, quantized, calibration)
    for name, one in (("a", outcome), ("b", again)):
        info = dataclasses.replace(tiny_info, quantization=one.quantized.summary)
        save_checkpoint(tmp_path / name, info, one.quantized.model)
    for file in ("model.safetensors", "config.json"):
        assert sha256(tmp_path / "a" / file) == sha256(tmp_path / "b" / file)


@pytest.mark.parametrize("backbone", ["test_vit", "test_resnet"])
def test_networks_without_stages_are_trained_too(make_model, images, calibration, backbone):
    config = GFTConfig(backbone, 160, 4, variant="timm")
    spec = PreprocessSpec(160, 160)
    model = make_model(config)
    quantized = quantize_int8(model, [spec.normalize(np.stack([spec.geometry(image) for image in images.images[:2]]))])
    settings = dataclasses.replace(SETTINGS, steps=1, batch_size=2)
    (record,) = fine_tune(Distillation(model, config, images, spec, settings), [quantized.model])
    assert (record.steps, record.images) == (1, 2)
    assert reported_budgets(config) == (config.budget,)
