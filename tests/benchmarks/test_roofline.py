from __future__ import annotations

import dataclasses
import json

import pytest

from gft_edge.benchmarks.roofline import count_weights, implausible, model_roofline, roofline
from gft_edge.budget import TokenBudget
from gft_edge.config.model import preset
from gft_edge.errors import ConfigError
from gft_edge.hardware.devices import DEVICES, device
from gft_edge.manifest import DeploymentManifest, TensorInfo
from gft_edge.model.macs import count_macs
from gft_edge.preprocess import PreprocessSpec


def plain_vit(base, image_size=224):
    """A plain 12-block ViT without classifier: the published variant as deployed, cut after its last block."""
    return preset(base, variant="published", stages=(12, 12, 12), num_classes=1, image_size=image_size)


DEIT_S, VIT_B, VIT_B_448 = plain_vit("gft_small"), plain_vit("gft_base"), plain_vit("gft_base", 448)

# Compute FP16 / INT8 and weight read FP16 / INT8 of DeiT-S, the same of ViT-B, compute of ViT-B at 448; worked out by
# others from published FLOPs, peaks and bandwidths, in ms at batch 1, rounded as printed there.
TABLE = {
    "orin-nano-8gb-super": ("0.55 0.28 0.42 0.21", "2.10 1.05 1.68 0.84", "9.4 4.7"),
    "orin-nano-8gb": ("0.90 0.45 0.63 0.32", "3.44 1.71 2.52 1.26", "15.4 7.7"),
    "orin-nx-16gb-super": ("0.48 0.24 0.42 0.21", "1.83 0.92 1.67 0.84", "8.2 4.1"),
    "agx-orin-32gb": ("0.34 0.17 0.21 0.11", "1.32 0.66 0.84 0.42", "5.9 2.9"),
    "agx-orin-64gb": ("0.22 0.11 0.21 0.11", "0.83 0.41 0.84 0.42", "3.7 1.85"),
    "thor-t5000": ("0.036 0.018 0.16 0.08", "0.14 0.07 0.63 0.31", "0.61 0.30"),
    "l4": ("0.076 0.038 0.14 0.07", "0.29 0.15 0.57 0.29", "1.30 0.65"),
    "l40s": ("0.025 0.013 0.05 0.03", "0.10 0.05 0.20 0.10", "0.43 0.21"),
    "a100-80gb": ("0.029 0.015 0.02 0.01", "0.11 0.06 0.08 0.04", "0.50 0.25"),
    "h100": ("0.009 0.005 0.01 0.01", "0.036 0.018 0.05 0.03", "0.16 0.08"),
}

DISTILLED = dataclasses.replace(preset("gft_tiny"), backbone="deit_tiny_distilled_patch16_224", num_prefix_tokens=2)


def terms(config, name, weights=True):
    bounds = [model_roofline(config, config.full_budget, p, device(name)) for p in ("fp16", "int8")]
    found = [b.compute_ms for b in bounds]
    return found + [b.weight_read_ms for b in bounds] if weights else found


@pytest.mark.parametrize("name", TABLE)
def test_terms_agree_with_published_figures(name):
    small, base, large = TABLE[name]
    found = terms(DEIT_S, name) + terms(VIT_B, name) + terms(VIT_B_448, name, weights=False)
    for value, printed in zip(found, f"{small} {base} {large}".split(), strict=True):
        rounding = 0.51 * 10.0 ** -len(printed.partition(".")[2])
        assert value == pytest.approx(float(printed), rel=0.015, abs=rounding)


def test_flops_and_weights_of_known_models():
    def gflop(config):
        return 2 * model_roofline(config, config.full_budget, "fp16", device("l4")).macs / 1e9

    assert gflop(DEIT_S) == pytest.approx(9.2, rel=0.01)
    assert gflop(VIT_B) == pytest.approx(35.1, rel=0.01)
    assert gflop(VIT_B_448) == pytest.approx(157, rel=0.01)
    assert count_weights(DEIT_S) == pytest.approx(21.5e6, rel=0.01)
    assert count_weights(VIT_B) == pytest.approx(85.5e6, rel=0.01)


@pytest.mark.parametrize(
    "config", [preset("gft_tiny"), preset("gft_typeface"), DISTILLED, preset("gft_base_published")]
)
def test_compute_is_that_of_the_multiply_accumulates(config):
    for budget in {config.budget, config.full_budget}:
        bound = model_roofline(config, budget, "fp16", device("orin-nano"), batch=3)
        assert bound.macs == 3 * count_macs(config, budget)
        assert bound.compute_ms == 2 * bound.macs / (device("orin-nano").peak("fp16") * 1e9)


