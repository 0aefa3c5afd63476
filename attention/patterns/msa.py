"""Memory Sparse Attention (MSA, arXiv 2603.23516): documents encoded alone, of which a router picks a few.

A sequence is documents, then a question (working memory), told apart by their positions (`documents.py`); the
question is the last document. After `document` tokens a document ends and another begins, a question too.
Each document attends to itself only, and leaves the means of its K, V and routing keys over chunks of `pool`
tokens. A token of the question attends to the question so far and to the pooled chunks of the `top_k`
documents that score highest for the question so far (`pooled_bank.py`), out of all documents. Gradients reach
what was read through the attention; the router gets its own from the scores (`contrastive.py`), and none
otherwise. Documents lie side by side at positions from 0, and the question starts at `top_k`. With ALiBi,
memories are as far away as the question's start.

n tokens cost n * document for the documents and document * n / pool for routing, so time and memory grow
with n. To hold less than all documents' activations while training:

- `mixer.checkpoint = True` recomputes `documents_per_group` documents at a time in the backward pass;
- across layers, call the whole model on a few documents at a time inside `torch.utils.checkpoint.checkpoint`
  (`use_reentrant=False`), states in and states out, with `writing(state)`; then on the question with
  `reading(state)`. What is held is one group's activations and the pooled banks, O(document + n / pool).

Called in pieces, a piece's last document reads, unless the state is `writing`. So steps equal one call where
the earlier pieces end inside the question.
"""

from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from mnemos.attention.patterns import pooled_bank
from mnemos.attention.patterns.documents import (
    Blocks,
    Documents,
    all_but_last,
    find_documents,
    in_order,
    last_of_each,
)
from mnemos.attention.patterns.mixer import (
    PADDING,
    Complexity,
    Mixer,
    MixerConfig,
    MixerState,
    check_inputs,
    check_state,
)
from mnemos.attention.patterns.msa_earlier import read_earlier
from mnemos.attention.patterns.msa_layer import MsaProjections, OpenDocument, encode, read_bank
from mnemos.attention.patterns.msa_state import MsaState, go_on
from mnemos.attention.patterns.pooled_bank import PooledBank
from mnemos.attention.patterns.registry import register


@register
class Msa(Mixer):
    """Pooled documents routed to a question."""

    name: ClassVar[str] = "msa"
    paper: ClassVar[str] = "arXiv 2603.23516"
    complexity: ClassVar[Complexity] = Complexity("O(n)", "O(n)", 1.0, 1.0)
    exact_steps: ClassVar[bool] = False  # see above: a piece's last document reads

    every: ClassVar[bool] = False
    checkpoint: bool = False
    documents_per_group: int = 16

    def __init__(self, config: MixerConfig) -> None:
        super().__init__(config)
        self.projections = MsaProjections(config)

    def initial_state(self, batch: int) -> MsaState:
        weight, config = self.projections.router_key.weight, self.config
        k = weight.new_empty(batch, config.kv_heads, 0, self.projections.key_dim)
        v = weight.new_empty(batch, config.kv_heads, 0, config.head_dim)
        bank = pooled_bank.empty_bank(k, v, len(weight), self.projections.chunks)
        return MsaState(
            torch.empty(batch, 0, dtype=torch.int64, device=weight.device),
            weight.new_empty(batch, 0, config.dim),
            k,
            v,
            weight.new_empty(batch, 0),
            *bank,
        )

    def forward(
        self, x: Tensor, positions: Tensor, state: MixerState | None = None
    ) -> tuple[Tensor, MixerState | None]:
        y, after, _ = self.forward_routed(x, positions, state)
        return y, after

    def forward_routed(
        self, x: Tensor, positions: Tensor, state: MixerState | None = None, asks: Tensor | None = None
    ) -> tuple[Tensor, MixerState | None, Tensor]:
        """As `forward`, and scores of the documents before the last, `[batch, documents]`, with gradients.

        The scores are -inf for documents that a row doesn't have, and where nothing asks. `asks [batch,
        tokens]` says which tokens of the last documents do, all by default: a loss on the scores wants the
        question alone, or the router learns from the answer.
        """
        check_inputs(self.config, x, positions)
        before = self.initial_state(len(x)) if state is None else check_state(state, MsaState, len(x))
        opened = before.positions.shape[1]
        places = torch.cat((before.positions, positions), dim=1)
        whole = (torch.cat((before.x, x), dim=1) if opened else x).flatten(0, 1)
        documents = find_documents(places, self.config.document)
        closed = all_but_last(documents)
        written, more = self._write(whole, documents, closed, attends=not (self.every and before.reads))
        bank, best = pooled_bank.join(before.bank, more, before.best)
        if self.every and before.reads and len(closed.rows):
            held = (before.bank_used > 0).sum(dim=1)
            written = read_earlier(
                self.projections, whole, documents, closed, bank, held, self.documents_per_group
            )
        begun = documents.counts > 1  # [batch]: the last document is none that was open
        best = best.masked_fill(begun[:, None], -torch.inf)
        kept = (before.positions != PADDING) & ~begun[:, None]
        new = torch.arange(places.shape[1], device=x.device) >= opened
        last = last_of_each(documents, new)
        asking = last.there
        if asks is not None:
            asking = asking & last.gather(functional.pad(asks, (opened, 0)).flatten())
        given, local = last.gather(whole), last.gather(documents.local.flatten())
        own = OpenDocument(before.k, before.v, kept)
        read = read_bank(
            self.projections, given, local, last, own, bank if before.reads else None, best, asking
        )
        y = self.projections.out(in_order(places.shape, opened, (closed, written), (last, read.mixed)))
        if state is None:
            return y, None, read.scores
        news = (last.gather(places.flatten()).masked_fill(~last.there, PADDING), given, read.k, read.v)
        return y, go_on(before, kept, last.rows, news, read.best, bank), read.scores

    def operations(self, tokens: int) -> int:
        """As for every mixer, for full documents; more where tokens of the question read different ones."""
        config = self.config
        size, last = min(tokens, config.document), (tokens - 1) % config.document + 1
        earlier = -(-tokens // config.document) - 1
        pairs = earlier * size * (size + 1) // 2
        pairs += last * (last + min(earlier, config.top_k) * self.projections.chunks)
        routing = last * earlier * self.projections.chunks * config.kv_heads * config.head_dim
        return pairs * config.heads * 2 * self.projections.key_dim + routing

    def _write(
        self, whole: Tensor, documents: Documents, blocks: Blocks, attends: bool
    ) -> tuple[Tensor, PooledBank]:
        """Documents alone: [documents, slots, heads * head_dim], and pooled in the rows that they are of."""
        if not len(blocks.rows):
            nothing = self.initial_state(len(documents.counts)).bank
            return whole.new_empty(0, 0, self.projections.out.in_features), nothing
        x, local = blocks.gather(whole), blocks.gather(documents.local.flatten())
        if self.checkpoint and torch.is_grad_enabled():
            # Split, not slices: the gradient of each slice would be as large as all of x.
            groups = zip(
                *(torch.split(part, self.documents_per_group) for part in (x, local, blocks.there)),
                strict=True,
            )
            parts = [
                checkpoint(
                    encode, self.projections, *group, attends, use_reentrant=False, preserve_rng_state=False
                )
                for group in groups
            ]
            mixed, *pooled = (torch.cat(part) for part in zip(*parts, strict=True))
        else:
            mixed, *pooled = encode(self.projections, x, local, blocks.there, attends)
        return mixed, pooled_bank.arrange(PooledBank(*pooled), (documents.counts - 1).clamp_min(0))
