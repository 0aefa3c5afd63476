"""The device pool on plain tensors: what is asked for is there, what was erased is zeros, nothing breaks."""

from collections.abc import Mapping, Sequence

import pytest
import torch

from mnemos.attention.config import ModelConfig
from mnemos.attention.gpu.host_pool import HostPool
from mnemos.attention.gpu.page_room import Key
from mnemos.attention.gpu.pool import DevicePool
from mnemos.attention.kernels.dispatch import split_kv_attention
from mnemos.attention.kernels.memory_table import plan_splits, table_of_payloads
from mnemos.attention.kv import SpanKV
from mnemos.attention.memory_codec import TraceBits, encode_kv

LAYERS, KV_HEADS, DIM = 3, 2, 64
CONFIG = ModelConfig(
    name="tiny",
    architecture="llama",
    vocab_size=16,
    hidden_size=4 * DIM,
    layers=LAYERS,
    heads=4,
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
SIZES = {"one": (1,), "two": (47, 33), "long": (130,), "even": (64,)}


def payload_of(name: str, bits: TraceBits = 4) -> bytes:
    torch.manual_seed(len(name) + ord(name[-1]))
    spans = [SpanKV(*(torch.randn(LAYERS, KV_HEADS, size, DIM) for _ in range(2))) for size in SIZES[name]]
    return encode_kv(spans, bits)


PAYLOADS: dict[Key, bytes] = {("a", name): payload_of(name) for name in SIZES}
PAGE = LAYERS * KV_HEADS * (2 * 32 * DIM // 2 + 4 * DIM + 32 * 4 * 2)


def fetch(keys: Sequence[Key]) -> Mapping[Key, bytes]:
    return {key: PAYLOADS[key] for key in keys if key in PAYLOADS}


def names(*wanted: str) -> list[Key]:
    return [("a", name) for name in wanted]


@pytest.mark.parametrize("host_pages", [None, 0, 3, 40])
def test_attention_over_the_pool_is_that_over_the_payloads(host_pages: int | None) -> None:
    host = None if host_pages is None else HostPool(CONFIG, 4, budget_bytes=host_pages * PAGE)
    pool = DevicePool(CONFIG, 4, budget_bytes=12 * PAGE, device="cpu", host=host)
    torch.manual_seed(0)
    q = torch.randn(1, 4, DIM)
    for wanted in (("two", "one"), ("long", "two"), ("even", "one", "long"), ("two", "one")):
        with pool.page_in(names(*wanted), fetch) as reads:
            reads.wait(LAYERS - 1)
            assert reads.keys == tuple(names(*wanted))
            plain = table_of_payloads([PAYLOADS[key] for key in reads.keys])
            every = [range(len(reads.table.tokens))]
            for layer in range(LAYERS):
                ours = split_kv_attention(q, reads.table, plan_splits(reads.table, every), layer, 0.125)
                twin = split_kv_attention(q, plain, plan_splits(plain, every), layer, 0.125)
                assert all(torch.equal(*pair) for pair in zip(ours, twin, strict=True))
    assert pool.bytes <= pool.budget_bytes == 12 * PAGE