@pytest.mark.parametrize(
    ("stages", "keep", "selections"),
    [((3, 5, 7), (147, 98, 49), 3), ((3, 5, 7), (196, 98, 98), 1), ((6, 12), (98, 49), 1), ((12,), (49,), 0)],
)
def test_a_selection_is_counted_where_patches_are_dropped_and_read_again(stages, keep, selections):
    config = preset("gft_tiny", stages=stages, budget=TokenBudget(keep, 196))
    assert model_roofline(config, config.budget, "fp16", device("b200")).num_kernels == 12 * 5 + 2 + 3 * selections


@pytest.mark.parametrize("config", [preset("gft_tiny"), preset("gft_typeface"), DISTILLED], ids=lambda c: c.backbone)
def test_weights_are_those_of_the_model(config):
    pytest.importorskip("torch")
    from gft_edge.model.gft import FocalGFT

    weights = {
        key: value.numel()
        for key, value in FocalGFT(config).named_parameters()
        if value.ndim >= 2 and not key.endswith(("_token", "pos_embed"))
    }
    assert count_weights(config) == sum(weights.values())


def test_fewer_patches_lower_compute_and_leave_the_weights():
    config = preset("gft_base")
    full, half = (model_roofline(config, b, "fp16", device("orin-nano")) for b in (config.full_budget, config.budget))
    assert half.compute_ms < 0.51 * full.compute_ms
    assert half.weight_read_ms == full.weight_read_ms
    assert full.limited_by == "compute"


def test_terms_scale_with_batch_and_precision():
    config = preset("gft_base")
    orin = device("agx-orin")
    one, eight = (model_roofline(config, config.budget, "int8", orin, batch) for batch in (1, 8))
    assert eight.compute_ms == pytest.approx(8 * one.compute_ms)
    assert eight.io_bytes == 8 * one.io_bytes
    assert eight.weight_read_ms == one.weight_read_ms
    assert eight.launch_ms == one.launch_ms
    fp16, fp32 = (model_roofline(config, config.budget, p, orin) for p in ("fp16", "fp32"))
    assert fp32.compute_ms == pytest.approx(2 * fp16.compute_ms)
    assert fp32.weight_read_ms == pytest.approx(2 * fp16.weight_read_ms)


def test_weights_in_the_cache_are_not_read_again():
    config = preset("gft_small")
    on_l40s = model_roofline(config, config.budget, "int8", device("l40s"))
    assert on_l40s.weight_bytes < 96 * 2**20
    assert on_l40s.memory_ms == on_l40s.io_bytes / 864e6 < on_l40s.weight_read_ms
    on_orin = model_roofline(config, config.budget, "int8", device("orin-nano"))
    assert on_orin.memory_ms == pytest.approx((on_orin.weight_bytes - 4 * 2**20 + on_orin.io_bytes) / 102e6)


def test_small_models_on_large_gpus_are_limited_by_launches():
    config = preset("gft_tiny")
    bound = model_roofline(config, config.budget, "fp16", device("b200"))
    assert bound.limited_by == "launches"
    assert bound.num_kernels == 12 * 5 + 3 * 3 + 2
    assert model_roofline(config, config.full_budget, "fp16", device("b200")).num_kernels == 12 * 5 + 2
    assert bound.bound_ms == pytest.approx(71 * 0.002)


def manifest(precision="fp32", dtype="float32", shape=("batch", 3, 224, 224)):
    config = preset("gft_tiny")
    return DeploymentManifest(
        model=config,
        labels=tuple(str(i) for i in range(1000)),
        preprocess=PreprocessSpec(224, 224),
        budget=config.budget,
        precision=precision,
        maps="none",
        opset=18,
        inputs=(TensorInfo("image", dtype, shape, "pixels"),),
        outputs=(TensorInfo("logits", "float32", ("batch", 1000), "scores"),),
        checkpoint_sha256="0" * 64,
    )


