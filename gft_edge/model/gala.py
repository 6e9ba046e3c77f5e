"""GALA: the importance of a patch is the spatial gradient of its mean attention score.

Notation: B images, N patches, H heads, C width, d = C / H. Steps are numbered as in arXiv 2504.09852.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from gft_edge.constants import TEMPERATURE

STD_EPSILON = 1e-6
VARIANCE_FLOOR = 1e-24
LOW_PRECISION = (torch.float16, torch.bfloat16)


def mean_scores(x: Tensor, q_weight: Tensor, k_weight: Tensor, num_heads: int, k_bias: Tensor | None = None) -> Tensor:
    """Returns the mean over all keys of the pre-softmax attention scores, without the attention matrix (step 1).

    mean_j (q_i . k_j) = q_i . (mean_j k_j), and by linearity q_i . kbar = x_i . (Wq^T kbar) with kbar = Wk xbar: two
    matrix-vector products and N H C multiplications in place of N^2 C, exactly.

    Args:
        x: normalised patch tokens, (B, N, C).
        q_weight, k_weight: projections, (C, C), output features grouped by head.
        k_bias: of the keys, (C,), or None. That of the queries adds the same to all patches, which their gradient removes.

    Returns:
        (B, N, H); float32 from half-precision inputs: the selection of patches is not computed with 8 or 11 bits.
    """
    if x.dtype in LOW_PRECISION:
        x, q_weight, k_weight = x.float(), q_weight.float(), k_weight.float()
        k_bias = None if k_bias is None else k_bias.float()
    width = x.shape[-1]
    head_dim = width // num_heads
    mean_key = F.linear(x.mean(dim=1), k_weight, k_bias).reshape(-1, num_heads, 1, head_dim)
    direction = mean_key @ (q_weight * head_dim**-0.5).reshape(num_heads, head_dim, width)
    return x @ direction.squeeze(2).transpose(1, 2)


def spatial_gradient(m: Tensor) -> Tensor:
    """Returns the derivative along dim 1: central differences, one-sided at both ends (step 2). (B, N, H) to (B, N, H), N >= 2."""
    first = m[:, 1:2] - m[:, 0:1]
    last = m[:, -1:] - m[:, -2:-1]
    inner = (m[:, 2:] - m[:, :-2]) * 0.5
    return torch.cat((first, inner, last), dim=1)


def standardized_scores(m: Tensor, kernel: Tensor | None = None) -> Tensor:
    """Computes steps 2 to 5: gradient, absolute value, mean over heads, smoothing of width 3, standardisation over N.

    Args:
        m: mean scores, (B, N, H).
        kernel: smoothing weights, (1, 1, 3); ones by default.

    Returns:
        (B, N), zero mean and unit (unbiased) standard deviation per image.
    """
    g = spatial_gradient(m).abs().mean(dim=2)
    kernel = torch.ones(1, 1, 3, device=g.device) if kernel is None else kernel
    s = F.conv1d(g.unsqueeze(1), kernel.to(g.dtype), padding=1).squeeze(1)
    centered = s - s.mean(dim=1, keepdim=True)
    variance = centered.square().sum(dim=1, keepdim=True) / (s.shape[1] - 1)
    # The floor keeps the gradient of the root finite on constant images.
    return centered / (variance.clamp_min(VARIANCE_FLOOR).sqrt() + STD_EPSILON)


def importance(scores: Tensor) -> Tensor:
    """Computes step 7: softmax over the patches at temperature 0.1. (B, N) to (B, N), each row summing to 1."""
    return torch.softmax(scores / TEMPERATURE, dim=1)
