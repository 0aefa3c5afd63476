"""A decoder whose layers mix by different patterns (RMSNorm, SwiGLU, tied embeddings).

Where some layer knows documents, it alone reads across them: the others attend within the document at hand.
Long-term memory is sparse then, and working memory whatever the other patterns are. Without such a layer a
sequence is one text, whatever its positions say.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from mnemos.attention.patterns.document_rows import begins_document, by_document, rows_of
from mnemos.attention.patterns.hybrid_config import HybridConfig
from mnemos.attention.patterns.layer import HybridLayer
from mnemos.attention.patterns.mixer import PADDING, MixerState


@dataclass(frozen=True, slots=True)
class HybridState:
    """What all layers keep of the tokens before. A call never writes into the state that it was given."""

    mixers: tuple[MixerState, ...]
    last: Tensor  # [batch] int64, the last token's position; PADDING before the first
    read: Tensor  # [batch] int64, how many tokens there were

    def bytes(self) -> int:
        """Bytes of all tensors kept by the layers."""
        return sum(state.bytes() for state in self.mixers)


@dataclass(frozen=True, slots=True)
class HybridOutput:
    """Of one pass. `routing` holds each routed layer's scores `[batch, documents]`, first layer first."""

    logits: Tensor  # [batch, tokens, vocab]
    states: HybridState | None
    routing: tuple[Tensor, ...]


