"""Every family against transformers on a small random checkpoint of its own configuration keys, with memories
and without.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mnemos.attention.calibration import Calibration
from mnemos.attention.config import ModelConfig
from mnemos.attention.decoder import Collect, Decoder
from mnemos.attention.encode import TraceEncoder, encode_prefix
from mnemos.attention.hf_loader import load_directory
from mnemos.attention.kv import KVCache
from mnemos.attention.memory_codec import decode_kv
from mnemos.attention.rope import KeyRotation, rotaries
from mnemos.attention.routing import route_query, span_mass
from mnemos.errors import ContextOverflowError

FAMILIES = ("llama2", "llama3", "mistral", "qwen2", "qwen3", "gemma3", "smollm3")
WITH_WINDOW = {"mistral": (0, 1, 2, 3), "qwen2": (2, 3), "gemma3": (0, 1, 3)}
WINDOW = ORIGINAL = 24
NEW_TOKENS = 64


def random_tokens(count: int, seed: int = 3) -> list[int]:
    return torch.randint(3, 288, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


PROMPT = random_tokens(45)  # beyond every window (24) and every original context (32)


@pytest.fixture(scope="module")
def loaded(family: Callable[[str], Any], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """(Decoder in fp32, transformers' model) of a family by name."""
    made: dict[str, Any] = {}

    def load(name: str) -> Any:
        if name not in made:
            checkpoint = family(name)
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("MNEMOS_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
                config, weights, _, _ = load_directory(checkpoint.directory)
            made[name] = Decoder(config, weights), checkpoint.reference
        return made[name]

    return load


def poisoned(decoder: Decoder, capacity: int) -> KVCache:
    cache = decoder.new_cache(capacity)
    cache.k.fill_(torch.nan)
    cache.v.fill_(torch.nan)
    return cache


@torch.inference_mode()
def reference_logits(model: Any, tokens: list[int]) -> Tensor:
    logits: Tensor = model(torch.tensor([tokens])).logits[0]
    return logits


@pytest.mark.parametrize("name", FAMILIES)
def test_logits_and_greedy_continuation_equal_transformers(name: str, loaded: Callable[[str], Any]) -> None:
    decoder, reference = loaded(name)
    cache = poisoned(decoder, len(PROMPT) + NEW_TOKENS)
    ours = decoder.forward_all(PROMPT, cache)
    assert (ours - reference_logits(reference, PROMPT)).abs().max() < 1e-3
    assert ours[-1].std() > 0.1, "a model that says nothing would equal any other"
    tokens, logits = list(PROMPT), ours[-1]
    for _ in range(NEW_TOKENS):
        tokens.append(int(logits.argmax()))
        logits = decoder.forward(tokens[-1:], cache)
    theirs = reference_logits(reference, tokens)  # causal: row i is what it says after tokens[: i + 1]
    assert theirs[len(PROMPT) - 1 : -1].argmax(-1).tolist() == tokens[len(PROMPT) :]
    assert (logits - theirs[-1]).abs().max() < 1e-3


@pytest.mark.parametrize("name", [*WITH_WINDOW, "llama3"])
def test_at_the_edge_of_windows_and_of_the_original_context(name: str, loaded: Callable[[str], Any]) -> None:
    decoder, reference = loaded(name)
    edge = 32 if name == "llama3" else WINDOW
    theirs = reference_logits(reference, PROMPT)
    for count in (1, edge - 1, edge, edge + 1):
        cache = poisoned(decoder, count + 1)
        at_once = decoder.forward_all(PROMPT[:count], cache)
        assert (at_once - theirs[:count]).abs().max() < 1e-3
        assert (decoder.forward([PROMPT[count]], cache) - theirs[count]).abs().max() < 1e-3
    # In pieces: a window reaches back over what was read before.
    cache = poisoned(decoder, len(PROMPT))
    pieces = [decoder.forward_all(PROMPT[a:b], cache) for a, b in ((0, 20), (20, 21), (21, 40), (40, 45))]
    assert (torch.cat(pieces) - theirs).abs().max() < 1e-3


def test_a_window_is_more_than_a_number(loaded: Callable[[str], Any]) -> None:
    """What lies behind the window does change a family without one, and not Mistral's first layer."""
    other = [*random_tokens(10, seed=8), *PROMPT[10:]]
    for name, reaches in (("mistral", False), ("llama3", True)):
        decoder, _ = loaded(name)
        seen = []
        for tokens in (PROMPT, other):
            collect = Collect(hidden_layers=(1,))
            decoder.probe(tokens, decoder.new_cache(64), collect)
            seen.append(collect.hidden[1][-1])
        assert torch.equal(*seen) is not reaches


@pytest.mark.parametrize("name", FAMILIES)
def test_both_forms_of_the_configuration_say_the_same(
    name: str, family: Callable[[str], Any], tmp_path: Path, cache: Path
) -> None:
    """config.json as published, and as transformers 5 writes it (`rope_parameters`, `layer_types`)."""
    checkpoint = family(name)
    published = load_directory(checkpoint.directory)[0]
    for file in checkpoint.directory.iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "config.json").unlink()
    checkpoint.reference.config.save_pretrained(tmp_path)
    assert "rope_parameters" in json.loads((tmp_path / "config.json").read_text())
    rewritten = load_directory(tmp_path, name=published.name)[0]
    assert rewritten == published
    assert ModelConfig.from_json(json.loads(json.dumps(published.to_json()))) == published


def memories_of(decoder: Decoder, prefix: list[int], memories: list[list[int]]) -> tuple[Any, list[Any]]:
    """KV of the prefix and of each memory, as the bank would keep them at full width."""
    prefix_kv = encode_prefix(decoder, prefix)
    encoder = TraceEncoder(decoder, Calibration.uncalibrated(decoder.config), prefix_kv, bits=32)
    return prefix_kv, [
        decode_kv(encoder.encode([memory]).kv, decoder.config, torch.float32)[0] for memory in memories
    ]


PREFIX, MEMORIES = random_tokens(6, 4), [random_tokens(10, 5), random_tokens(17, 6)]
QUERY = random_tokens(30, 7)  # its end is further than a window from its start and from the prefix


@torch.inference_mode()
def reference_with_memories(model: Any, config: ModelConfig) -> Tensor:
    """transformers over [prefix | memories | query]: memories at shared positions, blind to one another."""
    lengths = [len(PREFIX), *(len(memory) for memory in MEMORIES), len(QUERY)]
    owner = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))  # 0 prefix, 3 query
    start, query = len(PREFIX), len(PREFIX) + max(lengths[1:-1])
    starts = [0, *(start for _ in MEMORIES), query]
    places = torch.cat([torch.arange(n) + first for n, first in zip(lengths, starts, strict=True)])
    count, last = len(owner), len(lengths) - 1
    order = torch.arange(count)
    sees = (order[None] <= order[:, None]) & (
        (owner[None] == owner[:, None]) | (owner[None] == 0) | (owner[:, None] == last)
    )
    is_memory = (owner[None] != 0) & (owner[None] != last)
    near = places[None] > places[:, None] - WINDOW
    recalled = is_memory & (owner[:, None] == last)  # a query sees memories whatever their distance
    masks = {
        "full_attention": sees,
        "sliding_attention": sees & (near | recalled),
    }
    additive = {
        key: torch.zeros(1, 1, count, count).masked_fill(~mask, torch.finfo(torch.float32).min)
        for key, mask in masks.items()
    }
    if config.architecture in ("llama", "mistral"):
        mask: Any = additive["sliding_attention" if config.window else "full_attention"]
    else:
        mask = additive
    tokens = [*PREFIX, *(token for memory in MEMORIES for token in memory), *QUERY]
    logits: Tensor = model(torch.tensor([tokens]), attention_mask=mask, position_ids=places[None]).logits[0]
    return logits[-len(QUERY) :]


