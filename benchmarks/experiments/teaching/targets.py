"""Other targets of the score than the product's, all read from a pass with every patch and its gradients.

Notation: B images, T tokens, N patches, H heads, d channels per head, C = H d.
"""

from __future__ import annotations

import types
from collections.abc import Mapping

from torch import Tensor

from gft_edge.distill import teacher
from gft_edge.distill.alignment import Target, Traces, attention_of, gradient_attention


def taylor(traces: Traces, number: int, heads: int, prefix: int) -> Tensor:
    """Returns the effect on the loss of dropping a patch before the block, to first order: |sum_c x_jc dL/dx_jc|.

    Molchanov et al., 2017 (arXiv 1611.06440), there for channels.
    """
    of = traces[number]
    return (of.tokens * of.token_gradient).sum(dim=2).abs()[:, prefix:]


def taylor_behind(traces: Traces, number: int, heads: int, prefix: int) -> Tensor:
    """Returns the effect of dropping a patch behind the block, which is what a selecting block does; as :func:`taylor`."""
    return taylor(traces, number + 1, heads, prefix)


def rollout(traces: Traces, number: int, heads: int, prefix: int) -> Tensor:
    """Returns what reaches the class token from a patch through the later blocks: the class row of the product of (A + I) / 2.

    A is the mean over the heads (Abnar and Zuidema, 2020, arXiv 2005.00928).
    """
    later = [of for place, of in sorted(traces.items()) if place > number]
    return teacher.rollout([attention_of(of, heads).mean(dim=1) for of in later])[:, prefix:]


TARGETS: Mapping[str, Target] = types.MappingProxyType(
    {
        "taylor": taylor,
        "taylor-behind": taylor_behind,
        "gradient-attention": gradient_attention,
        "rollout": rollout,
    }
)
"""By name."""
