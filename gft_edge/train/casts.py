"""The weights of a pass in half precision, cast by a few operations instead of one per weight.

Autocast casts every weight and bias of a linear layer or convolution by an operation of its own, and their gradients back by as
many. A GPU casts them in a fraction of the time that it takes to launch so many kernels. Here the same casts are made for
groups of weights: the numbers are the same to the bit.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

CAST = (nn.Linear, nn.Conv2d)
"""Layers whose weights autocast casts; not those derived from them, which may read their weights in other ways."""
GROUP = 16
"""Weights that are cast together. Gradients leave the backward pass by groups: several processes exchange those of one while
others are computed, and no more than these wait in half precision."""
FIRST = 2**63
"""Sequence number of the casts. The backward pass takes what is ready by falling numbers; the casts, made before the layers, would
come last, and all gradients would wait for them."""


class _Cast(torch.autograd.Function):
    """Casts tensors to a type, and their gradients back to float32."""

    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, *weights: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        return _copies(weights, dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        found = iter(_copies([gradient for gradient in gradients if gradient is not None], torch.float32))
        return (None, *(None if gradient is None else next(found) for gradient in gradients))


def _copies(tensors: Sequence[Tensor], dtype: torch.dtype) -> tuple[Tensor, ...]:
    copies = tuple(torch.empty_like(tensor, dtype=dtype) for tensor in tensors)
    if copies:
        torch._foreach_copy_(copies, tuple(tensors))
    return copies


Place = tuple[dict[str, Tensor | None], str]
"""The parameters of a layer by name, and the name of one of them."""


def places_of(model: nn.Module) -> list[Place]:
    """Returns where a model keeps the weights to cast: float32, with a gradient, of the layers in :data:`CAST`."""
    return [
        (cast("dict[str, Tensor | None]", module._parameters), name)
        for module in model.modules()
        if type(module) in CAST
        for name, weight in module._parameters.items()
        if weight is not None and weight.requires_grad and weight.dtype is torch.float32
    ]


@contextlib.contextmanager
def cast_weights(places: Sequence[Place], dtype: torch.dtype) -> Iterator[None]:
    """Puts casts of weights where the weights are, for a forward and its backward pass; gradients reach the weights.

    Outside autocast the layers cannot compute with float32 inputs meanwhile.

    Args:
        places: of :func:`places_of`.
        dtype: of autocast.
    """
    weights = [parameters[name] for parameters, name in places]
    given = cast("list[Tensor]", weights)
    casts: list[Tensor] = []
    for start in range(0, len(given), GROUP):
        group = _Cast.apply(dtype, *given[start : start + GROUP])
        # There is no node under no_grad. The setter is no public one; without it the gradients only arrive later.
        if (order := getattr(group[0].grad_fn, "_set_sequence_nr", None)) is not None:
            order(FIRST)
        casts += group
    try:
        for (parameters, name), found in zip(places, casts):
            parameters[name] = found
        yield
    finally:
        for (parameters, name), weight in zip(places, weights):
            parameters[name] = weight
