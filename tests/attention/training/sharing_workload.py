"""Gradients of one step, by what processes share; the first of them writes all to a folder."""

import sys
from pathlib import Path

import torch

from mnemos.attention.patterns.hybrid import HybridModel
from mnemos.attention.patterns.hybrid_config import HybridConfig
from mnemos.attention.patterns.mixer import MixerConfig
from mnemos.attention.training.batches import Sample, make_batch, next_tokens
from mnemos.attention.training.distributed import Place, joined
from mnemos.attention.training.objective import Sharing, Weights, objective

_MIXER = MixerConfig(dim=16, heads=2, kv_heads=2, head_dim=8, window=6, document=16, pool=4, top_k=2)


def _samples() -> list[Sample]:
    random = torch.Generator().manual_seed(1)

    def sample(*lengths: int) -> Sample:
        documents = tuple(torch.randint(50, (length,), generator=random) for length in lengths)
        evidence = tuple(number == 0 for number in range(len(lengths) - 1))
        return Sample(documents, tuple(map(next_tokens, documents)), torch.ones(lengths[-1]).bool(), evidence)

    return [sample(16, 3, 7, 12, 9, 4), sample(5), sample(3, 16, 2), sample(8, 8)]


def gradients(sharing: Sharing, place: Place | None = None) -> dict[str, torch.Tensor]:
    """Summed over all processes."""
    place = place or Place()
    model = HybridModel(HybridConfig(vocab=50, layers=("window", "msa"), mixer=_MIXER, mlp_width=24)).double()
    samples = _samples()
    mine = samples[place.rank :: place.world] if sharing == "rows" else samples
    group = 2 if sharing == "documents" else 0
    weights = Weights(1.0, 0.3, 1e-3)
    objective(model, make_batch(mine), weights, group=group, sharing=sharing, place=place).share.backward()
    place.sum_gradients(model.parameters())
    return {name: each.grad for name, each in model.named_parameters() if each.grad is not None}


if __name__ == "__main__":
    with joined() as here:
        for kind in ("rows", "documents"):
            found = gradients(kind, here)
            if here.is_first:
                torch.save(found, Path(sys.argv[1]) / f"{kind}.pt")
