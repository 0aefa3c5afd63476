"""A projection that nobody trained: random rows, as a calibration holds them."""

from dataclasses import replace

import torch
from torch import Tensor

from mnemos.attention.models import LanguageModel
from mnemos.attention.projection import Side, Vectors, packed_array, packed_side

DIMS, HEADS = 16, 2


def random_side(hidden: int, generator: torch.Generator) -> Side:
    return Side(
        torch.randn(HEADS, hidden, generator=generator) / hidden,
        torch.randn(HEADS, DIMS // HEADS, hidden, generator=generator),
    )


def random_vectors(hidden: int, *, seed: int = 0, layer: int = 1, lists: int = 4) -> Vectors:
    generator = torch.Generator().manual_seed(seed)
    centre: Tensor = torch.zeros(hidden).half()
    side = random_side(hidden, generator)
    return Vectors(
        layer=layer,
        dims=DIMS,
        heads=HEADS,
        query_centre=packed_array(centre),
        memory_centre=packed_array(centre),
        spread=packed_array(torch.ones(hidden).half()),
        query=packed_side(side),
        memory=packed_side(side),
        centroids=packed_array(
            torch.randint(-99, 99, (lists, DIMS), generator=generator, dtype=torch.int16).to(torch.int8)
        ),
    )


def with_vectors(model: LanguageModel, *, seed: int = 0, weight: float = 0.7) -> LanguageModel:
    """The model with such a router in its calibration."""
    vectors = random_vectors(model.config.hidden_size, seed=seed)
    weights = {**model.calibration.weights, "vector": weight}
    calibration = model.calibration.model_copy(update={"vectors": vectors, "weights": weights})
    return replace(model, calibration=calibration)
