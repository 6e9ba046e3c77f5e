"""The formula against torch's own counter, and the share of a plain ViT that is left."""

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from gft_edge.budget import TokenBudget
from gft_edge.config.model import SCORES, GFTConfig, preset
from gft_edge.model.build import build_model
from gft_edge.model.macs import count_macs


def counted(model, size: int, *arguments) -> int:
    # The fused attention of the CPU is not known to the counter; the plain one is. Fake tensors have shapes, no values.
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, fake, torch.no_grad():
        model.eval()(torch.zeros(1, 3, size, size), *arguments)
    assert counter.get_total_flops() % 2 == 0
    return counter.get_total_flops() // 2


@pytest.mark.parametrize("keep", [(108, 72, 36), (144, 144, 144), (20, 9, 2)])
def test_formula_equals_the_counter_on_the_convolutional_stem(keep):
    config = preset("gft_typeface")
    budget = TokenBudget(keep, 144)
    assert counted(build_model(config), 96, budget) == count_macs(config, budget)


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"stages": (1, 3), "budget": TokenBudget((10, 4), 16)},
        {"stages": (3,), "budget": TokenBudget((10,), 16)},
        {"stages": (1, 2), "budget": TokenBudget((16, 4), 16)},
        {"stages": (2,), "budget": TokenBudget((5,), 16)},
    ],
    ids=["consecutive", "last-block-selects", "last-block-alone", "all-then-few", "one-stage"],
)
def test_formula_equals_the_counter_on_small_models(changes, heads, score):
    config = {"stages": (1, 2), "budget": TokenBudget((12, 6), 16), "depth": 3, "embed_dim": 32, "num_heads": heads}
    small = preset("gft_tiny", image_size=64, num_classes=5, score=score, **{**config, **changes})
    assert counted(build_model(small), 64) == count_macs(small)


def test_formula_equals_the_counter_on_every_family(family):
    model = build_model(family)
    for keep in ((9, 4), (16, 16), (16, 7), (2, 2)):
        budget = TokenBudget(keep, 16)
        assert counted(model, family.image_size, budget) == count_macs(family, budget)


@given(
    st.lists(st.integers(2, 16), min_size=3, max_size=3),
    st.sampled_from([(1, 2, 3), (2, 3, 5), (1, 4, 5)]),
    st.sampled_from(tuple(SCORES)),
    st.sampled_from([1, 5]),
)
@settings(max_examples=12)
def test_formula_equals_the_counter(keep, stages, score, prefix):
    backbone = {1: "vit_small_patch14_dinov2", 5: "vit_small_patch14_reg4_dinov2"}[prefix]
    budget = TokenBudget(tuple(sorted(keep, reverse=True)), 16)
    config = GFTConfig(backbone, 56, 3, 14, 16, 5, 2, stages, budget, score=score, num_prefix_tokens=prefix)
    assert counted(build_model(config), 56) == count_macs(config)


def test_full_budget_counts_the_plain_network(family, plain_vit):
    assert count_macs(family, family.full_budget) == counted(plain_vit(family), family.image_size)


def test_published_variant_is_counted_as_deployed():
    config = preset("gft_base_published", image_size=64, embed_dim=64, num_heads=1, depth=4, stages=(2,) * 3)
    assert counted(build_model(config), 64) == count_macs(config)


def test_gft_base_takes_half_of_a_plain_vit():
    base = preset("gft_base")
    plain = count_macs(base, base.full_budget)
    assert plain == counted(timm.create_model("vit_base_patch16_224"), 224) == 17_563_828_224
    assert count_macs(base) == counted(build_model(base), 224) == 8_783_492_352
    assert count_macs(base) <= 0.5002 * plain


@pytest.mark.parametrize(
    ("name", "least", "most"), [("gft_base", 0.95, 1.0), ("gft_small", 1.0, 1.05), ("gft_tiny", 1.1, 1.15)]
)
def test_448_pixels_cost_about_what_224_cost_a_plain_vit(name, least, most):
    large, base = preset(f"{name}_448"), preset(name)
    assert least <= count_macs(large) / count_macs(base, base.full_budget) <= most
    assert count_macs(large, large.full_budget) >= 4.5 * count_macs(large)
