"""Attention to the last tokens of one's own bucket, and sums of several such."""

import torch
from torch import Tensor
from torch.nn import functional


def attend_in_buckets(
    q: Tensor, k: Tensor, v: Tensor, buckets: Tensor, width: int, scale: float
) -> tuple[Tensor, Tensor]:
    """Each token attends to the last `width` tokens of its bucket before it.

    Tokens are sorted by bucket, stably, and cut into chunks of `width`: the last `width` of a bucket are then
    in a token's own chunk or the one before. So costs are tokens * width whatever the buckets' sizes, and
    what a token sees depends on no later one.

    Args:
        q: [rows, tokens, key_dim].
        k: [rows, tokens, key_dim].
        v: [rows, tokens, head_dim].
        buckets: [rows, tokens] int64, from 0.
        width: tokens.
        scale: what a score is multiplied with.

    Returns:
        [rows, tokens, head_dim], zero where there is no token to see, and the log of the sum of exponentiated
        scores, [rows, tokens], -inf there.
    """
    tokens = q.shape[1]
    order = buckets.argsort(dim=1, stable=True)
    fill = -tokens % width
    q, k, v = (
        torch.unflatten(functional.pad(_reorder(part, order), (0, 0, 0, fill)), 1, (-1, width))
        for part in (q, k, v)
    )  # [rows, chunks, width, ...]
    bucket = torch.unflatten(functional.pad(buckets.gather(1, order), (0, fill), value=-1), 1, (-1, width))
    keys, values, theirs = _with_previous(k, 0), _with_previous(v, 0), _with_previous(bucket, -1)
    row = torch.arange(width, device=q.device)
    distance = row[:, None] + width - torch.arange(2 * width, device=q.device)
    near = (distance > 0) & (distance <= width)  # [width, 2 * width]
    visible = near & (bucket[..., None] == theirs[:, :, None])
    sees = visible.any(dim=-1)  # [rows, chunks, width]
    # A row that sees nothing sees everything for now: no NaN on the way back from it.
    wide = torch.promote_types(q.dtype, torch.float32)
    scores = (q @ keys.transpose(2, 3)).to(wide) * scale
    scores = scores.masked_fill(~(visible | ~sees[..., None]), -torch.inf)
    largest = scores.detach().amax(dim=-1, keepdim=True)
    weights = (scores - largest).exp()
    total = weights.sum(dim=-1)
    out = (weights.to(v.dtype) @ values) / total[..., None].to(v.dtype)
    total = total.log() + largest[..., 0]
    out = out.masked_fill(~sees[..., None], 0.0).flatten(1, 2)[:, :tokens]
    total = total.masked_fill(~sees, -torch.inf).flatten(1, 2)[:, :tokens]
    back = order.argsort(dim=1)
    return _reorder(out, back), total.gather(1, back)


def merge_rounds(outs: Tensor, totals: Tensor, own: Tensor) -> Tensor:
    """One softmax over what all rounds saw; a key that several rounds saw counts as often.

    `outs [rows, rounds, tokens, head_dim]` and `totals [rows, rounds, tokens]` as `attend_in_buckets` returns
    them, `own [rows, tokens, head_dim]` the token's own values, which it is left with where no round saw any.
    """
    alone = torch.where((totals > -torch.inf).any(dim=1, keepdim=True), -torch.inf, 0.0).to(totals)
    weights = torch.cat((totals, alone), dim=1).softmax(dim=1)[..., None].to(outs.dtype)
    return (torch.cat((outs, own[:, None]), dim=1) * weights).sum(dim=1)


def attend_counted(q: Tensor, k: Tensor, v: Tensor, counts: Tensor, scale: float) -> Tensor:
    """The same for a few tokens against all keys, of which each counts `counts [..., tokens, keys]` times.

    `q [..., tokens, key_dim]`, `k [..., keys, key_dim]`, `v [..., keys, head_dim]`; in each row of `counts`
    at least one is above 0.
    """
    wide = torch.promote_types(q.dtype, torch.float32)
    scores = (q @ k.transpose(-1, -2)).to(wide) * scale + counts.to(wide).log()
    return scores.softmax(dim=-1).to(v.dtype) @ v


def _reorder(states: Tensor, order: Tensor) -> Tensor:
    """`states [rows, tokens, width]` in the order given for each row."""
    return states.gather(1, order[..., None].expand(-1, -1, states.shape[-1]))


def _with_previous(chunks: Tensor, fill: int) -> Tensor:
    """`[rows, chunks, width, ...]` with the chunk before in front of each, `fill` before the first."""
    first = torch.full_like(chunks[:, :1], fill)
    return torch.cat((torch.cat((first, chunks[:, :-1]), dim=1), chunks), dim=2)
