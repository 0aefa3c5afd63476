"""The kernels' one way in: inputs are checked, then Triton runs on CUDA devices and plain torch elsewhere."""

import importlib
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor

from mnemos.attention.kernels.block_sparse_checks import check_block_sparse
from mnemos.attention.kernels.checks import (
    FLOATS,
    HEAD_DIMS,
    MAX_GROUP,
    check_dtype,
    check_shape,
    check_tensors,
)
from mnemos.attention.kernels.memory_table import MemoryTable, SplitPlan
from mnemos.attention.kernels.read_blocks import ReadBlocks
from mnemos.attention.kernels.segments import SegmentKeys
from mnemos.attention.kernels.working_rows import FIELDS, WorkingRows

Path = Literal["triton", "naive"]

_forced: ContextVar[Path | None] = ContextVar("mnemos_kernel_path", default=None)


@contextmanager
def forced(path: Path) -> Iterator[None]:
    """Take this path whatever the device; for tests and for comparing the two."""
    token = _forced.set(path)
    try:
        yield
    finally:
        _forced.reset(token)


def split_kv_attention(
    q: Tensor, table: MemoryTable, plan: SplitPlan, layer: int, score_scale: float, bias: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """One query row per head over the memories of each conversation.

    `q [rows, heads, head_dim]`, a row for each conversation unless the plan names others; `score_scale` is
    the model's over the temperature; `bias [spans of the table]` (fp32) is added to the scores of a span's
    tokens. Returns the output `[batch, heads, head_dim]` and the log-sum-exp of the scores `[batch, heads]`,
    both fp32; zeros and -inf for a conversation that reads nothing. Raises ValueError.
    """
    name = "split_kv_attention"
    check_dtype(name, "q", q, FLOATS)
    check_shape(name, "q", q, (plan.rows, None, table.head_dim))
    tensors = {"q": q, "table.pool": table.pool, "table.pages": table.pages, "plan.work": plan.work}
    if bias is not None:
        check_shape(name, "bias", bias, (len(table.tokens),))
        check_dtype(name, "bias", bias, FLOATS[2:])
        tensors["bias"] = bias
    check_tensors(name, **tensors)
    if table.head_dim not in HEAD_DIMS:
        raise ValueError(f"{name}: head_dim is {table.head_dim}; it takes {', '.join(map(str, HEAD_DIMS))}")
    group, rest = divmod(q.shape[1], table.kv_heads)
    if rest or group > MAX_GROUP:
        raise ValueError(
            f"{name}: {q.shape[1]} heads over {table.kv_heads} KV heads; a group is 1 to {MAX_GROUP} heads"
        )
    if not 0 <= layer < table.layers:
        raise ValueError(f"{name}: layer {layer} of a table of {table.layers} layers")
    return _twin(name, q)(q, table, plan, layer, score_scale, bias)  # type: ignore[no-any-return]


def lse_merge(
    memory: Tensor, memory_lse: Tensor, working: Tensor, working_lse: Tensor, mass_scale: float = 1.0
) -> Tensor:
    """The memory part and the working part of one attention, `[rows, head_dim]` in the dtype of `working`.

    Adaptive parallel encoding (arXiv 2502.05431): the log-sum-exps `[rows]` (fp32) weigh the parts, the
    memory's times `mass_scale`; its temperature was part of the scores. A part whose log-sum-exp is -inf is
    empty, and where both are the row is zeros. Raises ValueError.
    """
    name = "lse_merge"
    check_dtype(name, "memory", memory, FLOATS)
    check_dtype(name, "working", working, FLOATS)
    check_shape(name, "working", working, (None, None))
    rows, dim = working.shape
    check_shape(name, "memory", memory, (rows, dim))
    for part, lse in (("memory_lse", memory_lse), ("working_lse", working_lse)):
        check_shape(name, part, lse, (rows,))
        check_dtype(name, part, lse, (torch.float32,))
    check_tensors(name, memory=memory, memory_lse=memory_lse, working=working, working_lse=working_lse)
    if not mass_scale > 0:
        raise ValueError(f"{name}: mass_scale is {mass_scale}; it must be above zero")
    return _twin(name, working)(memory, memory_lse, working, working_lse, mass_scale)  # type: ignore[no-any-return]


def route_mass(queries: Tensor, segments: SegmentKeys, score_scale: float) -> Tensor:
    """Log-sum-exp of scores by segment, `[key_heads, rows, segments]` in fp32, which `segment_mass` takes.

    `queries [key_heads, rows, head_dim]`: what the retrieval heads behind each key head ask. Scores are taken
    at `score_scale`. Every segment has a token. Raises ValueError.
    """
    name = "route_mass"
    if segments.keys.dim() != 3:
        raise ValueError(f"{name}: segments.keys has {segments.keys.dim()} dimensions; it takes 3")
    heads, dim = segments.keys.shape[1:]
    check_dtype(name, "queries", queries, FLOATS)
    check_shape(name, "queries", queries, (heads, None, dim))
    check_shape(name, "segments.keys", segments.keys, (None, heads, dim))
    check_shape(name, "segments.owner", segments.owner, (None,))
    check_dtype(name, "segments.owner", segments.owner, (torch.int32,))
    check_shape(name, "segments.starts", segments.starts, (segments.segments + 1,))
    check_dtype(name, "segments.starts", segments.starts, (torch.int64,))
    check_shape(name, "segments.scales", segments.scales, (None, heads, dim))
    check_dtype(name, "segments.keys", segments.keys, (torch.int8,))
    check_dtype(name, "segments.scales", segments.scales, (torch.float16,))
    check_tensors(
        name,
        queries=queries,
        **{f"segments.{part}": getattr(segments, part) for part in ("keys", "scales", "starts", "owner")},
    )
    return _twin(name, queries)(queries, segments, score_scale)  # type: ignore[no-any-return]


def quantize_pack(k: Tensor, v: Tensor, bits: Literal[4, 8]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """K codes, K scales, V codes and V scales of one span, as a KV payload holds them.

    `k` and `v` are `[..., tokens, head_dim]`; codes are uint8 `[..., tokens, head_dim * bits / 8]`, scales
    fp16 `[2, ..., groups, head_dim]` and `[2, ..., tokens, head_dim / 32]`. Both paths give the same bytes
    for finite input. Raises ValueError.
    """
    name = "quantize_pack"
    if bits not in (4, 8):
        raise ValueError(f"{name}: {bits} bits; it takes 4 or 8")
    check_dtype(name, "k", k, FLOATS)
    check_dtype(name, "v", v, (k.dtype,))
    check_shape(name, "k", k, (None,) * max(k.dim(), 2))
    check_shape(name, "v", v, k.shape)
    check_tensors(name, k=k, v=v)
    if k.shape[-1] not in HEAD_DIMS:
        raise ValueError(f"{name}: head_dim is {k.shape[-1]}; it takes {', '.join(map(str, HEAD_DIMS))}")
    return _twin(name, k)(k, v, bits)  # type: ignore[no-any-return]


def page_gather(source: Tensor, pages: Tensor, out: Tensor) -> None:
    """Copy pages of `source [bytes]` into `out [bytes]`, both uint8; the source may be pinned host memory.

    `pages [pages, 3]` (int64, on the host): place in the source, place in `out`, size, in bytes and each a
    multiple of 16; pages must not overlap in `out`. Raises ValueError.
    """
    name = "page_gather"
    for part, tensor in (("source", source), ("out", out)):
        check_dtype(name, part, tensor, (torch.uint8,))
        check_shape(name, part, tensor, (None,))
    check_shape(name, "pages", pages, (None, 3))
    check_dtype(name, "pages", pages, (torch.int64,))
    check_tensors(name, source=source, **({} if out.is_cuda and source.is_pinned() else {"out": out}))
    check_tensors(name, out=out)
    if pages.device.type != "cpu":
        raise ValueError(f"{name}: pages is on {pages.device}; the list of pages belongs on the host")
    if not pages.is_contiguous():
        raise ValueError(f"{name}: pages is not contiguous; pass pages.contiguous()")
    if bool((pages % 16).any()):
        raise ValueError(f"{name}: a page is not on a boundary of 16 bytes, or its size is no multiple of 16")
    ends = pages[:, :2] + pages[:, 2:]
    if int(pages.min()) < 0 or int(ends[:, 0].max()) > len(source) or int(ends[:, 1].max()) > len(out):
        raise ValueError(f"{name}: a page lies outside of the source or of the output")
    if source.numel() % 16 or out.numel() % 16:
        raise ValueError(f"{name}: a buffer of pages is a multiple of 16 bytes long")
    _twin(name, out)(source, pages, out)


def route_msa(queries: Tensor, keys: Tensor) -> Tensor:
    """Best score over query tokens of each pooled key, `[chunks]` in fp32.

    `queries [tokens, kv_heads * head_dim]` are folded over heads, `keys [chunks, kv_heads * head_dim]`, both
    of one dtype and their width a multiple of 16. Raises ValueError.
    """
    name = "route_msa"
    check_shape(name, "queries", queries, (None, None))
    check_dtype(name, "queries", queries, FLOATS)
    check_shape(name, "keys", keys, (None, queries.shape[1]))
    check_dtype(name, "keys", keys, (queries.dtype,))
    check_tensors(name, queries=queries, keys=keys)
    if queries.shape[1] % 16:
        raise ValueError(f"{name}: a key has {queries.shape[1]} channels; it takes a multiple of 16")
    return _twin(name, keys)(queries, keys)  # type: ignore[no-any-return]


def place_rows(
    qkv: Tensor,
    cis: Tensor,
    source: Tensor,
    norm: Tensor | None,
    eps: float,
    working: WorkingRows,
    layer: int,
) -> Tensor:
    """Queries of a decode step after norm and RoPE; its keys and values go into the rows' caches.

    `qkv [rows, (heads + 2 kv_heads) * head_dim]` with rotary pairs as neighbours; `norm [heads + kv_heads,
    head_dim]` (fp32) is of queries and keys. `cis [rows + reads, head_dim]` (fp32) are cosines and sines in
    turn: the first for the rows, the others for queries of the rows `source [reads]` (int32) taken again from
    other places. Returns the queries `[rows + reads, heads, head_dim]`. Raises ValueError.
    """
    name = "place_rows"
    check_dtype(name, "qkv", qkv, FLOATS)
    check_shape(name, "qkv", qkv, (working.rows, None))
    check_shape(name, "cis", cis, (working.rows + len(source), None))
    check_dtype(name, "cis", cis, FLOATS[2:])
    check_dtype(name, "source", source, (torch.int32,))
    dim = cis.shape[1]
    heads, rest = divmod(qkv.shape[1], dim)
    if rest or heads <= 2 * working.kv_heads:
        raise ValueError(
            f"{name}: rows of {qkv.shape[1]} numbers hold no {working.kv_heads} KV heads of {dim}"
        )
    tensors = {"qkv": qkv, "cis": cis, "source": source, "working.fields": working.fields}
    if norm is not None:
        check_shape(name, "norm", norm, (heads - working.kv_heads, dim))
        check_dtype(name, "norm", norm, FLOATS[2:])
        tensors["norm"] = norm
    _check_fields(name, working)
    check_tensors(name, **tensors)
    return _twin(name, qkv)(qkv, cis, source, norm, eps, working, layer)  # type: ignore[no-any-return]


def working_attention(
    q: Tensor,
    working: WorkingRows,
    layer: int,
    score_scale: float,
    *,
    is_local: bool = False,
    memory: tuple[Tensor, Tensor, Tensor] | None = None,
    splits: int = 8,
) -> Tensor:
    """One query row per head over each row's working memory, joined with what it read of memories.

    `q [rows, heads, head_dim]`; in a local layer a row sees what its fields say. `memory` is the output
    `[rows, heads, head_dim]` and the log-sum-exp `[rows, heads]` of `split_kv_attention` with a mass scale
    for each row (all fp32), joined with the rest as `lse_merge` does. `splits`, a power of two, is how many
    programs share a row's head. Returns `[rows, heads, head_dim]` in the dtype of `q`, zeros for a row that
    sees nothing. Raises ValueError.
    """
    name = "working_attention"
    check_dtype(name, "q", q, FLOATS)
    check_shape(name, "q", q, (working.rows, None, None))
    if q.shape[2] not in HEAD_DIMS:
        raise ValueError(f"{name}: head_dim is {q.shape[2]}; it takes {', '.join(map(str, HEAD_DIMS))}")
    group, rest = divmod(q.shape[1], working.kv_heads)
    if rest or not 0 < group <= MAX_GROUP:
        raise ValueError(
            f"{name}: {q.shape[1]} heads over {working.kv_heads} KV heads; a group is 1 to {MAX_GROUP} heads"
        )
    if splits < 1 or splits & (splits - 1):
        raise ValueError(f"{name}: {splits} splits; it takes a power of two")
    tensors = {"q": q, "working.fields": working.fields}
    if memory is not None:
        for index, shape in enumerate((q.shape, q.shape[:2], q.shape[:1])):
            check_shape(name, f"memory[{index}]", memory[index], shape)
            check_dtype(name, f"memory[{index}]", memory[index], FLOATS[2:])
        tensors |= {f"memory[{index}]": part for index, part in enumerate(memory)}
    _check_fields(name, working)
    check_tensors(name, **tensors)
    return _twin(name, q)(  # type: ignore[no-any-return]
        q, working, layer, score_scale, is_local=is_local, memory=memory, splits=splits
    )


def _check_fields(name: str, working: WorkingRows) -> None:
    check_shape(name, "working.fields", working.fields, (FIELDS, None))
    check_dtype(name, "working.fields", working.fields, (torch.int64,))


def block_sparse(
    q: Tensor, k: Tensor, v: Tensor, there: Tensor, memory: ReadBlocks | None, score_scale: float
) -> Tensor:
    """Attention to a sequence's own earlier tokens and to the blocks that each token reads, for training.

    `q [sequences, heads, tokens, head_dim]` are the last tokens of `k` and `v [sequences, kv_heads, keys,
    head_dim]`; `there [sequences, keys]` (bool) says who exists. A token sees itself, those before it and
    the keys of its blocks; where it isn't there, the output is zero. Gradients reach q, k, v and the blocks'
    k and v; repeated runs give the same bits. Returns q's shape and dtype. Raises ValueError.
    """
    check_block_sparse(q, k, v, there, memory)
    return _twin("block_sparse", q)(q, k, v, there, memory, score_scale)  # type: ignore[no-any-return]


def path_of(tensor: Tensor) -> Path:
    """What runs for this tensor: Triton on CUDA devices where it is installed, plain torch elsewhere."""
    return _forced.get() or ("triton" if tensor.is_cuda and _has_triton() else "naive")


@cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def _twin(name: str, tensor: Tensor) -> Any:
    """The kernel's function on the path for this tensor's device; Triton is first imported here."""
    package = "mnemos.attention.kernels" + (".naive" if path_of(tensor) == "naive" else "")
    return getattr(importlib.import_module(f"{package}.{name}"), name)
