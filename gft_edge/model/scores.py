"""Scores that rank the patches of a selecting block, each a plain function of the block's own queries and keys.

Notation: B images, T tokens, N patches, H heads, d channels per head, C = H d. The tokens are those before the patches (the
class token first) and the patches. A score needs only to rank: factors and terms that are the same for all patches of an
image are left out. None needs the attention matrix: mean_i (q_i . k_j) = (mean_i q_i) . k_j.

Attention does not change when one vector is added to every key, since softmax over the keys removes q_i . b. Scores of the
columns (how much attention a patch receives) do not change their ranking either; scores of the rows do, so they rank by
something that attention ignores.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from gft_edge.config.model import SCORES as NAMES
from gft_edge.model import gala

RANDOM_RANGE = 1 << 22
"""Integers up to here are exact in float32."""
RANDOM_FACTORS = (2246822519, 3266489917)
"""Odd, hence invertible modulo a power of two."""
Operand = Literal["mean query", "class query", "mean key"]


@dataclass(frozen=True)
class Score:
    """One way to rank patches: products of every patch with one vector per head, and what is made of them.

    Args:
        operand: the vector. With a query the products are those of the keys, q . k_j; with the mean key those of the queries.
        finish: maps products (B, M, H) to one value per token (B, M).
        by_head: whether ``finish`` reads the heads apart; else the products are sums over all heads, (B, M, 1).
        all_tokens: whether ``finish`` reads every token (M = T) or the patches alone (M = N).
        reads_neighbours: whether the order of the patches matters; to the random score too, which goes by their places.
    """

    operand: Operand
    finish: Callable[[Tensor], Tensor]
    by_head: bool = True
    all_tokens: bool = False
    reads_neighbours: bool = False

    def __call__(self, q: Tensor, k: Tensor, num_heads: int, prefix: int) -> Tensor:
        """Returns the scores (B, N) from queries and keys of all tokens, (B, T, C) each; ``prefix`` tokens are no patches."""
        tokens, others = (q, k) if self.operand == "mean key" else (k, q)
        vector = self._scaled(_exact(_vector(self.operand, others, prefix)), num_heads)
        tokens = self._read(tokens, prefix)
        if not self.by_head:
            return self._finished(tokens @ vector.unsqueeze(2), prefix)
        products = (tokens * vector.unsqueeze(1)).unflatten(2, (num_heads, -1)).sum(dim=3)
        return self._finished(products, prefix)

    def folded(self, z: Tensor, weight: Tensor, bias: Tensor | None, num_heads: int, prefix: int) -> Tensor:
        """Returns the scores (B, N) from the input of the projection to queries, keys and values, without these.

        W_k z_j . a = z_j . (W_k^T a): the vector is carried back through the weights, so that a layer which computes queries and
        keys from rounded values ranks by exact ones, at C^2 multiplications per image and C per patch.

        Args:
            z: normalised tokens, (B, T, C).
            weight: of the projection, (3 C, C): queries, keys, values.
            bias: of the projection, (3 C,), or None.
        """
        width, heads = z.shape[-1], num_heads if self.by_head else 1
        w_q, w_k = weight[:width].to(z.dtype), weight[width : 2 * width].to(z.dtype)
        b_q, b_k = (None, None) if bias is None else (b.to(z.dtype) for b in (bias[:width], bias[width : 2 * width]))
        of_key = self.operand == "mean key"
        vector = F.linear(_vector(self.operand, z, prefix), w_k if of_key else w_q, b_k if of_key else b_q)
        vector = self._scaled(vector, num_heads)
        rows = (w_q if of_key else w_k).unflatten(0, (heads, -1))
        directions = _exact((vector.unflatten(1, (heads, 1, -1)) @ rows).squeeze(2))
        return self._finished(self._read(z, prefix) @ directions.transpose(1, 2), prefix)

    def matrix(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Returns what makes the direction of :meth:`folded` of a mean token m: A (C, C) and c (C,), A m + c, in float64.

        A = W_k^T W_q and c = W_k^T b_q are constants once the weights are: half the multiplications and half the weights.

        Args:
            weight: of the projection, (3 C, C): queries, keys, values.
            bias: of the projection, (3 C,), or None.

        Raises:
            ValueError: the score reads the heads apart, which would take a matrix for each.
        """
        if self.by_head:
            raise ValueError("a score that reads the heads apart has no single matrix")
        w_q, w_k, _ = weight.double().chunk(3)
        return w_k.T @ w_q, None if bias is None else w_k.T @ bias.double()[: len(w_q)]

    def by_matrix(self, z: Tensor, matrix: Tensor, offset: Tensor | None, prefix: int) -> Tensor:
        """Returns the scores (B, N) of normalised tokens (B, T, C) by the constants of :meth:`matrix`."""
        direction = _exact(F.linear(_vector(self.operand, z, prefix), matrix, offset))
        return self._finished(self._read(z, prefix) @ direction.unsqueeze(2), prefix)

    def _read(self, tokens: Tensor, prefix: int) -> Tensor:
        """Returns the tokens whose products are read, (B, M, C)."""
        return _exact(tokens if self.all_tokens else tokens[:, prefix:])

    def _finished(self, products: Tensor, prefix: int) -> Tensor:
        """Returns the scores (B, N) of products (B, M, H)."""
        values = self.finish(products)
        return values[:, prefix:] if self.all_tokens else values

    def _scaled(self, vector: Tensor, num_heads: int) -> Tensor:
        """Returns the vector over the root of d where a function of the products that is not linear reads them."""
        return vector * (vector.shape[-1] // num_heads) ** -0.5 if self.by_head else vector


def _vector(operand: Operand, tokens: Tensor, prefix: int) -> Tensor:
    """Returns the class token or the mean of the patches of tokens (B, T, C): (B, C)."""
    return tokens[:, 0] if operand == "class query" else tokens[:, prefix:].mean(dim=1)


def _exact(tensor: Tensor) -> Tensor:
    """Returns half-precision operands of a product in float32; autocast would turn them back.

    The scores of an image lie close together far from zero: rounded to 8 or 11 bits many are equal, and the ranking is lost.
    """
    is_half = tensor.dtype in gala.LOW_PRECISION and not torch.is_autocast_enabled(tensor.device.type)
    return tensor.float() if is_half else tensor


def _class_attention(products: Tensor) -> Tensor:
    """Returns the attention of the class token, mean over heads: the rule of EViT (Liang et al., 2022, arXiv 2202.07800)."""
    return products.softmax(dim=1).mean(dim=2)


def _sum(products: Tensor) -> Tensor:
    return products.squeeze(2)


def _gradient(products: Tensor) -> Tensor:
    """Returns steps 2 to 4 of GALA: gradient along the patches, absolute value, mean over heads, sum of three neighbours."""
    gradient = gala.spatial_gradient(products).abs().mean(dim=2)
    return F.avg_pool1d(gradient.unsqueeze(1), 3, stride=1, padding=1).squeeze(1)


def _random(products: Tensor) -> Tensor:
    """Returns one pseudo-random order of the positions, the same for every image: distinct integers below 2^22."""
    count = products.shape[1]
    bits = (torch.arange(count, device=products.device) * 2654435 + 1013904) % RANDOM_RANGE
    for factor in RANDOM_FACTORS:  # each step is one-to-one on 22 bits
        bits = (bits ^ (bits >> 11)) * factor % RANDOM_RANGE
    return (bits ^ (bits >> 11)).to(torch.float32).expand(products.shape[0], -1)


SCORES: Mapping[str, Score] = types.MappingProxyType(
    {
        "column-mean": Score("mean query", _sum, by_head=False),
        "column-gala": Score("mean query", _gradient, reads_neighbours=True),
        "row-gala": Score("mean key", _gradient, reads_neighbours=True),
        "class-row": Score("class query", _class_attention, all_tokens=True),
        "random": Score("mean query", _random, by_head=False, reads_neighbours=True),
    }
)
"""Attention a patch receives; its gradient along the patches; the gradient of the mean score of a row, as published; attention
of the class token; a control."""
assert tuple(SCORES) == NAMES
