"""Documents that read the documents before them, some at a time."""

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from mnemos.attention.patterns.documents import Blocks, Documents
from mnemos.attention.patterns.msa_layer import MsaProjections, look_up
from mnemos.attention.patterns.msa_reading import attend_reading
from mnemos.attention.patterns.pooled_bank import PooledBank


def read_earlier(
    projections: MsaProjections,
    whole: Tensor,
    documents: Documents,
    blocks: Blocks,
    bank: PooledBank,
    held: Tensor,
    together: int,
) -> Tensor:
    """Each document as the question to those before it: [documents, slots, heads * head_dim].

    Scores and masks of at most `together` documents are held at a time; the backward pass makes them again.

    Args:
        projections: the layer's weights.
        whole: [batch * tokens, dim].
        documents: all there are.
        blocks: those that read.
        bank: these and those from before.
        held: [batch], how many of them are from before.
        together: documents.
    """
    number = documents.number.flatten()[blocks.token[:, 0]] + held[blocks.rows]
    x, local = blocks.gather(whole), blocks.gather(documents.local.flatten())
    groups = (torch.split(part, together) for part in (x, local, blocks.there, blocks.rows, number))
    mixed = []
    for group in zip(*groups, strict=True):
        given = (projections, *group, bank)
        if torch.is_grad_enabled():
            mixed.append(checkpoint(_read, *given, use_reentrant=False, preserve_rng_state=False))
        else:
            mixed.append(_read(*given))
    return torch.cat(mixed)


def _read(
    projections: MsaProjections,
    x: Tensor,
    local: Tensor,
    there: Tensor,
    rows: Tensor,
    number: Tensor,
    bank: PooledBank,
) -> Tensor:
    """One group; `number [documents]` is each one's own in the bank, and it reads those below."""
    q, k, v = projections.split(x, local)
    memory, most = None, int(number.amax())
    if most:
        below = PooledBank(*(part[:, :most] for part in bank))
        used = below.used[rows] * (torch.arange(most, device=x.device) < number[:, None])
        nothing = torch.full(used.shape, -torch.inf, dtype=x.dtype, device=x.device)
        # Of the whole bank: a slice would be copied.
        memory = look_up(projections, x, rows, below, used, nothing, there)._replace(bank=bank)
    return attend_reading(q, k, v, there, projections.scale, memory).transpose(1, 2).flatten(2)
