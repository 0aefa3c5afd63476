"""What training minimises: next tokens, the router's choice, and logits that stay small."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from mnemos.attention.patterns.contrastive import route_loss
from mnemos.attention.patterns.hybrid import HybridModel
from mnemos.attention.training.batches import IGNORED

_LOGITS_AT_ONCE = 1 << 24  # more are made in parts, and again for the backward pass


class TokenLoss(NamedTuple):
    """Sums over tokens that have a target; scalars, in fp32 at least."""

    next_token: Tensor
    z: Tensor  # of squared log-sum-exps (PaLM, arXiv 2204.02311)

    def plus(self, other: "TokenLoss") -> "TokenLoss":
        return TokenLoss(self.next_token + other.next_token, self.z + other.z)


def token_loss(model: HybridModel, hidden: Tensor, targets: Tensor) -> TokenLoss:
    """Of normed hidden states `[batch, tokens, dim]` and `targets [batch, tokens]`."""
    wanted = targets != IGNORED
    rows, labels = hidden[wanted], targets[wanted]  # [n, dim], [n]
    size = max(_LOGITS_AT_ONCE // model.config.vocab, 1)
    if len(rows) <= size:
        return TokenLoss(*_of_rows(model, rows, labels))
    total = TokenLoss(rows.new_zeros((), dtype=torch.float32), rows.new_zeros((), dtype=torch.float32))
    for part, of in zip(torch.split(rows, size), torch.split(labels, size), strict=True):
        total = total.plus(TokenLoss(*checkpoint(_of_rows, model, part, of, use_reentrant=False)))
    return total


def _of_rows(model: HybridModel, rows: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    logits = model.logits(rows)  # [n, vocab]
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    norm = logits.logsumexp(dim=-1)
    chosen = logits.gather(1, labels[:, None])[:, 0]
    return (norm - chosen).sum(), norm.square().sum()


def routing_loss(routing: Sequence[Tensor], evidence: Tensor) -> Tensor | None:
    """Mean over routed layers of the contrastive loss, a scalar; None where nothing routes.

    `routing` holds scores `[batch, documents]` of each layer, `evidence` is bool `[batch, documents]`.
    """
    if not routing or not evidence.any():
        return None
    losses = []
    for scores in routing:
        more = scores.shape[1] - evidence.shape[1]
        losses.append(route_loss(scores, functional.pad(evidence, (0, more))))
    return torch.stack(losses).mean()
