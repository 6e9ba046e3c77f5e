"""The small steps of a selecting block, each in several ways that give the same result, timed against each other.

Notation: B images, T tokens, N patches, k kept, R = k + 1 rows, C width, H heads.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import PatchEmbed
from torch import Tensor

from gft_edge.benchmarks.experiments.gpu.inference import figures
from gft_edge.benchmarks.experiments.gpu.scale import Place, Scale, reason
from gft_edge.benchmarks.experiments.gpu.timing import Call, Replay, interleaved
from gft_edge.config.model import GFTConfig
from gft_edge.model.layers import embed_patches
from gft_edge.model.scores import SCORES
from gft_edge.model.selection import gather_all, gather_tokens, select_patches, select_unordered, token_indices

CALLS = 20
"""Of a step in one graph, so that the gaps between graphs do not count."""
ROUNDS, LEAST_MS = 8, 2.0
FIRST = 6e4
"""Score that puts the class token before every patch; float16 can express it."""

Groups = dict[str, dict[str, Callable[[], Tensor]]]


class Block:
    """The tensors of the first selecting block, random.

    Args:
        config: sizes and budget.
        batch: images.
        place: device and type.
    """

    def __init__(self, config: GFTConfig, batch: int, place: Place) -> None:
        tokens, width = config.num_patches + 1, config.embed_dim
        options: dict[str, Any] = {"device": place.device, "dtype": place.dtype}
        self.heads, self.kept_count, self.score = config.num_heads, config.budget.keep[0], SCORES["column-mean"]
        self.x = torch.randn(batch, tokens, width, **options)
        self.qkv = torch.randn(batch, tokens, 3 * width, **options)
        self.q, self.k, self.v = self.qkv.chunk(3, dim=2)
        self.scores = self.score(self.q, self.k, self.heads, 1)
        self.kept = select_patches(self.scores, self.kept_count)
        self.rows = token_indices(self.kept, 1)
        self.numbers = torch.arange(batch, device=place.device).unsqueeze(1)
        self.mean = torch.full((batch, 1, tokens), 1 / config.num_patches, **options)
        self.mean[:, :, 0] = 0
        self.first = torch.zeros(1, tokens, 1, **options)
        self.first[:, 0] = FIRST
        self.q_rows = gather_tokens(self.q, self.rows)
        self.images = torch.randn(batch, 3, config.image_size, config.image_size, **options)
        self.embedding = PatchEmbed(config.image_size, config.patch_size, 3, width).to(**options)

    def groups(self) -> Groups:
        """Returns the ways of each step; those of one step return equal values, kept indices as a sorted list."""
        k = self.kept_count
        return {
            "scores": {
                "mean, bmm": lambda: self.score(self.q, self.k, self.heads, 1),
                "mean, multiply, sum": lambda: (self.k * self.q[:, 1:].mean(1, keepdim=True)).sum(2)[:, 1:],
                "two bmm": lambda: (self.mean @ self.q @ self.k.transpose(1, 2))[:, 0, 1:],
                "bmm, transposed bmm": lambda: (self.k @ (self.mean @ self.q).transpose(1, 2))[:, 1:, 0],
            },
            "choose": {
                "topk, unsorted": lambda: select_unordered(self.scores, k),
                "topk, sort": lambda: select_patches(self.scores, k),
                "topk": lambda: self.scores.topk(k, dim=1).indices,
                "sort": lambda: self.scores.sort(dim=1, descending=True).indices[:, :k],
            },
            "rows": {
                "as in the model": lambda: torch.cat(gather_all((self.x, self.q), self.rows)),
                "gather": lambda: torch.cat((self._gathered(self.x), self._gathered(self.q))),
                "index": lambda: torch.cat((self.x[self.numbers, self.rows], self.q[self.numbers, self.rows])),
            },
            "attention": {
                "rows": lambda: self._attention(self.q_rows),
                "every token": lambda: self._attention(self.q).gather(
                    1, self.rows.unsqueeze(2).expand(-1, -1, self.x.shape[2])
                ),
            },
            "selection": {
                "as in the model": self.as_in_the_model,
                "class token first by its score, sort": self.by_sort,
            },
            "embedding": {
                "as in the model": lambda: embed_patches(self.embedding, self.images),
                "convolution": lambda: self.embedding(self.images),
            },
        }

    def as_in_the_model(self) -> Tensor:
        """Returns rows of tokens and queries (2 B, R, C): mean, bmm, top k, add, pad, rows of two tensors."""
        kept = select_unordered(self.score(self.q, self.k, self.heads, 1), self.kept_count)
        return torch.cat(gather_all((self.x, self.q), token_indices(kept, 1)))

    def by_sort(self) -> Tensor:
        """Returns the same rows: mean, bmm that adds the class token's score, sort, rows of two tensors."""
        vector = self.q[:, 1:].mean(dim=1).unsqueeze(2)
        scores = torch.baddbmm(self.first, self.k, vector).squeeze(2)
        rows = scores.sort(dim=1, descending=True).indices[:, : self.kept_count + 1]
        return torch.cat(gather_all((self.x, self.q), rows))

    def _gathered(self, tokens: Tensor) -> Tensor:
        return tokens.gather(1, self.rows.unsqueeze(2).expand(-1, -1, tokens.shape[2]))

    def _attention(self, rows: Tensor) -> Tensor:
        q, k, v = (t.unflatten(2, (self.heads, -1)).transpose(1, 2) for t in (rows, self.k, self.v))
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


@torch.no_grad()
def run(scale: Scale, place: Place, until: float, say: Callable[[str], None]) -> dict[str, Any]:
    """Times every way of every step at each batch size.

    The steps that end in two tensors join them, which all ways of the step pay alike.

    Returns:
        ``rows`` with the time of one call, in microseconds too; ``errors``.
    """
    rows: list[dict[str, Any]] = []
    errors: list[dict[str, Any]] = []
    for batch in scale.batches:
        if time.monotonic() > until:
            errors.append({"batch": batch, "error": "no time left"})
            continue
        block = Block(scale.config, batch, place)
        replays: dict[str, Replay] = {}
        for step, ways in block.groups().items():
            for way, call in ways.items():
                try:
                    replays[f"{step}: {way}"] = Replay(_repeated(call), place)
                except Exception as error:
                    errors.append({"name": f"{step}: {way}", "batch": batch, "error": reason(error)})
        for name, latency in interleaved(replays, ROUNDS, LEAST_MS, place, until).items():
            row = figures(latency, batch * CALLS)
            rows.append({"name": name, "batch": batch, **row, "us": 1e3 * latency.p50_ms / CALLS})
    say(f"pieces: {len(rows)} timings")
    return {"calls": CALLS, "rows": rows, "errors": errors}


def _repeated(call: Call) -> Call:
    def calls() -> Any:
        for _ in range(CALLS):
            found = call()
        return found

    return calls
