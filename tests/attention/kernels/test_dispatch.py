"""Bad input gets its error from the dispatcher, before a kernel runs."""

import dataclasses
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch

from mnemos.attention.kernels.dispatch import (
    block_sparse,
    lse_merge,
    page_gather,
    quantize_pack,
    route_mass,
    route_msa,
    split_kv_attention,
)
from mnemos.attention.kernels.memory_table import MemoryTable, PlanBuffers, plan_splits, table_of_payloads
from mnemos.attention.kernels.read_blocks import ReadBlocks
from mnemos.attention.kernels.segments import SegmentKeys, segments_of_payloads
from mnemos.attention.kv import SpanKV
from mnemos.attention.memory_codec import TraceBits, encode_kv, encode_route


def payload(bits: TraceBits = 4, dim: int = 64) -> bytes:
    return encode_kv([SpanKV(torch.randn(1, 2, 5, dim), torch.randn(1, 2, 5, dim))], bits)


@pytest.fixture
def table() -> MemoryTable:
    return table_of_payloads([payload()])


@pytest.fixture
def segments() -> SegmentKeys:
    return segments_of_payloads([encode_route([torch.randn(2, 5, 64)], torch.zeros(2))])


Spoil = Callable[[dict[str, Any]], dict[str, Any]]


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda a: {"q": a["q"].int()}, "q is int32"),
        (lambda a: {"q": torch.randn(2, 6, 64)}, "q has shape"),
        (lambda a: {"q": torch.randn(1, 7, 64)}, "7 heads over 2 KV heads"),
        (lambda a: {"q": torch.randn(1, 34, 64)}, "a group is 1 to 16"),
        (lambda a: {"q": torch.randn(1, 64, 6).mT}, "not contiguous"),
        (lambda a: {"q": torch.randn(6 * 64 + 1)[1:].view(1, 6, 64)}, "boundary of 16 bytes"),
        (lambda a: {"q": a["q"].to("meta")}, "on meta"),
        (lambda a: {"layer": 1}, "layer 1 of a table of 1"),
        (lambda a: {"bias": torch.zeros(2)}, "bias has shape"),
        (
            lambda a: {"table": dataclasses.replace(a["table"], head_dim=32), "q": torch.randn(1, 6, 32)},
            "head_dim is 32",
        ),
    ],
)  # fmt: skip
def test_split_kv_attention_refuses(table: MemoryTable, spoil: Spoil, says: str) -> None:
    plan = plan_splits(table, [[0]])
    good = {"q": torch.randn(1, 6, 64), "table": table, "plan": plan, "layer": 0, "score_scale": 0.1}
    split_kv_attention(**good)
    with pytest.raises(ValueError, match=says):
        split_kv_attention(**{**good, **spoil(good)})


@pytest.mark.parametrize("reads", [[], [[]], [[0], []], [[1]], [[-1]]])
def test_a_plan_refuses_what_is_not_there(table: MemoryTable, reads: list[list[int]]) -> None:
    with pytest.raises(ValueError):
        plan_splits(table, reads)


@pytest.mark.parametrize("query_rows", [[], [[]], [[0, 0]], [[-1]], [[2]]])
def test_a_plan_refuses_rows_that_are_not_there(table: MemoryTable, query_rows: list[list[int]]) -> None:
    with pytest.raises(ValueError, match="of q"):
        plan_splits(table, [[0]], query_rows=query_rows, rows=2)
    plan = plan_splits(table, [[0]], query_rows=[[1]])
    with pytest.raises(ValueError, match="q has shape"):
        split_kv_attention(torch.randn(1, 6, 64), table, plan, 0, 0.1)


@pytest.mark.parametrize("short", ["splits", "batch", "tiles", "rows"])
def test_a_plan_refuses_buffers_that_are_too_small(table: MemoryTable, short: str) -> None:
    plan = plan_splits(table, [[0], [0]])
    room = {"splits": 2, "batch": 2, "tiles": 1, "rows": 2}
    plan.into(table, PlanBuffers.make(**room, device="cpu"))
    smaller = PlanBuffers.make(**{**room, short: room[short] - 1}, device="cpu")
    assert not smaller.fits(table, plan)
    with pytest.raises(ValueError, match="larger than its buffers"):
        plan.into(table, smaller)


def test_a_table_refuses_payloads_that_do_not_go_together() -> None:
    for payloads in ([], [payload(4), payload(8)], [payload(dim=64), payload(dim=128)], [payload(32)]):
        with pytest.raises(ValueError):
            table_of_payloads(payloads)
    with pytest.raises(ValueError, match="longer or shorter"):
        table_of_payloads([payload() + b"x"])
    for size in (0, 5, 14):
        with pytest.raises(ValueError, match="shorter than its header"):
            table_of_payloads([payload()[:size]])
    with pytest.raises(ValueError, match="a span without tokens"):
        table_of_payloads(
            [encode_kv([SpanKV(torch.empty(1, 2, 1, 64), torch.empty(1, 2, 1, 64))], 16)[:13] + bytes(4)]
        )


