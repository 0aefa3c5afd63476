"""Steps over static buffers: batches, buckets, and what a captured graph relies on."""

from collections.abc import Callable
from functools import partial
from threading import Thread
from typing import Any

import pytest
import torch
from torch import Tensor

from mnemos.attention.generate import generate
from mnemos.attention.gpu.captured import Step
from mnemos.attention.gpu.decode import DecodeLoop
from mnemos.attention.gpu.decoder import DeviceDecoder
from mnemos.attention.gpu.step import StepBuffers
from mnemos.attention.memory_codec import decode_kv
from mnemos.attention.sampling import Sampling
from mnemos.errors import ContextOverflowError

READING = {"temperature": 0.8, "mass_scale": 0.9}
# What each conversation reads: some share memories, one reads none.
READS = ([0, 2], [2], [], [1, 0, 3], [3])


def tokens_of(count: int, seed: int = 1) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1, 101, (count,), generator=generator).tolist()


def near(ours: Tensor, twin: Tensor) -> bool:
    return bool((ours - twin).norm() / twin.norm() < 1e-4)


@pytest.mark.parametrize("family", ["llama", "gemma3"])
@pytest.mark.parametrize("stride", [0.0, 0.5])
def test_conversations_over_shared_memories_are_those_one_by_one(
    family: str, stride: float, pair: Callable[..., Any]
) -> None:
    models = pair(family)
    rows = []
    for index, memories in enumerate(READS):
        constants = READING | {"temperature": 0.7 + 0.05 * index}
        caches = models.caches(memories, stride=stride, **constants)
        for cache, decoder in zip(caches, (models.host, models.device), strict=True):
            decoder.prefill(tokens_of(3 + 4 * index, index), cache)
        rows.append(caches)
    for step in range(12):
        if step == 6:  # one leaves, and those that stay change places
            rows = [rows[3], rows[0], rows[4], rows[2]]
        tokens = tokens_of(len(rows), 100 + step)
        together = models.device.loop.step(tokens, [cache for _, cache in rows])
        for token, (cache, _), ours in zip(tokens, rows, together, strict=True):
            assert near(ours, models.host.forward([token], cache))


def test_a_bucket_for_each_size_and_the_oldest_go(pair: Callable[..., Any]) -> None:
    models = pair()
    loop = DecodeLoop(models.device)
    for count in (1, 2, 3, 4, 5):
        caches = [models.caches([0])[1] for _ in range(count)]
        alone = [models.caches([0])[1] for _ in range(count)]
        tokens = tokens_of(count)
        one_by_one = [loop.step([token], [cache])[0] for token, cache in zip(tokens, alone, strict=True)]
        assert near(loop.step(tokens, caches), torch.stack(one_by_one))
    assert {bucket.rows for bucket in loop.buckets} == {1, 2, 4, 8}
    assert len({bucket.tiles for bucket in loop.buckets}) == 1, "few memories are one size"
    many = [models.caches([0, 1, 2, 3], stride=0.5)[1] for _ in range(7)]
    loop.step(tokens_of(7), many)
    assert max(bucket.reads for bucket in loop.buckets) == 32, "a query for each place of each conversation"


def test_working_memory_grows_past_its_first_buffers(pair: Callable[..., Any]) -> None:
    models = pair()
    caches = models.caches([1, 0], capacity=1200, **READING)
    for cache, decoder in zip(caches, (models.host, models.device), strict=True):
        decoder.prefill(tokens_of(500), cache)
    for token in tokens_of(20, 3):  # the buffers' first 512 slots end among them
        logits = [
            decoder.forward([token], cache)
            for cache, decoder in zip(caches, (models.host, models.device), strict=True)
        ]
    assert near(logits[1], logits[0])
    assert caches[1].k.shape[2] == 1024
    for cache, decoder in zip(caches, (models.host, models.device), strict=True):
        decoder.prefill(tokens_of(600, 4), cache)
    found = [
        decoder.forward([7], cache)
        for cache, decoder in zip(caches, (models.host, models.device), strict=True)
    ]
    assert near(found[1], found[0])


class Recording:
    """Runs steps as a graph would be replayed: what a step reads and writes must stay where it was."""

    def __init__(self) -> None:
        self.runs = 0
        self.made = 0
        self.decoder: DeviceDecoder | None = None

    def __call__(self, step: Step) -> Step:
        self.made += 1
        assert isinstance(step, partial)
        buffers = step.args[1]
        places = _places(buffers)

        def run() -> None:
            self.runs += 1
            assert _places(buffers) == places
            buffers.logits.fill_(float("nan"))
            step()
            assert _places(buffers) == places

        return run


