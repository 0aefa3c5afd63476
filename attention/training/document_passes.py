"""A sequence of documents and a question as passes of their own: the activations held are one group's.

Each group of documents goes through all layers inside a checkpoint (arXiv 1604.06174), which keeps what the
routed layers will read of them, their pooled K and V, and makes everything else again in the backward pass.
Then the question reads. So memory is O(group + tokens / pool) instead of O(tokens), and processes can share a
sequence's documents among them.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from mnemos.attention.patterns.document_rows import begins_document
from mnemos.attention.patterns.hybrid import HybridModel, HybridState
from mnemos.attention.patterns.layer import HybridLayer
from mnemos.attention.patterns.mixer import PADDING, MixerState
from mnemos.attention.patterns.msa import Msa
from mnemos.attention.patterns.msa_state import MsaState, writing
from mnemos.attention.patterns.pooled_bank import PooledBank
from mnemos.attention.training.batches import IGNORED, Batch
from mnemos.attention.training.distributed import Place
from mnemos.attention.training.losses import TokenLoss, token_loss
from mnemos.errors import UsageError


class Parts(NamedTuple):
    """A batch taken apart. Rows are padded behind their end."""

    documents: Tensor  # [documents, 3, tokens]: tokens, positions and targets, row after row
    owner: Tensor  # [documents]: the sequence that each is of
    question: Tensor  # [batch, 4, tokens]: tokens, positions, targets, asks


class QuestionPass(NamedTuple):
    """What came of the last document of each sequence, and of all documents that this process read."""

    hidden: Tensor  # [batch, tokens, dim]
    targets: Tensor  # [batch, tokens]
    routing: tuple[Tensor, ...]  # [batch, documents] of each routed layer
    documents: TokenLoss  # sums over the documents read here


def reads_in_groups(model: HybridModel) -> bool:
    """Whether documents meet in its routed layers alone, and there only in the question."""
    routed = [layer.mixer for layer in model.hybrid_layers if layer.is_routed]
    return bool(routed) and all(isinstance(mixer, Msa) and not mixer.every for mixer in routed)


def check_model(model: HybridModel) -> None:
    """Raises UsageError for a model whose documents can't be read a group at a time."""
    if not reads_in_groups(model):
        raise UsageError(
            "documents are read one group at a time only for a pattern with msa in it, and no other that "
            "routes; change --pattern, or leave out --documents-per-group"
        )


def take_apart(batch: Batch) -> Parts:
    """Documents and questions of a batch, each from its own beginning."""
    begins = begins_document(batch.positions)
    there = batch.positions != PADDING
    number = begins.cumsum(dim=1) - 1  # [batch, tokens]
    last = number.amax(dim=1, keepdim=True)
    fields = (batch.tokens, batch.positions, batch.targets, batch.asks.long())
    documents, owner, questions = [], [], []
    for row in range(len(batch.tokens)):
        of_row = torch.stack([field[row][there[row]] for field in fields])  # [4, tokens]
        if not of_row.shape[1]:  # a row of padding
            questions.append(of_row)
            continue
        lengths = torch.bincount(number[row][there[row]], minlength=int(last[row]) + 1)
        *before, question = torch.split(of_row, lengths.tolist(), dim=1)
        documents += [document[:3] for document in before]
        owner += [row] * len(before)
        questions.append(question)
    return Parts(_pad(documents, 3), torch.tensor(owner, device=batch.tokens.device), _pad(questions, 4))


def _pad(parts: Sequence[Tensor], fields: int) -> Tensor:
    """`[fields, tokens]` each, to `[parts, fields, longest]`."""
    longest = max((part.shape[1] for part in parts), default=0) or 1
    filling = torch.tensor([0, PADDING, IGNORED, 0][:fields])
    padded = filling[None, :, None].repeat(len(parts), 1, longest)
    if parts:
        padded = padded.to(parts[0].device)
    for row, part in enumerate(parts):
        padded[row, :, : part.shape[1]] = part
    return padded


