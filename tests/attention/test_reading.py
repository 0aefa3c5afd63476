"""Reading memories: against attention over the same tokens in place, and against a naive form in float64."""

import dataclasses

import pytest
import torch
from torch import Tensor

from mnemos.attention.decoder import Collect, Decoder
from mnemos.attention.encode import TraceEncoder, encode_prefix
from mnemos.attention.kv import KVCache, SpanKV
from mnemos.attention.memory_codec import TraceBits, decode_kv, encode_kv
from mnemos.attention.models import LanguageModel
from mnemos.errors import ContextOverflowError

pytestmark = pytest.mark.model

LINES = (
    "[3 March 2026] User: My sister Clara works as a nurse in Leeds.\n",
    "[4 March 2026] User: I play the cello.\n",
    "[5 March 2026] User: The code of my locker is 4417, and nobody else knows it.\n",
)
PREFIX = "<|im_start|>system\nUse the following memories of the user to answer.\n"
QUESTION = "<|im_end|>\n<|im_start|>user\nWhat does Clara do?<|im_end|>\n<|im_start|>assistant\n"


def ids(model: LanguageModel, text: str) -> list[int]:
    return model.tokenizer.encode(text, special=True)


@pytest.fixture(scope="module")
def prefix(default_model: LanguageModel) -> SpanKV:
    return encode_prefix(default_model.decoder, ids(default_model, PREFIX))


def encoded(model: LanguageModel, prefix: SpanKV, line: str, bits: TraceBits = 32) -> list[SpanKV]:
    encoder = TraceEncoder(model.decoder, model.calibration, prefix, bits=bits)
    return decode_kv(encoder.encode([ids(model, line)]).kv, model.config, torch.float32)


def poisoned(decoder: Decoder, capacity: int) -> KVCache:
    cache = decoder.new_cache(capacity)
    cache.k.fill_(torch.nan)
    cache.v.fill_(torch.nan)
    return cache


def logits_with(model: LanguageModel, prefix: SpanKV, spans: list[SpanKV], **reading: float) -> Tensor:
    question = ids(model, QUESTION)
    cache = poisoned(model.decoder, prefix.tokens + sum(s.tokens for s in spans) + len(question))
    cache.load_prefix(prefix)
    cache.page_in(spans, **reading)
    return model.decoder.forward_all(question, cache)


def test_one_unquantised_memory_reads_like_the_same_tokens_in_place(
    default_model: LanguageModel, prefix: SpanKV
) -> None:
    paged = logits_with(default_model, prefix, encoded(default_model, prefix, LINES[0]))
    whole = ids(default_model, PREFIX) + ids(default_model, LINES[0]) + ids(default_model, QUESTION)
    cache = poisoned(default_model.decoder, len(whole))
    in_place = default_model.decoder.forward_all(whole, cache)[-paged.shape[0] :]
    assert (paged - in_place).abs().max() < 1e-3


@pytest.mark.parametrize(("bits", "bound"), [(8, 0.5), (4, 4.0)])
def test_quantised_memories_stay_within_measured_bounds(
    default_model: LanguageModel, prefix: SpanKV, bits: TraceBits, bound: float
) -> None:
    exact = logits_with(default_model, prefix, encoded(default_model, prefix, LINES[0]))
    drift = logits_with(default_model, prefix, encoded(default_model, prefix, LINES[0], bits)) - exact
    assert 0 < drift.abs().max() < bound


def test_parallel_memories_do_not_depend_on_their_order(default_model: LanguageModel, prefix: SpanKV) -> None:
    spans = [span for line in LINES for span in encoded(default_model, prefix, line)]
    forwards = logits_with(default_model, prefix, spans, temperature=0.8, mass_scale=0.8)
    backwards = logits_with(default_model, prefix, spans[::-1], temperature=0.8, mass_scale=0.8)
    assert (forwards - backwards).abs().max() < 1e-3


@pytest.mark.parametrize(("temperature", "mass_scale"), [(1.0, 1.0), (0.9, 0.9), (0.6, 0.8), (0.7, 1.0)])
def test_the_merge_equals_two_attentions_joined_by_log_sum_exp(
    default_model: LanguageModel, prefix: SpanKV, temperature: float, mass_scale: float
) -> None:
    """The naive form: attend to each part alone in float64, then join the two by their log-sum-exps."""
    decoder = default_model.decoder
    spans = [span for line in LINES for span in encoded(default_model, prefix, line)]
    question = ids(default_model, QUESTION)
    cache = poisoned(decoder, prefix.tokens + sum(s.tokens for s in spans) + len(question))
    cache.load_prefix(prefix)
    cache.page_in(spans, temperature=temperature, mass_scale=mass_scale)
    decoder.prefill(question, cache)
    heads, count, dim = default_model.config.heads, 7, default_model.config.head_dim
    q = torch.randn(heads, count, dim)
    end = cache.length
    start = end - count
    mask = torch.zeros(count, end)
    mask[:, start:] = torch.full((count, count), float("-inf")).triu(1)
    fast = decoder._attend(q, cache, 5, end, mask, None)
    naive = _naive_attention(q, cache, 5, end, temperature, mass_scale)
    assert (fast - naive.float()).abs().max() < 1e-4