def test_bound_of_an_artefact():
    bound = roofline(manifest("int8"), device("thor"), batch=4)
    assert bound.precision == "int8"
    assert bound.io_bytes == 4 * (3 * 224 * 224 * 4 + 4000)
    assert roofline(manifest(dtype="uint8", shape=("batch", 224, 224, 3)), device("thor")).io_bytes == 3 * 224**2 + 4000
    assert roofline(manifest(), device("thor"), precision="fp16").weight_bytes == 2 * count_weights(preset("gft_tiny"))
    data = json.loads(json.dumps(bound.to_json()))
    assert (data["kind"], data["bound_ms"], data["limited_by"]) == ("bound", bound.bound_ms, bound.limited_by)


def test_device_without_the_precision_is_refused():
    with pytest.raises(ConfigError, match=r"roofline: Jetson Orin NX 16GB \(super\) \(8.7\) has no FP8"):
        roofline(manifest(), device("orin-nx"), precision="fp8")
    with pytest.raises(ConfigError, match=r"T4 \(7.5\) has no BF16"):
        roofline(manifest(), device("t4"), precision="bf16")
    with pytest.raises(ConfigError, match="batch must be at least 1, found 0"):
        roofline(manifest(), device("t4"), batch=0)


def test_device_without_figures_is_bounded_by_memory_alone():
    bound = roofline(manifest("int8"), device("xavier-nx"))
    assert bound.compute_ms is None
    assert bound.hardware_ms == bound.memory_ms > 0


# ViT-B/16 at 224: measured by others on real hardware.
@pytest.mark.parametrize(
    ("name", "precision", "batch", "measured_ms"),
    [
        ("orin-nano-8gb-super", "fp16", 1, 5.68),
        ("orin-nano-8gb-super", "int8", 1, 4.92),
        ("a100", "fp16", 1, 1.02),
        ("a100", "fp16", 32, 10.04),
        ("a100", "int8", 32, 6.43),
        ("a100", "fp16", 256, 48.6),
        ("t4", "fp16", 8, 14.46),
        ("t4", "int8", 32, 35.43),
    ],
)
def test_real_measurements_are_plausible(name, precision, batch, measured_ms):
    bound = model_roofline(VIT_B, VIT_B.full_budget, precision, device(name), batch)
    assert bound.bound_ms < measured_ms
    assert implausible(measured_ms, bound) is None


def test_utilisation_of_real_measurements():
    def share(name, precision, batch, measured_ms):
        return model_roofline(VIT_B, VIT_B.full_budget, precision, device(name), batch).utilisation(measured_ms)

    assert share("orin-nano", "fp16", 1, 5.68) == pytest.approx(0.37, abs=0.01)
    assert share("orin-nano", "int8", 1, 4.92) == pytest.approx(0.21, abs=0.01)
    assert share("a100", "fp16", 32, 10.04) == pytest.approx(0.36, abs=0.01)
    assert share("a100", "int8", 32, 6.43) == pytest.approx(0.28, abs=0.01)
    assert share("a100", "fp16", 256, 48.6) == pytest.approx(0.59, abs=0.01)


def test_guard_tells_what_is_wrong():
    nano = model_roofline(VIT_B, VIT_B.full_budget, "fp16", device("orin-nano"))
    assert "1.5 ms at batch 1 on orin-nano-8gb-super (fp16) is below the compute bound of 2.1" in implausible(1.5, nano)
    assert implausible(900.0, nano) is None, "at batch 1 a slow engine is only slow"
    busy = dataclasses.replace(nano, batch=8)
    assert "reaches 0.2% of the bound of 2.1" in implausible(900.0, busy)
    assert implausible(busy.bound_ms / 0.101, busy) is None
    assert implausible(busy.bound_ms / 0.099, busy) is not None
    tiny = preset("gft_tiny")
    on_b200 = model_roofline(tiny, tiny.budget, "fp16", device("b200"))
    assert "is below 71 kernel launches of 2 us" in implausible(0.1, on_b200)
    for nonsense in (0.0, -1.0, float("nan"), float("inf")):
        assert "is not a duration" in implausible(nonsense, nano)


def test_memory_bound_is_named():
    config = preset("gft_base")
    bound = model_roofline(config, TokenBudget((2, 2, 2), 196), "fp16", device("orin-nano"))
    assert "below the memory bound" in implausible(bound.memory_ms * 0.9, bound)


@pytest.mark.parametrize("name", DEVICES)
def test_every_device_has_a_bound(name):
    config = preset("gft_base")
    bound = model_roofline(config, config.budget, "int8", DEVICES[name])
    assert 0 < bound.bound_ms < 10