def read_in_passes(model: HybridModel, batch: Batch, group: int, place: Place) -> QuestionPass:
    """As one pass over all, `group` documents at a time. With more processes, each reads its share."""
    parts = take_apart(batch)
    mine = parts.documents[place.rank :: place.world]
    banks, losses = [], []
    for some in torch.split(mine, group) if len(mine) else ():
        *tensors, next_token, z = checkpoint(_read_documents, model, some, use_reentrant=False)
        banks.append(tensors)
        losses.append(TokenLoss(next_token, z))
    total = TokenLoss(model.norm.weight.new_zeros(()), model.norm.weight.new_zeros(()))
    for loss in losses:
        total = total.plus(loss)
    tokens, positions, targets, asks = parts.question.unbind(dim=1)
    state = model.initial_state(len(tokens))
    if len(parts.documents):
        joined = [torch.cat(each) for each in zip(*banks, strict=True)] if banks else _no_documents(model)
        whole = [_gathered(each, len(parts.documents), place) for each in joined]
        state = _behind(model, state, whole, parts.owner)
    hidden, _, routing = model.hidden(tokens, positions, state, asks.bool())
    return QuestionPass(hidden, targets, routing, total)


def _read_documents(model: HybridModel, some: Tensor) -> tuple[Tensor, ...]:
    """Banks of `some [documents, 3, tokens]`, each routed layer's in turn, and the sums of their losses."""
    tokens, positions, targets = some.unbind(dim=1)
    x = model.embed(tokens)
    kept: list[Tensor] = []
    for layer in model.hybrid_layers:
        if isinstance(layer.mixer, Msa):
            added, bank = _leave(layer, layer.mixer, x, positions)
            kept += bank
        else:
            added = layer.mix(x, positions, None)[0]
        x = layer.finish(x, added)
    if not bool((targets != IGNORED).any()):
        nothing = x.new_zeros((), dtype=torch.float32)
        return (*kept, nothing, nothing)
    return (*kept, *token_loss(model, model.norm(x), targets))


def _leave(layer: HybridLayer, mixer: Msa, x: Tensor, positions: Tensor) -> tuple[Tensor, PooledBank]:
    """What a routed layer adds to each document, and what it keeps of it, `[documents, 1, ...]`.

    A document is left when another one begins: one token does, and is forgotten.
    """
    more = torch.nn.functional.pad(positions, (0, 1))  # position 0
    state = mixer.initial_state(len(x))
    added, after, _ = layer.mix(torch.nn.functional.pad(x, (0, 0, 0, 1)), more, writing(state))
    assert isinstance(after, MsaState)
    if after.bank.used.shape[1] > 1:
        raise UsageError(
            f"a document is longer than the {mixer.config.document} tokens that msa reads as one; "
            "train with documents of at most that length"
        )
    return added[:, :-1], after.bank


def _no_documents(model: HybridModel) -> list[Tensor]:
    """Of a process without any document: banks of none."""
    empty = (layer.mixer.initial_state(1) for layer in model.hybrid_layers if isinstance(layer.mixer, Msa))
    return [part[:, :1].new_zeros(0, 1, *part.shape[2:]) for state in empty for part in _bank(state)]


def _bank(state: MixerState) -> PooledBank:
    assert isinstance(state, MsaState)
    return state.bank


def _gathered(mine: Tensor, count: int, place: Place) -> Tensor:
    """`[documents, ...]` of all processes, `count` of them, in the order they were dealt out in."""
    if place.world == 1:
        return mine
    most = -(-count // place.world)
    padded = torch.cat((mine, mine.new_zeros(most - len(mine), *mine.shape[1:])))
    return torch.stack(place.gather(padded), dim=1).flatten(0, 1)[:count]


def _behind(model: HybridModel, state: HybridState, banks: Sequence[Tensor], owner: Tensor) -> HybridState:
    """`state` with the documents of each sequence in its routed layers."""
    batch = len(state.last)
    counts = torch.bincount(owner, minlength=batch)
    column = torch.arange(int(counts.max()), device=owner.device)
    there = column < counts[:, None]  # [batch, most]
    index = torch.where(there, (counts.cumsum(0) - counts)[:, None] + column, 0)
    mixers, rest = [], list(banks)
    for layer, mixer in zip(model.hybrid_layers, state.mixers, strict=True):
        if isinstance(layer.mixer, Msa):
            assert isinstance(mixer, MsaState)
            flat, rest = PooledBank(*rest[:4]), rest[4:]
            bank = PooledBank(*(part[:, 0][index] for part in flat))
            mixer = replace(
                mixer,
                best=bank.k.new_full(index.shape, -torch.inf),
                bank_k=bank.k,
                bank_v=bank.v,
                bank_keys=bank.keys,
                bank_used=bank.used * there,
            )
        mixers.append(mixer)
    return replace(state, mixers=tuple(mixers))
