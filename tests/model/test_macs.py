"""The formula against torch's own counter, and the share of a plain ViT that is left."""

import pytest
import timm
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from gft_edge.budget import TokenBudget
from gft_edge.config.model import preset
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


@pytest.mark.parametrize(
    "changes",
    [{}, {"stages": (1, 3), "budget": TokenBudget((10, 4), 16)}, {"stages": (2,), "budget": TokenBudget((5,), 16)}],
    ids=["last-block", "stage-at-the-end", "one-stage"],
)
def test_formula_equals_the_counter_on_small_models(changes):
    config = {"stages": (1, 2), "budget": TokenBudget((12, 6), 16), "depth": 3, "embed_dim": 32, "num_heads": 2}
    small = preset("gft_tiny", image_size=64, num_classes=5, **{**config, **changes})
    assert counted(build_model(small), 64) == count_macs(small)


def test_published_variant_is_counted_as_deployed():
    config = preset("gft_base_published", image_size=64, embed_dim=64, num_heads=1, depth=4, stages=(2,) * 3)
    assert counted(build_model(config), 64) == count_macs(config)


def test_gft_base_takes_at_most_56_per_cent_of_a_plain_vit():
    plain = counted(timm.create_model("vit_base_patch16_224"), 224)
    base = preset("gft_base")
    assert counted(build_model(base), 224) == count_macs(base)
    assert count_macs(base) <= 0.56 * plain
    assert round(plain / 1e9, 2) == 17.56
