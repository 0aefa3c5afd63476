"""What compiled code reads of memories against its plain twins: odd sizes, poisoned room, any bytes."""

import ctypes
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mnemos.attention import memory_codec
from mnemos.attention.block_mass import _plain_sums, span_sums
from mnemos.attention.compiled import kernels
from mnemos.attention.compiled_read import SPAN_KEYS, Packed
from mnemos.attention.config import ModelConfig
from mnemos.attention.kv import KVCache, SpanKV
from mnemos.attention.memory_codec import TraceBits, decode_kv, decode_route, encode_kv, encode_route
from mnemos.attention.packed_span import PackedSpan
from mnemos.attention.rope import KeyRotation, rotaries

TOKENS = (1, 15, 16, 33, 47, 48, 63, 65, 131)


@pytest.fixture(autouse=True)
def library() -> ctypes.CDLL:
    found = kernels()
    if found is None:
        pytest.skip("no C compiler here")
    return found


def config_of(dim: int, layers: int = 3, kv_heads: int = 2) -> ModelConfig:
    return ModelConfig(
        name="tiny",
        architecture="llama",
        tie_embeddings=True,
        bos_id=1,
        eos_ids=(2,),
        layers=layers,
        hidden_size=4 * dim,
        heads=4,
        kv_heads=kv_heads,
        head_dim=dim,
        intermediate_size=32,
        vocab_size=64,
        max_positions=1024,
        rope_theta=10000.0,
        rms_norm_eps=1e-5,
    )


def random_spans(dim: int, sizes: Sequence[int], spread: float = 1.0) -> list[SpanKV]:
    made = torch.Generator().manual_seed(dim + sum(sizes))
    shapes = [(3, 2, size, dim) for size in sizes]
    return [SpanKV(*(torch.randn(s, generator=made) * spread for _ in range(2))) for s in shapes]


def plainly(payload: bytes, config: ModelConfig, dtype: torch.dtype) -> list[SpanKV]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory_codec, "kernels", lambda: None)
        return decode_kv(payload, config, dtype)