@pytest.mark.parametrize("name", FAMILIES)
def test_memories_are_read_as_transformers_reads_them_in_place(
    name: str, loaded: Callable[[str], Any]
) -> None:
    decoder, reference = loaded(name)
    prefix, spans = memories_of(decoder, PREFIX, MEMORIES)
    theirs = reference_with_memories(reference, decoder.config)
    for split in (len(QUERY), 12, 1):
        cache = poisoned(decoder, 80)
        cache.load_prefix(prefix)
        cache.page_in(spans)
        ours = [decoder.forward_all(QUERY[:split], cache)]
        ours += [decoder.forward([token], cache)[None] for token in QUERY[split:]]
        assert (torch.cat(ours) - theirs).abs().max() < 1e-3


@pytest.mark.parametrize("name", FAMILIES)
def test_a_step_equals_a_pass_whatever_the_temperature(name: str, loaded: Callable[[str], Any]) -> None:
    decoder, _ = loaded(name)
    prefix, spans = memories_of(decoder, PREFIX, MEMORIES)
    outputs = []
    for stepwise in (False, True):
        cache = poisoned(decoder, 80)
        cache.load_prefix(prefix)
        cache.page_in(spans, temperature=0.7, mass_scale=0.8)
        if stepwise:
            outputs.append(torch.stack([decoder.forward([token], cache) for token in QUERY]))
        else:
            outputs.append(decoder.forward_all(QUERY, cache))
    assert (outputs[0] - outputs[1]).abs().max() < 1e-3


