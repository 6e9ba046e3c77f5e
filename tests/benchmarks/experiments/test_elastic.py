"""The study's control changes which patches stay, and puts the model's own rule back."""

import torch

from gft_edge.benchmarks.experiments.elastic import choosing
from gft_edge.model.selection import select_patches


@torch.no_grad()
def test_another_choice_is_made_within_the_block_alone(tiny_model):
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))

    def kept():
        return [stage.kept for stage in tiny_model(images, maps=True).stages]

    usual = kept()
    with choosing(tiny_model, lambda scores, k: select_patches(-scores, k)):
        least = kept()
    assert not torch.equal(usual[0], least[0])
    everything = torch.arange(16).expand(4, 16)
    assert [len(set(row.tolist())) for row in torch.cat((usual[0], least[0]), dim=1)] == [
        len(row) for row in everything
    ]
    assert all(torch.equal(a, b) for a, b in zip(usual, kept()))
