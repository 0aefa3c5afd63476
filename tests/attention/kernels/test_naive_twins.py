"""The naive twins against the product's own code: what the decoder, the router and the codec compute."""

from typing import Literal

import pytest
import torch

from mnemos.attention.calibration import Calibration, ReadingTemperature
from mnemos.attention.config import ModelConfig
from mnemos.attention.decoder import Decoder
from mnemos.attention.kernels.dispatch import (
    lse_merge,
    page_gather,
    quantize_pack,
    route_mass,
    route_msa,
    split_kv_attention,
)
from mnemos.attention.kernels.memory_table import plan_splits, table_of_payloads
from mnemos.attention.kernels.segments import segment_mass, segments_of_payloads
from mnemos.attention.kv import KVCache, SpanKV
from mnemos.attention.memory_codec import TraceBits, decode_kv, decode_route, encode_kv, encode_route
from mnemos.attention.routing import RouteQuery, span_mass

HEADS, KV_HEADS, DIM, LAYERS = 6, 2, 64, 2
CONFIG = ModelConfig(
    name="tiny",
    architecture="llama",
    vocab_size=16,
    hidden_size=HEADS * DIM,
    layers=LAYERS,
    heads=HEADS,
    kv_heads=KV_HEADS,
    head_dim=DIM,
    intermediate_size=64,
    rms_norm_eps=1e-5,
    rope_theta=10000.0,
    max_positions=512,
    tie_embeddings=True,
    bos_id=None,
    eos_ids=(0,),
)


def random_span(tokens: int) -> SpanKV:
    return SpanKV(*(torch.randn(LAYERS, KV_HEADS, tokens, DIM) for _ in range(2)))


@pytest.mark.parametrize("bits", [4, 8, 16])
@pytest.mark.parametrize(("temperature", "mass_scale"), [(1.0, 1.0), (0.9, 0.8)])
def test_attention_in_parts_is_the_decoders(bits: TraceBits, temperature: float, mass_scale: float) -> None:
    torch.manual_seed(bits)
    payloads = [encode_kv([random_span(63), random_span(1)], bits), encode_kv([random_span(97)], bits)]
    spans = [span for payload in payloads for span in decode_kv(payload, CONFIG, torch.float32)]
    cache = KVCache(CONFIG, 200, torch.float32)
    cache.load_prefix(random_span(5))
    cache.page_in(spans, temperature=temperature, mass_scale=mass_scale)
    end = cache.length + 13
    cache.k[:, :, cache.length : end], cache.v[:, :, cache.length : end] = (
        torch.randn(LAYERS, KV_HEADS, 13, DIM) for _ in range(2)
    )
    decoder = object.__new__(Decoder)  # only its scale takes part
    decoder.scale = DIM**-0.5
    q = torch.randn(HEADS, 1, DIM)
    expected = decoder._attend(q, cache, 1, end, None, None).view(HEADS, DIM)

    table = table_of_payloads(payloads)
    plan = plan_splits(table, [range(3)])
    memory, memory_lse = split_kv_attention(q.view(1, HEADS, DIM), table, plan, 1, DIM**-0.5 / temperature)
    own = [*range(cache.memory_start), *range(cache.memory_end, end)]
    k, v = (part[1, :, own].repeat_interleave(HEADS // KV_HEADS, dim=0) for part in (cache.k, cache.v))
    scores = torch.einsum("hd,htd->ht", q[:, 0], k) * DIM**-0.5
    working = torch.einsum("ht,htd->hd", scores.softmax(dim=-1), v)
    out = lse_merge(memory[0], memory_lse[0], working, scores.logsumexp(dim=-1), mass_scale)
    assert torch.allclose(out, expected, atol=1e-5)


def test_route_mass_is_the_routers() -> None:
    torch.manual_seed(0)
    calibration = Calibration(
        key_heads=((0, 1), (3, 4), (3, 5)),
        weights={"mass": 1.0},
        hidden_layer=None,
        recall_threshold=3.0,
        reading=(ReadingTemperature(memories=4, temperature=0.9, mass_scale=0.8),),
    )
    spans: tuple[tuple[int, ...], ...] = ((63, 1), (7,), (65,))
    payloads = [encode_route([torch.randn(2, n, DIM) for n in sizes], torch.zeros(3)) for sizes in spans]
    query = RouteQuery(torch.randn(3, 5, DIM), None)
    expected = span_mass(query, [decode_route(payload) for payload in payloads], calibration, 2)
    queries = torch.full((2, 10, DIM), 0.0)
    queries[0, :5] = query.queries[0]  # (0, 1) reads KV head (0, 0)
    queries[1] = query.queries[1:].flatten(0, 1)  # (3, 4) and (3, 5) read (3, 2)
    lse = route_mass(queries, segments_of_payloads(payloads), DIM**-0.5)
    mass = segment_mass(lse, [5, 10])
    assert torch.allclose(mass, expected, atol=1e-6)
    assert float(mass.sum()) == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("bits", [4, 8])
def test_quantize_pack_gives_a_payloads_bytes(bits: Literal[4, 8]) -> None:
    span = random_span(65)
    payload = encode_kv([span], bits)
    parts = quantize_pack(span.k, span.v, bits)
    packed = b"".join(part.contiguous().view(torch.uint8).numpy().tobytes() for part in parts)
    assert payload.endswith(packed)
    assert len(payload) - len(packed) == 17  # the header


def test_page_gather_moves_pages() -> None:
    source = torch.arange(256, dtype=torch.uint8)
    out = torch.zeros(64, dtype=torch.uint8)
    page_gather(source, torch.tensor([[32, 0, 16], [240, 32, 16]]), out)
    assert out.tolist() == [*range(32, 48), *[0] * 16, *range(240, 256), *[0] * 16]


def test_route_msa_is_the_best_of_the_query_tokens() -> None:
    queries, keys = torch.randn(7, 32), torch.randn(13, 32)
    expected = [max(float(query @ key) for query in queries) for key in keys]
    assert route_msa(queries, keys).tolist() == pytest.approx(expected, abs=1e-5)