def _places(buffers: StepBuffers) -> list[int]:
    tensors = [buffers.working.fields, buffers.cis, buffers.source, buffers.logits]
    memory = buffers.memory
    if memory is not None:
        assert memory._table is not None and memory._plan is not None
        tensors += [memory._mass, memory._table.pages, memory._plan.work, memory._plan.starts]
        tensors.append(memory._table.pool)  # which a graph knows by its address
        assert memory._plan.work.data_ptr() == memory._buffers.work.data_ptr()
    return [tensor.data_ptr() for tensor in tensors]


def test_inputs_are_copied_in_place_and_a_step_is_made_once_a_bucket(pair: Callable[..., Any]) -> None:
    models = pair()
    recording = Recording()
    loop = DecodeLoop(models.device, recording)
    caches = [models.caches(memories, **READING)[1] for memories in ([0, 2], [1])]
    twins = [models.caches(memories, **READING)[0] for memories in ([0, 2], [1])]
    for step in range(6):
        tokens = tokens_of(2, step)
        found = loop.step(tokens, caches)
        wanted = torch.stack([models.host.forward([t], c) for t, c in zip(tokens, twins, strict=True)])
        assert near(found, wanted)
    twin, other = models.caches([3, 1])  # other memories, the same bucket
    assert near(loop.step([5, 6], [other, caches[1]])[0], models.host.forward([5], twin))
    assert (recording.made, recording.runs) == (1, 7)
    kept = loop.step([5, 6], [other, caches[1]])
    before = kept.clone()
    loop.step([9, 9], [other, caches[1]])
    assert torch.equal(kept, before), "logits outlive the next step"


def test_each_pool_has_steps_of_its_own(pair: Callable[..., Any]) -> None:
    models = pair()
    recording = Recording()
    loop = DecodeLoop(models.device, recording)
    twin, ours = models.caches([0, 2], **READING)
    other_twin, other = models.caches([])
    spans = [decode_kv(models.payloads[each], models.config, torch.float32)[0] for each in (1, 3)]
    for cache in (other_twin, other):
        cache.page_in(spans, **READING)  # as tensors: on the device in a pool of their own
    _, none = models.caches([])
    for step in range(3):
        found = loop.step([5, 6 + step, 7], [ours, other, none])
        assert near(found[0], models.host.forward([5], twin))
        wanted = models.host.forward([6 + step], other_twin)
        assert (found[1] - wanted).norm() / wanted.norm() < 1e-2  # bf16 in that pool
    assert recording.made == 2


def test_a_loop_lets_go_of_what_is_read_no_more(pair: Callable[..., Any]) -> None:
    models = pair()
    cache = models.caches([0, 2])[1]
    models.device.forward([5], cache)
    serial = cache.reads.serial
    loop = models.device.loop
    assert any(serial in made.reads for made in loop._made.values())
    cache.zero_()
    assert not any(serial in made.reads for made in loop._made.values())
    twin, again = models.caches([0, 2])  # the step is there, and is filled again
    assert near(models.device.forward([5], again), models.host.forward([5], twin))


def test_rows_that_share_a_cache_are_refused(pair: Callable[..., Any]) -> None:
    models = pair()
    cache = models.caches([0])[1]
    with pytest.raises(ValueError, match="a cache of its own"):
        models.device.loop.step([1, 2], [cache, cache])
    full = models.device.new_cache(1)
    models.device.forward([1], full)
    length = cache.length
    with pytest.raises(ContextOverflowError):
        models.device.loop.step([1, 2], [cache, full])
    assert cache.length == length


def test_threads_that_share_the_decoder_get_what_each_would_alone(pair: Callable[..., Any]) -> None:
    models = pair("qwen3")
    wanted, found = [], {}
    for index, memories in enumerate(READS):
        cache = models.caches(memories, **READING)[0]
        logits = models.host.forward(tokens_of(4 + index, index), cache)
        generation = generate(models.host, cache, logits, Sampling(max_tokens=12), eos_ids=frozenset())
        wanted.append(list(generation))

    def converse(index: int, memories: list[int]) -> None:
        cache = models.caches(memories, **READING)[1]
        logits = models.device.forward(tokens_of(4 + index, index), cache)
        generation = generate(models.device, cache, logits, Sampling(max_tokens=12), eos_ids=frozenset())
        found[index] = list(generation)
        cache.zero_()

    threads = [Thread(target=converse, args=each) for each in enumerate(READS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[index] for index in range(len(READS))] == wanted
