"""Rows of the table for block-sparse attention, which trains: a pass forward, and one with gradients."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from mnemos.attention.kernels import dispatch
from mnemos.attention.kernels.bench_kernels import DIM, HEADS, KV_HEADS
from mnemos.attention.kernels.ceilings import Ceilings
from mnemos.attention.kernels.flex_rival import behind_own, flex_ms, flex_reading
from mnemos.attention.kernels.read_blocks import ReadBlocks
from mnemos.attention.kernels.timing import Row, median_ms


@dataclass(frozen=True, slots=True)
class Sizes:
    """32 K tokens as documents of 512, each of which reads 16 others at a time; pooled by 64."""

    sequences: int = 64
    tokens: int = 512
    blocks: int = 1024
    block_keys: int = 8
    reads: int = 32  # blocks that some token of a sequence reads
    read_at_once: int = 16  # by one token
    heads: int = HEADS
    kv_heads: int = KV_HEADS
    dim: int = DIM
    repeats: int = 20


TINY = Sizes(2, 40, 5, 8, 3, 2, 4, 2, 64, 2)


@dataclass(frozen=True, slots=True)
class Given:
    """One set of inputs, with gradients asked for."""

    q: Tensor
    k: Tensor
    v: Tensor
    there: Tensor
    memory: ReadBlocks
    change: Tensor  # of the output

    @property
    def leaves(self) -> tuple[Tensor, ...]:
        return self.q, self.k, self.v, self.memory.k, self.memory.v


class TrainingBench:
    """One run on one device."""

    def __init__(self, device: torch.device, sizes: Sizes, ceilings: Ceilings) -> None:
        self.device, self.sizes, self.ceilings = device, sizes, ceilings

    def block_sparse(self) -> Iterator[Row]:
        """The rival copies what is read behind a sequence's own keys and masks all pairs, by SDPA."""
        sizes = self.sizes
        sets = [self._inputs() for _ in range(2)]
        given = sets[0]
        leaf_bytes = sum(leaf.nbytes for leaf in given.leaves)
        listed = given.there.nbytes + given.memory.visible.nbytes
        lse_bytes = 4 * sizes.sequences * sizes.heads * sizes.tokens
        forward_bytes = leaf_bytes + given.q.nbytes + lse_bytes + listed
        shape = (
            f"{sizes.sequences} x {sizes.tokens} x {sizes.heads}/{sizes.kv_heads} x {sizes.dim} bf16, "
            f"{sizes.read_at_once} of {sizes.blocks} blocks of {sizes.block_keys}"
        )
        pairs = _pairs(given) * sizes.heads
        yield self._row(shape, sets, _forward, _masked, forward_bytes, 4 * sizes.dim * pairs, "forward")
        # Gradients: five more products for each pair; all inputs, the output and its change are read, and as
        # much is written as there are inputs.
        yield self._row(
            shape, sets, _step, _masked_step, forward_bytes + 2 * leaf_bytes + 2 * given.q.nbytes,
            14 * sizes.dim * pairs, "forward and gradients",
        )  # fmt: skip

    def _row(
        self,
        shape: str,
        sets: list[Given],
        ours: Callable[[Given], object],
        rival: Callable[[Given], object],
        moved: int,
        operations: int,
        note: str,
    ) -> Row:
        others = ()
        if rival is _masked or self.device.type == "cuda":  # no gradients of FlexAttention on CPUs
            others = flex_ms(
                lambda: [_flex_call(given, rival is _masked) for given in sets],
                self.device,
                self.sizes.repeats,
            )
        return Row(
            "block_sparse", shape, self._time(ours, sets), moved, self.ceilings.copy, "SDPA, masked",
            self._time(rival, sets), note, operations, self.ceilings.product, others,
        )  # fmt: skip

    def _time(self, call: Callable[[Given], object], sets: list[Given]) -> float:
        calls = [lambda given=given: call(given) for given in sets]
        return median_ms(calls, self.device, self.sizes.repeats, in_graph=False)

    def _inputs(self) -> Given:
        sizes = self.sizes

        def drawn(*shape: int) -> Tensor:
            return torch.randn(shape, device=self.device, dtype=torch.bfloat16, requires_grad=True)

        blocks = torch.stack([torch.randperm(sizes.blocks)[: sizes.reads] for _ in range(sizes.sequences)])
        order = torch.rand(sizes.sequences, sizes.tokens, sizes.reads, device=self.device).argsort(dim=2)
        block_shape = (sizes.blocks, sizes.block_keys, sizes.kv_heads, sizes.dim)
        own_shape = (sizes.sequences, sizes.kv_heads, sizes.tokens, sizes.dim)
        memory = ReadBlocks(
            drawn(*block_shape),
            drawn(*block_shape),
            torch.full((sizes.blocks,), sizes.block_keys, device=self.device),
            blocks.to(self.device),
            order < sizes.read_at_once,
        )
        return Given(
            drawn(sizes.sequences, sizes.heads, sizes.tokens, sizes.dim),
            drawn(*own_shape),
            drawn(*own_shape),
            torch.ones(sizes.sequences, sizes.tokens, dtype=torch.bool, device=self.device),
            memory,
            drawn(sizes.sequences, sizes.heads, sizes.tokens, sizes.dim).detach(),
        )


def _pairs(given: Given) -> int:
    """Pairs of a token and a key that it sees, in one head."""
    tokens = given.q.shape[2]
    own = len(given.q) * tokens * (tokens + 1) // 2
    return own + int(given.memory.visible.sum()) * given.memory.k.shape[1]


def _forward(given: Given) -> Tensor:
    with torch.no_grad():
        return _ours(given)


def _step(given: Given) -> tuple[Tensor, ...]:
    return torch.autograd.grad(_ours(given), given.leaves, given.change)


def _ours(given: Given) -> Tensor:
    scale = given.q.shape[3] ** -0.5
    return dispatch.block_sparse(given.q, given.k, given.v, given.there, given.memory, scale)


def _masked(given: Given) -> Tensor:
    with torch.no_grad():
        return _by_mask(given)


def _masked_step(given: Given) -> tuple[Tensor, ...]:
    return torch.autograd.grad(_by_mask(given), given.leaves, given.change)


def _by_mask(given: Given) -> Tensor:
    from mnemos.attention.patterns.projections import attend

    memory, tokens = given.memory, given.q.shape[2]
    order = torch.arange(tokens, device=given.q.device)
    causal = (order <= order[:, None]) & given.there[:, None]
    shown = memory.visible.repeat_interleave(memory.k.shape[1], dim=2)
    k, v = behind_own(given.k, memory.k, memory), behind_own(given.v, memory.v, memory)
    return attend(given.q, k, v, given.q.shape[3] ** -0.5, torch.cat((causal, shown), dim=2))


def _flex_call(given: Given, only_forward: bool) -> Callable[[], object]:
    memory = given.memory
    attention = flex_reading(given.q, given.k, given.v, given.there, memory, given.q.shape[3] ** -0.5)

    def forward() -> Tensor:
        q, *parts = (leaf.detach() for leaf in given.leaves)
        own_k, own_v, block_k, block_v = parts
        return attention(q, behind_own(own_k, block_k, memory), behind_own(own_v, block_v, memory))

    def step() -> tuple[Tensor, ...]:
        out = attention(given.q, behind_own(given.k, memory.k, memory), behind_own(given.v, memory.v, memory))
        return torch.autograd.grad(out, given.leaves, given.change)

    return forward if only_forward else step