def test_lse_merge_refuses() -> None:
    part, lse = torch.randn(3, 64), torch.zeros(3)
    for bad in (
        (part[:2], lse, part, lse, 1.0),
        (part, lse.double(), part, lse, 1.0),
        (part, lse, part.int(), lse, 1.0),
        (part, lse, part, lse, 0.0),
        (part, lse, part[:0], lse, 1.0),
    ):
        with pytest.raises(ValueError, match="lse_merge"):
            lse_merge(*bad)


def test_page_gather_refuses() -> None:
    source, out = torch.zeros(64, dtype=torch.uint8), torch.zeros(64, dtype=torch.uint8)
    for page in ([0, 0, 8], [8, 0, 16], [0, 56, 16], [64, 0, 16], [0, 64, 16], [-16, 0, 16], [0, 0, -16]):
        with pytest.raises(ValueError, match="page_gather"):
            page_gather(source, torch.tensor([page]), out)
    with pytest.raises(ValueError, match="page_gather: pages has shape"):
        page_gather(source, torch.empty(0, 3, dtype=torch.int64), out)


def test_the_rest_refuses(segments: SegmentKeys) -> None:
    with pytest.raises(ValueError, match="route_mass: queries has shape"):
        route_mass(torch.randn(1, 5, 64), segments, 0.1)
    with pytest.raises(ValueError, match="route_msa: keys is float16"):
        route_msa(torch.randn(3, 64), torch.randn(3, 64).half())
    with pytest.raises(ValueError, match="multiple of 16"):
        route_msa(torch.randn(3, 8), torch.randn(3, 8))
    with pytest.raises(ValueError, match="quantize_pack: v has shape"):
        quantize_pack(torch.randn(2, 5, 64), torch.randn(2, 6, 64), 4)
    with pytest.raises(ValueError, match="quantize_pack: v is float16"):
        quantize_pack(torch.randn(2, 5, 64), torch.randn(2, 5, 64).half(), 4)
    with pytest.raises(ValueError):
        segments_of_payloads([])


def unaligned(like: torch.Tensor) -> torch.Tensor:
    """A copy that starts one element behind a boundary of 16 bytes."""
    room = torch.zeros(like.numel() + 1, dtype=like.dtype)[1:]
    return room.view(like.shape).copy_(like)


def strided(like: torch.Tensor) -> torch.Tensor:
    """A copy whose rows do not lie one behind the other."""
    return torch.stack([like, like], dim=-1)[..., 0]


def reads() -> dict[str, Any]:
    return {
        "q": torch.randn(2, 6, 5, 64),
        "k": torch.randn(2, 2, 7, 64),
        "v": torch.randn(2, 2, 7, 64),
        "there": torch.ones(2, 7, dtype=torch.bool),
        "memory": ReadBlocks(
            torch.randn(3, 4, 2, 64),
            torch.randn(3, 4, 2, 64),
            torch.tensor([4, 1, 2]),
            torch.tensor([[0, 1], [2, 0]]),
            torch.ones(2, 5, 2, dtype=torch.bool),
        ),
        "score_scale": 0.1,
    }


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"q": lambda t: t.int()}, "q is int32"),
        ({"q": lambda t: t[:, :, :0]}, "q has shape"),
        ({"q": lambda t: t[:, :5].contiguous()}, "5 heads over 2 KV heads"),
        ({"q": lambda t: torch.randn(2, 34, 5, 64)}, "a group is 1 to 16"),
        ({"q": strided}, "q is not contiguous"),
        ({"q": unaligned}, "q does not start on a boundary of 16 bytes"),
        ({"q": lambda t: t.to("meta")}, "on meta"),
        ({"k": lambda t: t.half()}, "k is float16"),
        ({"v": lambda t: t[..., :32]}, "v has shape"),
        ({"there": lambda t: t.long()}, "there is int64"),
        ({"there": lambda t: t[:, :5]}, "there has shape"),
        (dict.fromkeys("kv", lambda t: t[:, :, :3]) | {"there": lambda t: t[:, :3]}, "there are 3 keys"),
        ({"memory.k": lambda t: t[:0], "memory.v": lambda t: t[:0]}, "memory.k has shape"),
        ({"memory.k": lambda t: t.bfloat16()}, "memory.k is bfloat16"),
        ({"memory.v": strided}, "memory.v is not contiguous"),
        ({"memory.used": lambda t: t.int()}, "memory.used is int32"),
        ({"memory.used": lambda t: t[:2]}, "memory.used has shape"),
        ({"memory.blocks": lambda t: t[:, :0]}, "memory.blocks has shape"),
        ({"memory.blocks": lambda t: t[:1]}, "memory.blocks has shape"),
        ({"memory.visible": lambda t: t[:, :4]}, "memory.visible has shape"),
        ({"memory.visible": lambda t: t.to(torch.uint8)}, "memory.visible is uint8"),
        ({"memory.visible": lambda t: t.to("meta")}, "memory.visible is on meta"),
    ],
)  # fmt: skip
def test_block_sparse_refuses(changes: dict[str, Callable[[torch.Tensor], torch.Tensor]], says: str) -> None:
    given = reads()
    assert block_sparse(**given).shape == given["q"].shape
    for name, change in changes.items():
        part, _, field = name.partition(".")
        if field:
            changed = {field: change(getattr(given[part], field))}
            given[part] = dataclasses.replace(given[part], **changed)
        else:
            given[part] = change(given[part])
    if says == "there are 3 keys":
        given |= {part: given[part].contiguous() for part in ("k", "v", "there")}
    with pytest.raises(ValueError, match=f"block_sparse: .*{says}"):
        block_sparse(**given)


