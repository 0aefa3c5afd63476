import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mnemos.attention.config import ModelConfig
from mnemos.attention.kv import SpanKV
from mnemos.attention.memory_codec import TraceBits, decode_kv, decode_route, encode_kv, encode_route
from mnemos.errors import BankUnreadableError, MnemosError, ModelMismatchError

SHAPE = (2, 1)  # layers, kv_heads of `tiny_config`


def spans_of(*sizes: int) -> list[SpanKV]:
    torch.manual_seed(sum(sizes))
    return [SpanKV(torch.randn(*SHAPE, n, 32), torch.randn(*SHAPE, n, 32)) for n in sizes]


@pytest.mark.parametrize("sizes", [(1,), (63,), (65, 1), (7, 33, 100)])
def test_unquantised_kv_comes_back_to_the_bit(tiny_config: ModelConfig, sizes: tuple[int, ...]) -> None:
    spans = spans_of(*sizes)
    back = decode_kv(encode_kv(spans, 32), tiny_config, torch.float32)
    assert [span.tokens for span in back] == list(sizes)
    for before, after in zip(spans, back, strict=True):
        assert torch.equal(before.k, after.k)
        assert torch.equal(before.v, after.v)


@pytest.mark.parametrize(("bits", "bound"), [(16, 0.02), (8, 0.03), (4, 0.35)])
def test_each_width_stays_within_its_bound(tiny_config: ModelConfig, bits: TraceBits, bound: float) -> None:
    spans = spans_of(40, 17)
    for before, after in zip(
        spans, decode_kv(encode_kv(spans, bits), tiny_config, torch.float32), strict=True
    ):
        assert (before.k - after.k).abs().max() < bound
        assert (before.v - after.v).abs().max() < bound


def test_another_models_shape_is_refused_by_name(tiny_config: ModelConfig) -> None:
    payload = encode_kv(spans_of(5), 4)
    with pytest.raises(ModelMismatchError, match="bank reencode"):
        decode_kv(payload, dataclasses.replace(tiny_config, layers=3), torch.float32)


@settings(max_examples=200)
@given(st.data())
def test_mutated_bytes_give_an_error_or_a_trace_of_the_same_shape(
    tiny_config: ModelConfig, data: st.DataObject
) -> None:
    """Frames are authenticated before they come here; still, no mutation may crash or run away."""
    spans = spans_of(5, 20)
    keys = [span.k[0] for span in spans]
    for payload, decode in (
        (encode_kv(spans, 4), lambda b: decode_kv(b, tiny_config, torch.float32)),
        (encode_route(keys, torch.zeros(4)), decode_route),
    ):
        mutated = bytearray(payload)
        cut = data.draw(st.integers(0, len(mutated)))
        if data.draw(st.booleans()):
            mutated = mutated[:cut]
        elif cut < min(len(mutated), 24):
            mutated[cut] ^= data.draw(st.integers(1, 255))
        try:
            decode(bytes(mutated))
        except MnemosError:
            continue


def test_a_header_that_claims_too_much_takes_no_room(tiny_config: ModelConfig) -> None:
    payload = bytearray(encode_kv(spans_of(5, 20), 4))
    payload[13:17] = (1 << 31).to_bytes(4, "little")  # tokens of the first span
    with pytest.raises(BankUnreadableError, match="shorter than its header"):
        decode_kv(bytes(payload), tiny_config, torch.float32)


def test_routing_records_come_back_close_with_their_spans() -> None:
    keys = [torch.randn(2, 5, 32), torch.randn(2, 40, 32)]
    record = decode_route(encode_route(keys, torch.arange(8.0)))
    assert record.span_tokens == (5, 40)
    assert record.tokens == 45
    assert (record.keys - torch.cat(keys, dim=1)).abs().max() < 0.03
    assert torch.equal(record.hidden, torch.arange(8.0))


@pytest.mark.parametrize("payload", [b"", b"MRT1", b"nonsense and more of it"])
def test_foreign_bytes_are_refused(tiny_config: ModelConfig, payload: bytes) -> None:
    with pytest.raises(BankUnreadableError):
        decode_route(payload)
    with pytest.raises(BankUnreadableError):
        decode_kv(payload, tiny_config, torch.float32)
