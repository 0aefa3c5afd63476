"""Projections of hidden states: what a calibration holds of one is what is multiplied, and never another."""

import math

import pytest
import torch
from tests.memory.random_vectors import DIMS, HEADS, random_side, random_vectors

from mnemos.attention.memory_codec import decode_route, encode_route
from mnemos.attention.projection import (
    MEMORY_VECTORS,
    Projection,
    projected,
    similarity,
    standardised,
    to_int8,
)
from mnemos.errors import BankUnreadableError, ModelError

HIDDEN = 24


def test_vectors_are_near_those_of_the_weights_that_were_packed() -> None:
    side = random_side(HIDDEN, torch.Generator().manual_seed(0))
    projection = Projection(random_vectors(HIDDEN), HIDDEN)
    states = torch.randn(7, HIDDEN, generator=torch.Generator().manual_seed(1))
    exact = projected(standardised(states, torch.zeros(HIDDEN), torch.ones(HIDDEN)), side)
    assert float(exact.norm()) == pytest.approx(1)
    vector = projection.query(states)
    assert vector.dtype == torch.int8 and vector.shape == (DIMS,)
    assert float(similarity(vector, to_int8(exact)[None])) == pytest.approx(1, abs=0.03)


def test_similarity_is_the_cosine() -> None:
    generator = torch.Generator().manual_seed(2)
    a, b = torch.nn.functional.normalize(torch.randn(2, 128, generator=generator), dim=1)
    assert float(similarity(to_int8(a), to_int8(b)[None])) == pytest.approx(float(a @ b), abs=0.02)


def test_pooling_looks_at_some_tokens_more_than_at_others() -> None:
    side = random_side(HIDDEN, torch.Generator().manual_seed(3))
    states = torch.randn(5, HIDDEN, generator=torch.Generator().manual_seed(4))
    by_hand = []
    for head in range(HEADS):
        shares = torch.tensor([math.exp(float(state @ side.pools[head])) for state in states])
        by_hand.append(side.rows[head] @ (shares[:, None] / shares.sum() * states).sum(dim=0))
    joined = torch.cat(by_hand)
    assert torch.allclose(projected(states, side), joined / joined.norm(), atol=1e-5)


@pytest.mark.parametrize(("spans", "vectors"), [(1, 1), (3, 3), (4, 4), (5, 4), (11, 4)])
def test_a_memory_has_a_vector_for_each_span_but_never_more_than_a_few(spans: int, vectors: int) -> None:
    projection = Projection(random_vectors(HIDDEN), HIDDEN)
    parts = torch.randn(spans, 3, HIDDEN, generator=torch.Generator().manual_seed(5)).unbind()
    made = projection.memory(list(parts))
    assert made.shape == (vectors, DIMS) and vectors <= MEMORY_VECTORS
    if spans <= MEMORY_VECTORS:
        assert torch.equal(made[0], projection.memory([parts[0]])[0])


def test_the_form_tells_projections_apart() -> None:
    one, two = random_vectors(HIDDEN), random_vectors(HIDDEN, seed=1)
    assert one.form == random_vectors(HIDDEN).form != two.form
    assert one.model_copy(update={"centroids": two.centroids}).form == one.form, "lists change no vector"


@pytest.mark.parametrize("field", ["query", "memory", "query_centre", "spread", "centroids"])
@pytest.mark.parametrize("harm", ["short", "foreign"])
def test_arrays_that_do_not_fit_are_refused(field: str, harm: str) -> None:
    vectors = random_vectors(HIDDEN)
    text = "" if field == "centroids" else getattr(vectors, field)[:-8]
    broken = vectors.model_copy(update={field: text if harm == "short" else "not base64!"})
    with pytest.raises(ModelError, match="trained router"):
        Projection(broken, HIDDEN)


def test_a_routing_record_keeps_vectors_and_their_form() -> None:
    keys = [torch.randn(2, tokens, 8) for tokens in (3, 2)]
    vectors = torch.tensor([[1, -2, 127], [0, 5, -127]], dtype=torch.int8)
    payload = encode_route(keys, torch.arange(5.0), vectors, "0123456789abcdef")
    record = decode_route(payload)
    assert record.vectors is not None and torch.equal(record.vectors, vectors)
    assert record.form == "0123456789abcdef" and record.span_tokens == (3, 2)
    plain = decode_route(encode_route(keys, torch.arange(5.0)))
    assert plain.vectors is None and torch.equal(plain.keys, record.keys)
    record.zero_()
    assert not record.vectors.any()
    for cut in (1, 6, 12):
        with pytest.raises(BankUnreadableError):
            decode_route(payload[:-cut])
