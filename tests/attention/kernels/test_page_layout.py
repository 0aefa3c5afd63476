"""Pages hold what the codec reads from the payload, and nothing else."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from tests.attention.gpu.memories import CONFIG

from mnemos.attention.kernels.memory_table import table_of_payloads
from mnemos.attention.kernels.naive.split_kv_attention import read_span
from mnemos.attention.kernels.page_layout import PageLayout, PayloadPages, read_head
from mnemos.attention.kv import SpanKV
from mnemos.attention.memory_codec import TraceBits, decode_kv, encode_kv


@given(
    st.lists(st.integers(1, 130), min_size=1, max_size=4),
    st.sampled_from([4, 8, 16]),
    st.sampled_from([(1, 8), (2, 64), (3, 80), (1, 96)]),
    st.integers(1, 3),
)
@example([1, 31, 32, 33, 47, 48, 63, 64, 65, 79, 80, 96, 111], 4, (2, 64), 2)
def test_pages_hold_what_the_codec_reads(
    sizes: list[int], bits: TraceBits, shape: tuple[int, int], layers: int
) -> None:
    heads, dim = shape
    config = dataclasses.replace(CONFIG, layers=layers, heads=heads, kv_heads=heads, head_dim=dim)
    torch.manual_seed(sum(sizes))
    spans = [SpanKV(*(torch.randn(layers, heads, n, dim) * 3 + 1 for _ in range(2))) for n in sizes]
    payload = encode_kv(spans, bits)
    table = table_of_payloads([payload])
    assert table.layers == layers and table.tokens == tuple(sizes)
    for index, span in enumerate(decode_kv(payload, config, torch.float32)):
        assert sum(table.part_bytes(index)) * 8 >= 2 * span.k.numel() * bits
        for layer in range(layers):
            k, v = read_span(table, index, layer)
            assert torch.equal(k, span.k[layer]) and torch.equal(v, span.v[layer])


@pytest.mark.parametrize("bits", [4, 8, 16])
def test_every_byte_of_a_page_is_written_by_any_choice_of_layers(bits: TraceBits) -> None:
    spans = [SpanKV(*(torch.randn(3, 2, n, 64) for _ in range(2))) for n in (47, 33, 1)]
    payload = encode_kv(spans, bits)
    head = read_head(payload)
    pages = PayloadPages(payload, head)
    results = []
    for fill, steps in ((0, [range(3)]), (255, [range(2, 3), range(0, 2)]), (170, [range(1, 3), range(1)])):
        # In the middle of a larger buffer, as in the host pool.
        buffer = np.full((3, head.tiles + 4, head.layout.page_bytes), fill, np.uint8)
        for layers in steps:
            pages.write(buffer[layers.start : layers.stop, 2:-2], layers)
        results.append(buffer[:, 2:-2].copy())
        assert (buffer[:, :2] == fill).all() and (buffer[:, -2:] == fill).all()
    assert all(np.array_equal(results[0], other) for other in results[1:])


def test_parts_begin_on_boundaries_of_16_bytes() -> None:
    for bits in (4, 8, 16):
        for heads, dim in ((1, 64), (3, 80), (8, 96), (8, 128), (2, 256)):
            layout = PageLayout(bits, heads, dim)
            places = (32 * layout.row_bytes, layout.v_codes, layout.v_scales, layout.head_bytes)
            assert not any(place % 16 for place in places)
    assert PageLayout(4, 8, 128).page_bytes == 40960
    for wrong in ((32, 2, 64), (4, 0, 64), (4, 2, 66)):
        with pytest.raises(ValueError, match="pages"):
            PageLayout(*wrong)