@pytest.mark.parametrize("name", FAMILIES)
def test_keys_that_are_moved_are_keys_encoded_further_on(name: str, loaded: Callable[[str], Any]) -> None:
    decoder, _ = loaded(name)
    tables, use = rotaries(decoder.config)
    generator = torch.Generator().manual_seed(3)
    shape = (decoder.config.layers, decoder.config.kv_heads, 9, decoder.config.head_dim // 2)
    raw = torch.randn(shape, dtype=torch.complex64, generator=generator)

    def encoded_at(start: int) -> Tensor:
        turned = torch.stack([raw[layer] * tables[kind].span(start, 9) for layer, kind in enumerate(use)])
        return torch.view_as_real(turned).flatten(-2)

    for start, by in ((0, 0), (6, 1), (6, 37), (50, 300)):
        moved = KeyRotation(tables, use)(encoded_at(start), by)
        assert (moved - encoded_at(start + by)).abs().max() < 1e-4


@pytest.mark.parametrize("stride", [0.0, 0.25, 1.0])
def test_staggered_memories_start_a_part_of_a_length_apart(
    stride: float, loaded: Callable[[str], Any]
) -> None:
    decoder, _ = loaded("llama3")
    prefix, spans = memories_of(decoder, PREFIX, [*MEMORIES, MEMORIES[0]])
    cache = poisoned(decoder, 80)
    cache.load_prefix(prefix)
    cache.page_in(spans, stride=stride)
    offsets = {0.0: [0, 0, 0], 0.25: [0, 2, 7], 1.0: [0, 10, 27]}[stride]
    assert cache.next_position == len(PREFIX) + max(
        at + span.tokens for at, span in zip(offsets, spans, strict=True)
    )
    rotation = KeyRotation(*rotaries(decoder.config))
    expected = torch.cat(
        [prefix.k, *(rotation(span.k, at) for at, span in zip(offsets, spans, strict=True))], dim=2
    )
    assert (cache.k[:, :, : cache.length] - expected).abs().max() < 1e-5
    with pytest.raises(ContextOverflowError, match="window"):
        tight = KVCache(replace(decoder.config, max_positions=len(PREFIX) + 17), 80, torch.float32)
        tight.load_prefix(prefix)
        tight.page_in(spans, stride=1.0)


@pytest.mark.parametrize("name", FAMILIES)
def test_routing_scores_are_the_models_own_attention(name: str, loaded: Callable[[str], Any]) -> None:
    """The mass that routing gives a memory equals a softmax over scores as the layer computes them."""
    decoder, _ = loaded(name)
    calibration = Calibration.uncalibrated(decoder.config)
    layers = {layer for layer, _ in calibration.key_heads}
    assert not layers & set(decoder.config.sliding_layers) or name == "mistral"
    from mnemos.attention.memory_codec import RouteKeys

    prefix, spans = memories_of(decoder, PREFIX, MEMORIES)
    cache = poisoned(decoder, 80)
    cache.load_prefix(prefix)
    query = route_query(decoder, calibration, cache, QUERY)
    assert cache.length == len(PREFIX)
    encoder = TraceEncoder(decoder, calibration, prefix)
    records = [RouteKeys(encoder.route_keys(span), (span.tokens,), torch.empty(0)) for span in spans]
    group = decoder.config.heads // decoder.config.kv_heads
    mass = span_mass(query, records, calibration, group)
    collect = Collect(query_layers=tuple(layers))
    decoder.probe(QUERY, cache, collect)
    naive = torch.zeros(2)
    for layer, head in calibration.key_heads:
        keys = torch.cat([span.k[layer, head // group] for span in spans])
        weights = (collect.queries[layer][head] @ keys.T * decoder.config.score_scale).softmax(-1).mean(0)
        naive += torch.stack([weights[:10].sum(), weights[10:].sum()]) / len(calibration.key_heads)
    assert (mass - naive).abs().max() < 1e-4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("name", FAMILIES)
def test_half_widths_stay_near(
    name: str, dtype: torch.dtype, loaded: Callable[[str], Any], family: Callable[[str], Any], cache: Path
) -> None:
    exact, _ = loaded(name)
    config, weights, _, _ = load_directory(family(name).directory)
    decoder = Decoder(config, weights, dtype=dtype)
    prefix, spans = memories_of(exact, PREFIX, MEMORIES)
    rows = []
    for each in (exact, decoder):
        kv = each.new_cache(80)
        kv.load_prefix(prefix)
        kv.page_in(spans)
        rows.append(torch.cat([each.forward_all(QUERY[:-1], kv), each.forward(QUERY[-1:], kv)[None]]))
    apart = (rows[0] - rows[1]).abs().mean() / rows[0].std()
    assert 0 < apart < (0.05 if dtype == torch.bfloat16 else 0.01)
