"""The decoder of a device, on the CPU through the torch path, against the decoder of a CPU."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from mnemos.attention.decoder import Collect
from mnemos.attention.gpu.reads import PagedSpan, ReadSet
from mnemos.attention.kv import KVCache
from mnemos.errors import ContextOverflowError

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


class Watched:
    """Reads that note which layers were waited for."""

    def __init__(self, reads: Any) -> None:
        self.table, self._reads = reads.table, reads
        self.waited: list[int] = []
        self.released = 0

    def wait(self, layer: int) -> None:
        self.waited.append(layer)
        self._reads.wait(layer)

    def release(self) -> None:
        self.released += 1
        self._reads.release()


def test_a_layer_is_waited_for_when_it_is_read_and_not_before(
    pair: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    models = pair()
    reads = Watched(models.paged([0, 2])[0].reads)
    cache = models.device.new_cache(200)
    cache.page_in([PagedSpan(reads, index) for index in range(2)])
    assert reads.waited == []
    seen: list[tuple[int, list[int]]] = []
    dense = ReadSet.dense
    monkeypatch.setattr(
        ReadSet,
        "dense",
        lambda self, layer, *rest: (seen.append((layer, list(reads.waited))), dense(self, layer, *rest)),
    )
    models.device.forward(tokens_of(4), cache)
    assert seen == [(0, [0]), (1, [0, 1]), (2, [0, 1, 2])]
    models.device.forward([7], cache)
    models.device.forward([8], cache)
    assert reads.waited == [0, 1, 2, 0, 1, 2], "before the first step all of them, then none"
    assert not models.device._scratch._kept.any(), "a pass leaves no memory behind in it"
    cache.zero_()
    assert reads.released == 1
    assert not cache.k.any() and cache.length == 0


def test_a_pass_leaves_to_the_host_what_it_collects(pair: Callable[..., Any]) -> None:
    models = pair("qwen3")
    found = []
    for cache, decoder in zip(models.caches([0, 2], **READING), (models.host, models.device), strict=True):
        collect = Collect(query_layers=(1,), hidden_layers=(0, 2), memory_mass=True)
        decoder.forward(tokens_of(11), cache, collect=collect)
        found.append(collect)
    for ours, twin in ((found[1].queries, found[0].queries), (found[1].hidden, found[0].hidden)):
        assert ours.keys() == twin.keys()
        assert all(near(ours[layer], twin[layer]) for layer in ours)
    assert near(found[1].mass, found[0].mass)


def test_out_of_memory_is_an_error_that_says_so(
    pair: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    models = pair()
    cache = models.caches([0, 1])[1]
    before = (cache.length, cache.next_position)

    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(ReadSet, "dense", full)
    with pytest.raises(ContextOverflowError, match=r"no memory left to read 5 tokens.*MNEMOS_DEVICE=cpu"):
        models.device.forward(tokens_of(5), cache)
    assert (cache.length, cache.next_position) == before


def test_going_back_and_reading_on(pair: Callable[..., Any]) -> None:
    models = pair("gemma3")
    caches = models.caches([1, 3], **READING)
    found = []
    for cache, decoder in zip(caches, (models.host, models.device), strict=True):
        decoder.prefill(tokens_of(20), cache)
        length, position = cache.length, cache.next_position
        decoder.forward(tokens_of(9, 5), cache)
        decoder.forward([3], cache)
        cache.truncate(length, position)
        found.append([decoder.forward([4], cache), decoder.forward(tokens_of(6, 8), cache)])
    assert all(near(ours, twin) for ours, twin in zip(found[1], found[0], strict=True))
    span = caches[1].snapshot(caches[1].memory_end, caches[1].length)
    assert near(span.k, caches[0].snapshot(caches[0].memory_end, caches[0].length).k)
    with pytest.raises(ValueError, match="in the pool"):
        caches[1].snapshot(0, caches[1].length)
