"""Feature distillation with a projector that stays: the student's features are lifted to the teacher's width and classified there.

Plain feature matching fails when compressing: a projector that is thrown away after training may absorb what the student's own
width cannot hold, so the features that the classifier reads are not those that were matched (encoding mismatch; arXiv 2511.15572).
Here the classifier reads the lifted features. Projector and classifier are both linear, so at the end they are multiplied into one
layer of the student's own shape: the projector stays, and costs nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from gft_edge.errors import ConfigError
from gft_edge.model.baselines import TimmClassifier


class LiftedHead(nn.Module):
    """A classifier behind a projector to the teacher's width; at first it computes what the classifier alone did.

    The projector L has orthonormal columns, so that the classifier W L^T of the lifted features L f gives W f.

    Args:
        head: W, of the student.
        width: of the teacher's features, at least the student's.
    """

    def __init__(self, head: nn.Linear, width: int) -> None:
        super().__init__()
        options: dict[str, Any] = {"device": head.weight.device, "dtype": head.weight.dtype}
        self.lift = nn.Linear(head.in_features, width, **options)
        self.classifier = nn.Linear(width, head.out_features, **options)
        with torch.no_grad():
            columns, _ = torch.linalg.qr(torch.randn(width, head.in_features))
            self.lift.weight.copy_(columns)
            self.lift.bias.zero_()
            self.classifier.weight.copy_(head.weight @ self.lift.weight.T)
            self.classifier.bias.copy_(torch.zeros(head.out_features) if head.bias is None else head.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Returns logits (..., classes) of features (..., C)."""
        return self.classifier(self.lift(x))

    def folded(self) -> nn.Linear:
        """Returns the one layer that computes the same."""
        lift, last = self.lift, self.classifier
        layer = nn.Linear(lift.in_features, last.out_features, device=lift.weight.device, dtype=lift.weight.dtype)
        with torch.no_grad():
            weight = last.weight.double() @ lift.weight.double()
            bias = last.weight.double() @ lift.bias.double() + last.bias.double()
            layer.weight.copy_(weight)
            layer.bias.copy_(bias)
        return layer


def classifier_of(model: nn.Module, what: str) -> nn.Module:
    """Returns the layer that makes logits of features.

    Raises:
        ConfigError: there is not exactly one such linear layer.
    """
    parent, name = _place(model)
    layer = getattr(parent, name, None)
    if not isinstance(layer, (nn.Linear, LiftedHead)) or hasattr(model, "head_dist"):
        raise ConfigError(f"distill.feature_weight: the {what} has no single linear classifier; leave it out")
    return layer


def lift_head(model: nn.Module, width: int) -> nn.Linear:
    """Replaces the classifier of a student by a :class:`LiftedHead`; returns its projector.

    Raises:
        ConfigError: the teacher is narrower than the student, or the student has no single linear classifier.
    """
    head = classifier_of(model, "student")
    assert isinstance(head, nn.Linear)
    if width < head.in_features:
        raise ConfigError(
            f"distill.feature_weight: the teacher's features are {width} wide, the student's {head.in_features}; features are "
            "lifted to a wider teacher, leave it out"
        )
    lifted = LiftedHead(head, width)
    setattr(*_place(model), lifted)
    return lifted.lift


@contextlib.contextmanager
def folded(model: nn.Module) -> Iterator[None]:
    """Gives a model its classifier of one layer inside the block, if it was lifted."""
    parent, name = _place(model)
    head = getattr(parent, name, None)
    if not isinstance(head, LiftedHead):
        yield
        return
    setattr(parent, name, head.folded())
    try:
        yield
    finally:
        setattr(parent, name, head)


def _place(model: nn.Module) -> tuple[nn.Module, str]:
    """Returns the module that holds the classifier, and its name there."""
    if not isinstance(model, TimmClassifier):
        return model, "head"
    found = model.network.pretrained_cfg.get("classifier")
    *path, name = found.split(".") if isinstance(found, str) else ["head"]
    return model.network.get_submodule(".".join(path)), name