def assert_same(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("dim", [32, 64, 96, 48, 6])
def test_expanded_kv_is_the_twins_to_the_last_bit(dim: int, bits: TraceBits, dtype: torch.dtype) -> None:
    config = config_of(dim)
    payload = encode_kv(random_spans(dim, TOKENS), bits)
    found, expected = decode_kv(payload, config, dtype), plainly(payload, config, dtype)
    assert [span.tokens for span in found] == list(TOKENS)
    for one, other in zip(found, expected, strict=True):
        assert_same(one.k, other.k)
        assert_same(one.v, other.v)


@settings(max_examples=40, deadline=None)
@given(st.data(), st.sampled_from([4, 8]), st.sampled_from([32, 64]), st.integers(1, 50))
def test_any_codes_and_scales_are_expanded_as_the_twin_does(
    data: st.DataObject, bits: TraceBits, dim: int, tokens: int
) -> None:
    """Scales that are infinite, not a number or too small to be normal, too."""
    config = config_of(dim)
    good = encode_kv(random_spans(dim, [tokens]), bits)
    seed = data.draw(st.integers(0, 2**32 - 1))
    bad = np.random.default_rng(seed).integers(0, 256, len(good) - 17, np.uint8).tobytes()
    payload = good[:17] + bad
    (found,), (expected,) = decode_kv(payload, config, torch.float32), plainly(payload, config, torch.float32)
    assert_same(found.k, expected.k)
    assert_same(found.v, expected.v)


@pytest.mark.parametrize("stride", [0.0, 0.25])
def test_packed_spans_fill_their_slots_of_a_cache_and_no_others(
    stride: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    def elsewhere(span: PackedSpan) -> SpanKV:
        raise AssertionError("expanded in memory of its own, and copied from there")

    monkeypatch.setattr(PackedSpan, "expanded", elsewhere)
    config = config_of(64)
    turning, use = rotaries(config)
    rotation = KeyRotation(turning, use)
    payload = encode_kv(random_spans(64, (33, 1, 130)), 4)
    caches = [KVCache(config, 400, torch.float32, rotation) for _ in range(2)]
    prefix = random_spans(64, (7,))[0]
    for cache, spans in zip(
        caches,
        (
            decode_kv(payload, config, torch.float32, packed=True),
            plainly(payload, config, torch.float32),
        ),
        strict=True,
    ):
        cache.k.fill_(torch.nan)
        cache.v.fill_(torch.nan)
        cache.load_prefix(prefix)
        cache.page_in(spans, stride=stride)
    packed, plain = caches
    torch.testing.assert_close(packed.k, plain.k, rtol=1e-6, atol=1e-6, equal_nan=True)
    assert_same(packed.v, plain.v)
    assert not packed.k[:, :, : packed.length].isnan().any()
    assert packed.k[:, :, packed.length :].isnan().all()


def test_a_packed_span_is_small_and_overwritten_when_it_is_dropped() -> None:
    payload = bytearray(encode_kv(random_spans(64, (40,)), 4))
    (span,) = decode_kv(payload, config_of(64), torch.float32, packed=True)
    (plain,) = decode_kv(payload, config_of(64), torch.float32)
    assert isinstance(span, PackedSpan) and span.tokens == 40
    assert span.nbytes * 6 < plain.nbytes
    assert torch.equal(span.k, plain.k) and torch.equal(span.v, plain.v)
    span.zero_()
    assert not span.k.any() and not span.v.any()
    assert not any(payload[-span.nbytes :])  # the bytes that came from the bank, and no copy of them


def test_keys_turned_in_place_are_the_twins() -> None:
    config = config_of(64)
    rotation = KeyRotation(*rotaries(config))
    cache = torch.randn(3, 2, 50, 64)
    keys, before = cache[:, :, 9:40], cache.clone()
    rotation.turn_(keys, 17)
    torch.testing.assert_close(keys, rotation(before[:, :, 9:40], 17), rtol=1e-6, atol=1e-6)
    assert torch.equal(cache[:, :, :9], before[:, :, :9]) and torch.equal(cache[:, :, 40:], before[:, :, 40:])


@pytest.mark.parametrize("rows", [1, 8, 31, 33, 65])
@pytest.mark.parametrize("dim", [64, 5])
def test_coded_keys_weigh_what_plain_ones_do(rows: int, dim: int) -> None:
    made = torch.Generator().manual_seed(rows + dim)
    sizes = [(1,), (63, 65, 2), (3,), *[(size,) for size in TOKENS]]
    payloads = [
        encode_route(
            [torch.randn(2, size, dim, generator=made) * (9 if size == 63 else 1) for size in of_one],
            torch.zeros(3),
        )
        for of_one in sizes
    ]
    queries = [torch.randn(rows, dim, generator=made), torch.randn(2, dim, generator=made)]
    coded = [decode_route(payload, coded=True) for payload in payloads]
    plain = [decode_route(payload) for payload in payloads]
    found, expected = span_sums(queries, coded), _plain_sums(queries, plain)
    torch.testing.assert_close(found, expected, rtol=2e-5, atol=1e-9)
    assert float(found.sum()) == pytest.approx(rows + 2, rel=1e-5)
    for one, other in zip(coded, plain, strict=True):
        assert torch.equal(one.keys, other.keys) and one.tokens == other.tokens
        assert one.held.dtype == torch.int8


def test_great_scores_do_not_overflow() -> None:
    payloads = [encode_route([torch.full((1, 9, 64), value)], torch.zeros(0)) for value in (50.0, -50.0)]
    coded = [decode_route(payload, coded=True) for payload in payloads]
    found = span_sums([torch.full((3, 64), 10.0)], coded)
    assert found.tolist() == pytest.approx([3.0, 0.0])


def test_coded_keys_are_overwritten_when_they_are_dropped() -> None:
    record = decode_route(encode_route([torch.randn(2, 9, 16)], torch.ones(4)), coded=True)
    record.zero_()
    assert not record.held.any() and not record.hidden.any() and not record.keys.any()


def test_the_structures_are_as_large_as_the_compiler_says(library: ctypes.CDLL) -> None:
    sizes = (ctypes.c_size_t * 2)()
    library.mnemos_read_sizes(sizes)
    assert list(sizes) == [SPAN_KEYS.itemsize, ctypes.sizeof(Packed)]
