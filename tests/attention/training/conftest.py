"""Tiny models and data for training."""

from collections.abc import Callable

import pytest

from mnemos.attention.patterns.hybrid import HybridModel
from mnemos.attention.patterns.hybrid_config import HybridConfig
from mnemos.attention.patterns.mixer import MixerConfig
from mnemos.attention.training.needle import NeedleSizes, NeedleTask

SIZES = NeedleSizes(document=16, facts=1, keys=32, values=16, noise=16)


@pytest.fixture
def task() -> NeedleTask:
    return NeedleTask(SIZES, seed=5)


@pytest.fixture
def make_model() -> Callable[..., HybridModel]:
    """A tiny model of the layers named, the same each time."""

    def make(*layers: str) -> HybridModel:
        mixer = MixerConfig(
            dim=16,
            heads=2,
            kv_heads=2,
            head_dim=8,
            window=8,
            sinks=1,
            block=8,
            bucket=8,
            document=16,
            pool=4,
            top_k=1,
        )
        vocab = 1 + SIZES.keys + SIZES.values + SIZES.noise
        return HybridModel(HybridConfig(vocab=vocab, layers=layers, mixer=mixer, mlp_width=24))

    return make