def _naive_attention(
    q: Tensor, cache: KVCache, layer: int, end: int, temperature: float, mass_scale: float
) -> Tensor:
    heads, count, dim = q.shape
    k, v = cache.k[layer].double(), cache.v[layer].double()
    group = heads // k.shape[0]
    memory = range(cache.memory_start, cache.memory_end)
    out = torch.empty(count, heads, dim, dtype=torch.float64)
    for head in range(heads):
        for row in range(count):
            position = end - count + row
            rest = [slot for slot in range(position + 1) if slot not in memory]
            parts = []
            for slots, t, s in ((list(memory), temperature, mass_scale), (rest, 1.0, 1.0)):
                scores = k[head // group, slots] @ q[head, row].double() * dim**-0.5 / t
                lse = torch.logsumexp(scores, dim=0)
                parts.append(((scores - lse).exp() @ v[head // group, slots], lse * s))
            lses = torch.stack([lse for _, lse in parts])
            share = torch.softmax(lses, dim=0)
            out[row, head] = share[0] * parts[0][0] + share[1] * parts[1][0]
    return out.reshape(count, heads * dim)


def test_a_memory_is_encoded_alone(default_model: LanguageModel, prefix: SpanKV) -> None:
    """A trace is the same bytes whatever was encoded before it: nothing of another memory is in it."""
    encoder = TraceEncoder(default_model.decoder, default_model.calibration, prefix)
    first = encoder.encode([ids(default_model, LINES[2])])
    for line in LINES:
        encoder.encode([ids(default_model, line)])
    assert encoder.encode([ids(default_model, LINES[2])]) == first


def test_a_long_memory_becomes_spans_at_shared_positions(
    default_model: LanguageModel, prefix: SpanKV
) -> None:
    tokens = (ids(default_model, LINES[0]) * 60)[:1100]
    encoder = TraceEncoder(default_model.decoder, default_model.calibration, prefix, bits=32)
    spans = decode_kv(encoder.encode([tokens]).kv, default_model.config, torch.float32)
    assert [span.tokens for span in spans] == [512, 512, 76]
    alone, _ = encoder.encode_span(tokens[512:1024])
    assert torch.equal(spans[1].k, alone.k)


def test_attention_mass_by_memory_slot_is_collected(default_model: LanguageModel, prefix: SpanKV) -> None:
    spans = [span for line in LINES for span in encoded(default_model, prefix, line)]
    question = ids(default_model, QUESTION)
    cache = poisoned(default_model.decoder, prefix.tokens + sum(s.tokens for s in spans) + len(question))
    cache.load_prefix(prefix)
    cache.page_in(spans)
    collect = Collect(memory_mass=True)
    default_model.decoder.forward(question, cache, collect=collect)
    assert collect.mass is not None
    assert collect.mass.shape == (cache.memory_tokens,)
    config = default_model.config
    everything = config.layers * config.heads * len(question)  # each row of weights sums to one
    assert (collect.mass > 0).all()
    assert 0.01 * everything < float(collect.mass.sum()) < everything


def test_probe_leaves_the_cache_as_it_was(default_model: LanguageModel, prefix: SpanKV) -> None:
    question = ids(default_model, QUESTION)
    cache = poisoned(default_model.decoder, prefix.tokens + 2 * len(question))
    cache.load_prefix(prefix)
    before = cache.snapshot(0, cache.length)
    collect = Collect(query_layers=(14, 18), hidden_layers=(20,))
    default_model.decoder.probe(question, cache, collect)
    assert (cache.length, cache.next_position) == (prefix.tokens, prefix.tokens)
    assert torch.equal(cache.k[:, :, : prefix.tokens], before.k)
    assert collect.queries[14].shape == (9, len(question), 64)
    assert collect.hidden[20].shape == (len(question), 576)


def test_queries_of_a_probe_equal_those_of_a_full_pass(default_model: LanguageModel) -> None:
    question = ids(default_model, QUESTION)
    probed, full = Collect(query_layers=(18,)), Collect(query_layers=(18,), hidden_layers=(28,))
    default_model.decoder.probe(question, default_model.decoder.new_cache(64), probed)
    default_model.decoder.forward(question, default_model.decoder.new_cache(64), collect=full)
    assert torch.equal(probed.queries[18], full.queries[18])


def test_what_does_not_fit_is_refused_before_anything_changes(
    default_model: LanguageModel, prefix: SpanKV
) -> None:
    cache = default_model.decoder.new_cache(prefix.tokens + 3)
    cache.load_prefix(prefix)
    with pytest.raises(ContextOverflowError, match="slots are taken"):
        default_model.decoder.forward([1] * 4, cache)
    with pytest.raises(ContextOverflowError, match="recall fewer"):
        cache.page_in(encoded(default_model, prefix, LINES[0]))
    tight = dataclasses.replace(default_model.config, max_positions=prefix.tokens + 2)
    window = KVCache(tight, 100, torch.float32)
    window.load_prefix(prefix)
    with pytest.raises(ContextOverflowError, match="window"):
        window.reserve(3)


def test_zeroing_a_cache_leaves_nothing_behind(default_model: LanguageModel, prefix: SpanKV) -> None:
    cache = default_model.decoder.new_cache(200)
    cache.k.zero_()
    cache.v.zero_()
    cache.load_prefix(prefix)
    cache.page_in(encoded(default_model, prefix, LINES[0]))
    default_model.decoder.probe(ids(default_model, QUESTION), cache, Collect(query_layers=(18,)))
    cache.zero_()
    assert not cache.k.any()
    assert not cache.v.any()
    assert cache.length == 0


def test_raw_widths_hold_what_they_say(default_model: LanguageModel, prefix: SpanKV) -> None:
    (span,) = encoded(default_model, prefix, LINES[0])
    per_token = len(encode_kv([span], 4)) / span.tokens
    assert per_token < 7700, "a short memory carries one group of scales for all its tokens"
    long = SpanKV(span.k.repeat(1, 1, 5, 1), span.v.repeat(1, 1, 5, 1))
    assert len(encode_kv([long], 4)) / long.tokens < 7500
