"""What a router is trained on: hidden states of memories and questions at one layer, and what the signals
that are there already make of each question.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mnemos.attention.decoder import Collect
from mnemos.attention.memory_codec import decode_route, encode_route
from mnemos.attention.models import LanguageModel
from mnemos.memory.calibrating_capture import Capturer, Probe
from mnemos.memory.calibrating_data import Piece
from mnemos.memory.conversations import Turn


@dataclass(frozen=True, slots=True)
class Captured:
    """Memories that are searched together. A probe's `query` holds the states of its question."""

    file: str
    memories: tuple[Tensor, ...]  # of each [tokens, hidden], fp16
    probes: tuple[Probe, ...]


class StateCapturer(Capturer):
    """Reads memories and questions up to the layers that routing needs, and keeps every token's hidden
    state.
    """

    def __init__(self, model: LanguageModel, layer: int) -> None:
        """`layer` is the one whose input is kept."""
        super().__init__(model)
        layers = sorted({each for each, _ in model.calibration.key_heads})
        self.heads = [(each, head) for each in layers for head in range(model.config.heads)]
        self._layers = tuple(layers)
        self._hidden = (layer,)
        self._kept: list[Tensor] = []
        self.tokens = 0  # read so far

    @property
    def chosen(self) -> list[int]:
        """Which of the heads the calibration names."""
        return [self.heads.index(head) for head in self._model.calibration.key_heads]

    def captured(
        self, pieces: Sequence[Piece], on_memory: Callable[[], None] | None = None
    ) -> list[Captured]:
        """Every question of the pieces, those of one file searched together as far as they fit."""
        found = []
        for first, some in self._haystacks(pieces):
            self._kept = []
            probes = tuple(self._search(first, some, on_memory))
            found.append(Captured(some[0].file, tuple(self._kept), probes))
        return found

    def _read_question(self, text: str) -> tuple[Tensor, Tensor]:
        """As for any capture, with every token's hidden state `[tokens, hidden]` in place of means."""
        tokens = self._question(text)
        decoder = self._model.decoder
        cache = decoder.new_cache(self._question_prefix.tokens + len(tokens))
        cache.load_prefix(self._question_prefix)
        collect = Collect(query_layers=self._layers, hidden_layers=self._hidden)
        decoder.probe(tokens, cache, collect)
        self.tokens += len(tokens)
        queries = torch.stack([collect.queries[layer] for layer in self._layers]) * decoder.scale
        return queries, collect.hidden[self._hidden[0]].half()

    def _read_memory(self, turn: Turn) -> tuple[Tensor, Tensor]:
        """Layers above those that routing reads are left out."""
        tokens = self._memory_of(turn)
        decoder = self._model.decoder
        cache = decoder.new_cache(self._prefix.tokens + len(tokens))
        cache.load_prefix(self._prefix)
        collect = Collect(query_layers=self._layers, hidden_layers=self._hidden)
        decoder.probe(tokens, cache, collect)
        self.tokens += len(tokens)
        self._kept.append(collect.hidden[self._hidden[0]].half())
        slots = slice(self._prefix.tokens, self._prefix.tokens + len(tokens))
        keys = cache.k[list(self._layers), :, slots].float()
        stored = decode_route(encode_route([keys.flatten(0, 1)], torch.empty(0))).keys
        return stored.view(keys.shape), torch.empty(1, 0)