class HybridModel(nn.Module):
    """Layers by `config.layers` between an embedding and the logits of the next token."""

    def __init__(self, config: HybridConfig) -> None:
        super().__init__()
        self.config = config
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.mixer.seed)
            self.embed = nn.Embedding(config.vocab, config.mixer.dim)
            nn.init.normal_(self.embed.weight, std=config.mixer.dim**-0.5)
            self.blocks = nn.ModuleList(HybridLayer(name, config) for name in config.layers)
            self.norm = nn.RMSNorm(config.mixer.dim, eps=config.norm_eps)
            self.head = (
                None if config.tie_embeddings else nn.Linear(config.mixer.dim, config.vocab, bias=False)
            )
        self.reads_documents = any(layer.is_routed for layer in self.hybrid_layers)

    @property
    def hybrid_layers(self) -> list[HybridLayer]:
        """The layers, first to last."""
        return [layer for layer in self.blocks if isinstance(layer, HybridLayer)]

    def initial_state(self, batch: int) -> HybridState:
        """The state before the first token of `batch` sequences."""
        nothing = torch.zeros(batch, dtype=torch.int64, device=self.embed.weight.device)
        return HybridState(
            tuple(layer.mixer.initial_state(batch) for layer in self.hybrid_layers),
            nothing + PADDING,
            nothing,
        )

    def forward(self, tokens: Tensor, positions: Tensor, states: HybridState | None = None) -> HybridOutput:
        """Logits of the token after each one.

        Args:
            tokens: [batch, tokens] int64; what stands at padding is of no account.
            positions: [batch, tokens] int64 as mixers take them: a document begins where one is not above the
                one before it, and `PADDING` marks what is not there.
            states: None for a whole sequence at once (training). Otherwise what an earlier call or
                `initial_state` returned; the output has the state after these tokens then.

        Raises:
            ValueError: shapes that do not agree, or, going on from a state, documents that begin at different
                places in the sequences of a batch.
        """
        hidden, states, routing = self.hidden(tokens, positions, states)
        return HybridOutput(self.logits(hidden), states, routing)

    def logits(self, hidden: Tensor) -> Tensor:
        """Normed hidden states `[..., dim]` to logits `[..., vocab]`."""
        return functional.linear(hidden, self.embed.weight if self.head is None else self.head.weight)

    def hidden(
        self,
        tokens: Tensor,
        positions: Tensor,
        states: HybridState | None = None,
        asks: Tensor | None = None,
    ) -> tuple[Tensor, HybridState | None, tuple[Tensor, ...]]:
        """As `forward`, with what the logits are made of, `[batch, tokens, dim]`, in their place.

        `asks`, bool `[batch, tokens]`, says by which tokens of the last document routed layers score the
        others, all of them by default.
        """
        if tokens.shape != positions.shape or tokens.dim() != 2 or tokens.shape[1] == 0:
            raise ValueError(
                f"tokens and positions must both be [batch, tokens >= 1], not {list(tokens.shape)} and "
                f"{list(positions.shape)}"
            )
        x = self.embed(tokens)
        if states is None:
            x, routing = self._whole(x, positions, asks)
            return self.norm(x), None, routing
        if not self.reads_documents:
            x, states, routing = self._step(x, positions, states, None, is_new=False)
            return self.norm(x), states, routing
        parts = []
        for start, stop, is_new in _segments(positions, states.last):
            part, states, routing = self._step(
                x[:, start:stop],
                positions[:, start:stop],
                states,
                None if asks is None else asks[:, start:stop],
                is_new=is_new,
            )
            parts.append(part)
        return self.norm(torch.cat(parts, dim=1)), states, routing

    def save(self, directory: Path) -> None:
        """Writes tensors and configuration into a directory; each file is whole or not there."""
        from mnemos.attention.patterns.saving import save_model

        save_model(self, directory)

    @classmethod
    def load(cls, directory: Path) -> "HybridModel":
        """What `save` wrote. Raises UnknownModelError, InvalidWeightsError."""
        from mnemos.attention.patterns.saving import load_model

        return load_model(directory)

    @classmethod
    def from_checkpoint(
        cls, name_or_path: str | os.PathLike[str] | None, layers: Sequence[str], **sizes: int
    ) -> "HybridModel":
        """A hybrid with the weights of a pretrained Llama; `pretrained.hybrid_from` also says what is new.

        `layers` names the pattern of each of its layers, and `sizes` are fields of `MixerConfig`. Raises a
        ModelError when the checkpoint can't be loaded or is none that a hybrid can go on from.
        """
        from mnemos.attention.models import load_weights
        from mnemos.attention.patterns.pretrained import hybrid_from

        config, weights, _, _ = load_weights(name_or_path)
        return hybrid_from(config, weights, layers, **sizes).model

    def _whole(self, x: Tensor, positions: Tensor, asks: Tensor | None) -> tuple[Tensor, tuple[Tensor, ...]]:
        rows = rows_of(positions) if self.reads_documents else []
        places = positions if self.reads_documents else _running(positions, None)
        routing = []
        for layer in self.hybrid_layers:
            if self.reads_documents and not layer.is_routed:
                added = by_document(_without_state(layer), x, rows)
            else:
                added, _, scores = layer.mix(x, places, None, asks)
                if scores is not None:
                    routing.append(scores)
            x = layer.finish(x, added)
        return x, tuple(routing)

    def _step(
        self, x: Tensor, positions: Tensor, states: HybridState, asks: Tensor | None, *, is_new: bool
    ) -> tuple[Tensor, HybridState, tuple[Tensor, ...]]:
        """One document, or a part of it, behind `states`."""
        places = positions if self.reads_documents else _running(positions, states.read)
        after, routing = [], []
        for layer, state in zip(self.hybrid_layers, states.mixers, strict=True):
            if is_new and not layer.is_routed:
                state = layer.mixer.initial_state(len(x))
            added, following, scores = layer.mix(x, places, state, asks)
            assert following is not None, "a mixer returns a state where it was given one"
            after.append(following)
            if scores is not None:
                routing.append(scores)
            x = layer.finish(x, added)
        there = positions != PADDING
        last = torch.where(there, positions, PADDING).flip(1)
        latest = last.gather(1, (last != PADDING).long().argmax(dim=1, keepdim=True))[:, 0]
        return (
            x,
            HybridState(
                tuple(after),
                torch.where(there.any(dim=1), latest, states.last),
                states.read + there.sum(dim=1),
            ),
            tuple(routing),
        )

    @torch.inference_mode()
    def generate(self, tokens: Sequence[int], positions: Sequence[int], count: int) -> list[int]:
        """The `count` likeliest tokens, one after another, behind a prompt of one document or more."""
        device = self.embed.weight.device
        given = torch.tensor([list(tokens)], device=device)
        places = torch.tensor([list(positions)], device=device)
        states: HybridState | None = self.initial_state(1)
        made: list[int] = []
        for _ in range(count):
            output = self(given, places, states)
            states = output.states
            made.append(int(output.logits[0, -1].argmax()))
            given, places = given.new_tensor([[made[-1]]]), places[:, -1:] + 1
        return made


def _without_state(layer: HybridLayer) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda x, positions: layer.mix(x, positions, None)[0]


def _running(positions: Tensor, read: Tensor | None) -> Tensor:
    """Places in the whole sequence, `[batch, tokens]`, behind `read [batch]` tokens; padding stays."""
    there = positions != PADDING
    counted = there.cumsum(dim=1) - 1 + (0 if read is None else read[:, None])
    return torch.where(there, counted, PADDING)


def _segments(positions: Tensor, last: Tensor) -> list[tuple[int, int, bool]]:
    """(start, stop, whether a document begins at start) of the documents in tokens that follow `last`."""
    rows = (positions != PADDING).any(dim=1)  # those of padding alone go along with the others
    begins = begins_document(positions, last)[rows]
    if not len(begins):
        return [(0, positions.shape[1], False)]
    if not torch.equal(begins.any(dim=0), begins.all(dim=0)):
        raise ValueError(
            "going on from a state, documents must begin at the same places in all sequences of a batch; "
            "read these sequences one by one"
        )
    starts = begins.any(dim=0).nonzero()[:, 0].tolist()
    edges = sorted({0, *starts, positions.shape[1]})
    return [(start, stop, start in starts) for start, stop in pairwise(edges)]
