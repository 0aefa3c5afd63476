"""A question read by compiled code over packed weights, as routing reads it, against PyTorch in fp32."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from mnemos.attention.decoder import Collect
from mnemos.attention.encode import TraceEncoder, encode_prefix
from mnemos.attention.kv import KVCache
from mnemos.attention.memory_codec import RouteKeys, decode_route
from mnemos.attention.models import LanguageModel, load
from mnemos.attention.routing import RouteQuery, record_mass, route_query, span_mass

pytestmark = pytest.mark.model

LINES = (
    "My sister Clara works as a nurse in Bergen.",
    "The garden gate was painted green last summer.",
    "We fly to Lisbon on the third of March.",
    "The cat is called Whiskers and sleeps on the piano.",
    "Tom borrowed my bicycle and has not brought it back.",
    "The code of the bike lock is 4417.",
    "Grandmother's soup needs two leeks and a little nutmeg.",
    "The dentist moved the appointment to Friday at nine.",
)
QUESTIONS = (
    "Where does Clara work?",
    "What colour is the gate in the garden?",
    "When do we fly to Lisbon?",
    "What is the name of the cat?",
    "Who has my bicycle?",
    "What is the code of the lock?",
    "What goes into the soup?",
    "When is the dentist's appointment?",
)


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    loaded = load()
    if loaded.decoder.compiled is None:
        pytest.skip("no C compiler here")
    return loaded


@pytest.fixture
def context(model: LanguageModel) -> KVCache:
    cache = model.decoder.new_cache(400)
    model.decoder.prefill(model.tokenizer.encode("Use the following notes to answer. User: "), cache)
    return cache


def looked(model: LanguageModel, cache: KVCache, tokens: list[int], few_bits: bool, **more: int) -> Collect:
    collect = Collect((4, 15), (9, 15), few_bits=few_bits, **more)  # type: ignore[arg-type]
    model.decoder.probe(tokens, cache, collect)
    return collect


def error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def test_a_look_comes_near_fp32_and_leaves_the_cache(model: LanguageModel, context: KVCache) -> None:
    tokens = model.tokenizer.encode(QUESTIONS[0])
    before = (context.length, context.next_position)
    few, plain = (looked(model, context, tokens, few_bits) for few_bits in (True, False))
    assert (context.length, context.next_position) == before
    for layer in (4, 15):
        assert few.queries[layer].shape == plain.queries[layer].shape
        assert error(few.queries[layer], plain.queries[layer]) < 0.05
    for layer in (9, 15):
        assert error(few.hidden[layer], plain.hidden[layer]) < 0.05


def test_a_look_does_not_depend_on_its_threads_nor_on_where_it_is_cut(
    model: LanguageModel, context: KVCache
) -> None:
    """More tokens than one call takes; the first of them alone."""
    tokens = model.tokenizer.encode(" ".join(LINES))
    assert len(tokens) > 80
    whole = looked(model, context, tokens, True, threads=1)
    again = looked(model, context, tokens, True, threads=2)
    start = looked(model, context, tokens[:7], True)
    for layer in (4, 15):
        assert torch.equal(whole.queries[layer], again.queries[layer])
        assert torch.equal(whole.queries[layer][:, :7], start.queries[layer])
    assert torch.equal(whole.hidden[9], again.hidden[9]) and torch.equal(whole.hidden[9][:7], start.hidden[9])


def test_a_look_that_ends_with_hidden_states(model: LanguageModel, context: KVCache) -> None:
    tokens = model.tokenizer.encode(QUESTIONS[1])
    few, plain = (Collect((), (6,), few_bits=few_bits) for few_bits in (True, False))
    for collect in (few, plain):
        model.decoder.probe(tokens, context, collect)
    assert error(few.hidden[6], plain.hidden[6]) < 0.05 and not few.queries


def test_the_ranking_is_that_of_fp32_over_fp32_keys(model: LanguageModel, context: KVCache) -> None:
    """Both shortcuts together: packed weights, and keys weighed in eight bits."""
    decoder, calibration = model.decoder, model.calibration
    encoder = TraceEncoder(decoder, calibration, encode_prefix(decoder, model.tokenizer.encode("Notes: ")))
    payloads = [encoder.encode([model.tokenizer.encode(line)]).route for line in LINES]
    group = model.config.heads // model.config.kv_heads

    def mass_of(query: RouteQuery, records: list[RouteKeys]) -> Tensor:
        return record_mass(span_mass(query, records, calibration, group), records)

    for question in QUESTIONS:
        tokens = model.tokenizer.encode(question)
        fast = route_query(decoder, calibration, context, tokens)
        layers = tuple(dict.fromkeys(layer for layer, _ in calibration.key_heads))
        plain = Collect(layers)
        decoder.probe(tokens, context, plain)
        queries = torch.stack([plain.queries[layer][head] for layer, head in calibration.key_heads])
        slow = replace(fast, queries=queries * (decoder.scale * queries.shape[-1] ** 0.5))
        found = mass_of(fast, [decode_route(payload, coded=True) for payload in payloads])
        expected = mass_of(slow, [decode_route(payload) for payload in payloads])
        assert (found - expected).abs().max() < 0.25
        assert (found - expected).abs().mean() < 0.06
        apart = expected[:, None] - expected[None]  # of each memory above each other one
        assert ((found[:, None] > found[None]) | (apart < 0.1)).all()
