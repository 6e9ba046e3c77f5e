"""The projector that stays: it changes nothing at first, and is folded into one layer at the end."""

import pytest
import torch
from torch import nn

from gft_edge.config.model import preset
from gft_edge.distill.lift import LiftedHead, classifier_of, folded, lift_head
from gft_edge.errors import ConfigError
from gft_edge.model.build import build_model


def test_a_lifted_head_computes_what_the_head_did_and_folds_into_one_layer():
    head, x = nn.Linear(5, 3), torch.randn(7, 5)
    lifted = LiftedHead(head, 9)
    assert torch.allclose(lifted(x), head(x), atol=1e-5)
    nn.init.normal_(lifted.lift.weight)
    nn.init.normal_(lifted.lift.bias)
    assert torch.allclose(lifted.folded()(x), lifted(x), atol=1e-4)


@pytest.mark.parametrize("changes", [None, {"backbone": "resnet10t", "image_size": 32, "num_classes": 4}])
def test_any_student_with_one_classifier_is_lifted(tiny_config, changes):
    config = preset("resnet50", **changes) if changes else tiny_config
    model = build_model(config).eval()
    images = torch.randn(2, 3, 32, 32)
    names, before = list(model.state_dict()), model(images)
    lift = lift_head(model, 600)
    assert lift.out_features == 600
    assert isinstance(classifier_of(model, "student"), LiftedHead)
    assert torch.allclose(model(images), before, atol=1e-4)
    with folded(model):
        assert list(model.state_dict()) == names
        assert torch.allclose(model(images), before, atol=1e-4)
    assert isinstance(classifier_of(model, "student"), LiftedHead)


def test_a_narrower_teacher_is_refused(tiny_config):
    with pytest.raises(ConfigError, match="features are 16 wide, the student's 32"):
        lift_head(build_model(tiny_config), 16)