def test_block_sparse_refuses_a_width_that_no_kernel_has() -> None:
    given = reads() | {"memory": None}
    given |= {part: torch.randn(2, 2, 7, 48) for part in ("q", "k", "v")}
    with pytest.raises(ValueError, match="head_dim is 48; it takes 64, 80"):
        block_sparse(**given)


@pytest.mark.parametrize("spoil", [unaligned, strided, lambda tensor: tensor.to("meta")])
def test_every_entry_refuses_what_lies_badly(segments: SegmentKeys, spoil: Callable[..., Any]) -> None:
    rows, lse = torch.randn(3, 64), torch.zeros(3)
    spans = torch.randn(2, 5, 64)
    page = torch.tensor([[0, 0, 16]])
    some = torch.zeros(64, dtype=torch.uint8)
    says = "not contiguous|boundary of 16 bytes|on meta"
    for call in (
        lambda: lse_merge(spoil(rows), lse, rows, lse),
        lambda: lse_merge(rows, lse, rows, spoil(lse)),
        lambda: quantize_pack(spans, spoil(spans), 4),
        lambda: route_msa(rows, spoil(rows)),
        lambda: route_msa(spoil(rows), rows),
        lambda: route_mass(spoil(torch.randn(2, 3, 64)), segments, 0.1),
        lambda: route_mass(
            torch.randn(2, 3, 64), dataclasses.replace(segments, keys=spoil(segments.keys)), 0.1
        ),
        lambda: page_gather(some, page, spoil(some)),
        lambda: page_gather(spoil(some), page, some),
    ):
        with pytest.raises(ValueError, match=says):
            call()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"keys": lambda t: t[:0]}, "segments.keys has shape"),
        ({"keys": lambda t: t[0]}, "2 dimensions; it takes 3"),
        ({"keys": lambda t: t.to(torch.uint8)}, "segments.keys is uint8"),
        ({"owner": lambda t: t[:0], "starts": lambda t: t[:1]}, "segments.owner has shape"),
        ({"owner": lambda t: t.long()}, "segments.owner is int64"),
        ({"starts": lambda t: t[:1]}, "segments.starts has shape"),
        ({"starts": lambda t: t.int()}, "segments.starts is int32"),
        ({"scales": lambda t: t.float()}, "segments.scales is float32"),
        ({"scales": lambda t: t[..., :32]}, "segments.scales has shape"),
    ],
)
def test_route_mass_refuses(
    segments: SegmentKeys, changes: dict[str, Callable[[torch.Tensor], torch.Tensor]], says: str
) -> None:
    queries = torch.randn(2, 3, 64)
    route_mass(queries, segments, 0.1)
    spoilt = {part: change(getattr(segments, part)) for part, change in changes.items()}
    with pytest.raises(ValueError, match=f"route_mass: .*{says}"):
        route_mass(queries, dataclasses.replace(segments, **spoilt), 0.1)


def test_a_list_of_pages_is_on_the_host_and_in_one_piece() -> None:
    some = torch.zeros(64, dtype=torch.uint8)
    pages = torch.tensor([[0, 16, 16], [16, 0, 16]])
    with pytest.raises(ValueError, match="pages is on meta"):
        page_gather(some, pages.to("meta"), some.clone())
    with pytest.raises(ValueError, match="pages is not contiguous"):
        page_gather(some, strided(pages), some.clone())


def test_one_token_is_enough(segments: SegmentKeys) -> None:
    given = reads()
    given |= {part: given[part][:, :, :1].contiguous() for part in ("q", "k", "v")}
    given |= {"there": torch.ones(2, 1, dtype=torch.bool), "memory": None}
    out = block_sparse(**given)
    torch.testing.assert_close(out, given["v"].repeat_interleave(3, dim=1))
    alone = segments_of_payloads([encode_route([torch.randn(2, 1, 64)], torch.zeros(2))])
    assert route_mass(torch.randn(2, 1, 64), alone, 0.1).shape == (2, 1, 1)
    assert quantize_pack(torch.randn(2, 1, 64), torch.randn(2, 1, 64), 4)[0].shape == (2, 1, 32)


def test_triton_is_not_imported_without_a_gpu() -> None:
    code = (
        "import sys, torch; import mnemos.attention.kernels.dispatch as d; "
        "d.route_msa(torch.randn(3, 64), torch.randn(3, 64)); "
        "sys.exit('mnemos.attention.kernels.route_msa' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
