"""What an MSA layer keeps between calls: pooled documents and the document that goes on."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mnemos.attention.patterns.mixer import PADDING, MixerState
from mnemos.attention.patterns.pooled_bank import PooledBank


@dataclass(frozen=True, slots=True)
class MsaState(MixerState):
    """Pooled documents, and the tokens of each row's last one, which goes on. Padding stands behind them."""

    positions: Tensor  # [batch, open]
    x: Tensor  # [batch, open, dim]
    k: Tensor  # [batch, kv_heads, open, key_dim]
    v: Tensor  # [batch, kv_heads, open, head_dim]
    best: Tensor  # [batch, documents]: their scores for the last document so far
    bank_k: Tensor  # these four as in PooledBank
    bank_v: Tensor
    bank_keys: Tensor
    bank_used: Tensor
    reads: bool = True

    @property
    def bank(self) -> PooledBank:
        return PooledBank(self.bank_k, self.bank_v, self.bank_keys, self.bank_used)


def writing(state: MsaState) -> MsaState:
    """For calls with documents only: none of them reads."""
    return replace(state, reads=False)


def reading(state: MsaState) -> MsaState:
    """For calls whose last document is the question."""
    return replace(state, reads=True)


def go_on(
    before: MsaState,
    kept: Tensor,
    rows: Tensor,
    more: tuple[Tensor, Tensor, Tensor, Tensor],
    best: Tensor,
    bank: PooledBank,
) -> MsaState:
    """The state after a call.

    Args:
        before: the state before it.
        kept: [batch, open]: the tokens of `before` whose document goes on.
        rows: [questions]: the sequences that got new tokens.
        more: the new tokens of their last documents: positions [questions, new], `PADDING` where there are
            none; x [questions, new, dim]; k and v [questions, kv_heads, new, ...].
        best: [batch, documents].
        bank: the documents before the last.
    """
    places, x, k, v = (_spread(part, rows, len(before.positions)) for part in more)
    new = torch.zeros_like(places, dtype=torch.bool).index_fill(0, rows, True) & (places != PADDING)
    there = torch.cat((kept, new), dim=1)
    most = int(there.sum(dim=1).amax())
    order = (~there).to(torch.uint8).argsort(dim=1, stable=True)[:, :most]
    places = torch.cat((before.positions, places), dim=1).masked_fill(~there, PADDING)
    by_head = order[:, None, :, None]
    return MsaState(
        places.gather(1, order),
        _gather(torch.cat((before.x, x), dim=1), 1, order[..., None]),
        _gather(torch.cat((before.k, k), dim=2), 2, by_head),
        _gather(torch.cat((before.v, v), dim=2), 2, by_head),
        best,
        *bank,
        reads=before.reads,
    )


def _spread(part: Tensor, rows: Tensor, batch: int) -> Tensor:
    """`[questions, ...]` to `[batch, ...]`, zero elsewhere."""
    if len(rows) == batch:
        return part
    return part.new_zeros(batch, *part.shape[1:]).index_copy(0, rows, part)


def _gather(states: Tensor, dim: int, order: Tensor) -> Tensor:
    """The chosen tokens along `dim`, the same in all features."""
    shape = list(states.shape)
    shape[dim] = order.shape[dim]
    return states.gather(dim, order.expand(shape))
