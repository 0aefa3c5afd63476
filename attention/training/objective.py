"""One batch's share of what is minimised, in this process, and the figures to show for it."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from mnemos.attention.patterns.hybrid import HybridModel
from mnemos.attention.training.batches import IGNORED, Batch
from mnemos.attention.training.distributed import Place
from mnemos.attention.training.losses import TokenLoss, routing_loss, token_loss

Sharing = Literal["rows", "documents"]
"""What several processes have shares of: the sequences of a batch, or the documents of each sequence."""


class Weights(NamedTuple):
    """Of the losses in what is minimised."""

    next_token: float
    router: float
    z: float


@dataclass(frozen=True, slots=True)
class Objective:
    """`share` summed over all processes is what is minimised; the rest are means over the whole batch."""

    share: Tensor  # scalar with gradients
    next_token: float  # nats a token
    router: float | None  # None where nothing routes
    tokens: int


def objective(
    model: HybridModel,
    batch: Batch,
    weights: Weights,
    *,
    group: int = 0,
    sharing: Sharing = "rows",
    place: Place | None = None,
    bf16: bool = False,
) -> Objective:
    """Runs the model forward on this process's part of a batch.

    Args:
        batch: with `rows`, this process's sequences; with `documents`, all of them.
        group: documents whose activations are held at once; 0 for everything in one pass.

    Raises:
        UsageError: groups of documents for a model without msa, or documents too long for it.
    """
    place = place or Place()
    device = place.device
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
        if group:
            from mnemos.attention.training.document_passes import read_in_passes

            shared = place if sharing == "documents" else Place(device=device)
            read = read_in_passes(model, batch, group, shared)
            documents, hidden, targets, routing = read.documents, read.hidden, read.targets, read.routing
        else:
            hidden, _, routing = model.hidden(batch.tokens, batch.positions, None, batch.asks)
            nothing = torch.zeros((), device=device)
            documents, targets = TokenLoss(nothing, nothing), batch.targets
        last = token_loss(model, hidden, targets)
    router = routing_loss(routing, batch.evidence)
    questions = batch.evidence.any(dim=1).sum()
    counts = torch.stack(((batch.targets != IGNORED).sum(), questions, (batch.positions >= 0).sum())).double()
    if sharing == "rows":
        of_last, of_router, totals = 1.0, float(counts[1]), place.sum(counts)
    else:  # every process has all questions, and a share of the documents
        of_last, of_router, totals = 1 / place.world, float(counts[1]) / place.world, counts
    targets_total, questions_total, tokens = totals.tolist()
    next_token = (documents.next_token + of_last * last.next_token) / max(targets_total, 1.0)
    z = (documents.z + of_last * last.z) / max(targets_total, 1.0)
    share = weights.next_token * next_token + weights.z * z
    routed = torch.zeros_like(next_token)
    if router is not None:
        routed = router * (of_router / max(questions_total, 1.0))
        share = share + weights.router * routed
    shown = place.sum(torch.stack((next_token.detach(), routed.detach())).double()).tolist()
    has_router = model.reads_documents and questions_total > 0
    return Objective(share, shown[0], shown[1] if has_router else None, int(tokens))
