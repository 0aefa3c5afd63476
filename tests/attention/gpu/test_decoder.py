"""The decoder of a device, on the CPU through the torch path, against the decoder of a CPU."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from mnemos.attention.kv import KVCache

FAMILIES = ("llama", "qwen3", "qwen2", "gemma3", "yarn")
READING = {"temperature": 0.8, "mass_scale": 0.9}


def tokens_of(count: int, seed: int = 1) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1, 101, (count,), generator=generator).tolist()


def near(ours: Tensor, twin: Tensor) -> bool:
    return bool((ours - twin).norm() / twin.norm() < 1e-4)


def run(pair: Any, caches: tuple[KVCache, KVCache], prompt: list[int], steps: int) -> None:
    """Prefill and greedy steps on both: logits near each other, tokens the same."""
    decoders = (pair.host, pair.device)
    logits = [decoder.forward(prompt, cache) for decoder, cache in zip(decoders, caches, strict=True)]
    for _ in range(steps):
        assert near(logits[1], logits[0])
        tokens = {int(each.argmax()) for each in logits}
        assert len(tokens) == 1
        logits = [decoder.forward([*tokens], cache) for decoder, cache in zip(decoders, caches, strict=True)]
    assert near(logits[1], logits[0])
    assert (caches[0].length, caches[0].next_position) == (caches[1].length, caches[1].next_position)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("stride", [0.0, 0.5])
def test_memories_are_read_as_the_cpu_reads_them(
    family: str, stride: float, pair: Callable[..., Any]
) -> None:
    models = pair(family)
    caches = models.caches([0, 2, 1], stride=stride, **READING)
    run(models, caches, tokens_of(9), steps=30)  # past the window of those that have one


@pytest.mark.parametrize("family", FAMILIES)
def test_without_memories_it_is_the_same_decoder(family: str, pair: Callable[..., Any]) -> None:
    models = pair(family)
    run(models, models.caches([]), tokens_of(23), steps=12)
    run(models, (models.host.new_cache(64), models.device.new_cache(64)), tokens_of(1), steps=3)
