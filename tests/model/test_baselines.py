"""Models to compare with: what they compute, and that every step of the chain takes them."""

import numpy as np
import pytest
import timm
import torch

from gft_edge.budget import NO_BUDGET, TokenBudget
from gft_edge.config.model import GFTConfig
from gft_edge.config.recipe import TrainSection
from gft_edge.errors import ConfigError
from gft_edge.model.baselines import TransFG
from gft_edge.model.build import build_model
from gft_edge.train.optim import parameter_groups


def config_of(backbone: str, variant: str = "timm", image_size: int = 160) -> GFTConfig:
    return GFTConfig(backbone, image_size, 5, variant=variant)


@pytest.mark.parametrize("backbone", ["test_vit", "test_resnet", "test_convnext"])
def test_a_timm_classifier_gives_timms_logits(backbone, make_model):
    model = make_model(config_of(backbone))
    plain = timm.create_model(backbone, num_classes=5).eval()
    plain.load_state_dict(model.network.state_dict())
    images = torch.randn(2, 3, 160, 160)
    with torch.no_grad():
        assert torch.equal(model(images, NO_BUDGET), plain(images))
        assert model(images, maps=True).stages == []
    with pytest.raises(ConfigError, match="does not fit a model"):
        model(images, TokenBudget((4,), 16))


def slow_parts(matrices):
    """Product of whole matrices, head by head, in float64."""
    batch, heads, tokens, _ = matrices[0].shape
    chosen = np.zeros((batch, 1 + heads), dtype=np.int64)
    for b in range(batch):
        for h in range(heads):
            product = np.eye(tokens)
            for weights in matrices:
                product = weights[b, h].double().numpy() @ product
            chosen[b, 1 + h] = 1 + int(product[0, 1:].argmax())
    return chosen


def test_transfg_selects_by_the_product_of_all_attention_matrices():
    torch.manual_seed(0)
    matrices = [torch.randn(3, 4, 10, 10).mul(3).softmax(dim=-1) for _ in range(5)]
    assert np.array_equal(TransFG.parts(matrices).numpy(), slow_parts(matrices))


def test_transfg_is_the_vision_transformer_up_to_its_last_block(make_model):
    model = make_model(config_of("test_vit", "transfg"))
    vit = timm.create_model("test_vit", num_classes=5).eval()
    vit.load_state_dict(model.network.state_dict())
    images = torch.randn(2, 3, 160, 160)
    attentions, hidden = [], []
    for block in vit.blocks[:-1]:
        block.attn.fused_attn = False
        block.attn.attn_drop.register_forward_hook(lambda _, inputs, output: attentions.append(output))
    vit.blocks[-1].register_forward_pre_hook(lambda _, inputs: hidden.append(inputs[0]))
    with torch.no_grad():
        vit(images)
        chosen = torch.from_numpy(slow_parts(attentions))
        x = torch.stack([hidden[0][row, chosen[row]] for row in range(2)])
        expected = vit.head(vit.norm(vit.blocks[-1](x))[:, 0])
        assert torch.allclose(model(images), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("backbone", "variant"), [("test_vit", "timm"), ("test_resnet", "timm"), ("test_vit", "transfg")]
)
@torch.no_grad()
def test_features_and_head_make_the_logits(make_model, backbone, variant):
    model = make_model(config_of(backbone, variant))
    images = torch.randn(2, 3, 160, 160, generator=torch.Generator().manual_seed(0))
    x = model.forward_features(images)
    features = model.forward_head(x, pre_logits=True)
    assert features.shape == (2, model.network.num_features)
    assert torch.equal(model.forward_head(x), model(images))
    assert torch.equal(model.network.get_classifier()(features), model(images))


@pytest.mark.parametrize("variant", ["timm", "transfg"])
def test_every_parameter_of_a_baseline_learns_and_recomputing_changes_nothing(variant):
    torch.manual_seed(0)
    model = build_model(config_of("test_vit", variant)).train()
    images, gradients = torch.randn(2, 3, 160, 160), []
    for recompute in (False, True):
        model.set_grad_checkpointing(recompute)
        model.zero_grad()
        model(images).logsumexp(dim=1).sum().backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters()})
    assert gradients[0].keys() == gradients[1].keys() == dict(model.named_parameters()).keys()
    assert all(torch.allclose(gradients[0][name], g, atol=1e-6) for name, g in gradients[1].items())


def test_layers_of_a_baseline_learn_at_their_own_rates():
    model = build_model(config_of("test_vit"))
    groups = parameter_groups(model, model.config, TrainSection(layer_decay=0.5, weight_decay=0.1))
    scales = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    decays = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert len(scales) == len(list(model.parameters()))
    network = model.network
    assert scales[id(network.head.weight)] == 1
    assert scales[id(network.blocks[0].mlp.fc1.weight)] == 0.5 * scales[id(network.blocks[1].mlp.fc1.weight)]
    assert (decays[id(network.pos_embed)], decays[id(network.head.bias)], decays[id(network.head.weight)]) == (
        0,
        0,
        0.1,
    )


@pytest.mark.parametrize(
    ("backbone", "variant", "message"),
    [
        ("no_such_net", "timm", "timm cannot build it"),
        ("test_resnet", "transfg", "not a plain timm Vision Transformer"),
        ("test_vit2", "transfg", "not a plain timm Vision Transformer"),
    ],
)
def test_a_backbone_that_cannot_be_used_is_named(backbone, variant, message):
    with pytest.raises(ConfigError, match=message):
        build_model(config_of(backbone, variant))


def test_pretrained_weights_that_cannot_be_had_are_said_so(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match=r"'test_vit': timm cannot build it .*set model\.pretrained=false"):
        build_model(config_of("test_vit"), pretrained=True)
