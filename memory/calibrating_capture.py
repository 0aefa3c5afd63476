"""What every head of a model makes of a question: its mass on each memory, as the router would measure it.

Memories are encoded alone behind the frozen prefix and questions read as a search reads them; keys are
rounded as they are in the bank. Of a memory only the log-sum-exp per head and query token is kept, so that
all heads of a model fit in memory.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from mnemos.attention.decoder import Collect
from mnemos.attention.embedder import embedder_named
from mnemos.attention.encode import SPAN_TOKENS, encode_prefix
from mnemos.attention.memory_codec import decode_route, encode_route
from mnemos.attention.models import LanguageModel
from mnemos.attention.projection import similarity
from mnemos.errors import ContextOverflowError
from mnemos.memory.bank import MemoryBank
from mnemos.memory.calibrating_data import Piece
from mnemos.memory.conversations import Turn
from mnemos.memory.evaluate_recall import draft_of
from mnemos.memory.layout import MEMORY_HEADER, render_memory, said_in
from mnemos.memory.records import Memory
from mnemos.memory.router import LEXICAL_CANDIDATES, neighbours_of, speaker_signal, word_share
from mnemos.store.keys import KeyFile

MEMORY_TOKENS = 320  # of a memory at most: the first ones
_QUESTION_TOKENS = 96  # of a question at most
_MOST_MEMORIES = 400  # searched together
_SCORE_BYTES = 384 << 20  # of all heads' scores held at once
_HIDDEN_LAYERS = 8  # tried as the hidden signal
_NAMESPACE = "calibration"


@dataclass(slots=True)
class Probe:
    """A question as every head sees it, over the memories that exist when it is asked."""

    file: str
    fold: int  # conversation it belongs to
    mass: Tensor  # [heads, memories], fp32, summing to 1 over the memories
    unrelated: Tensor | None  # the same over the memories of other conversations alone
    lexical: Tensor  # [memories]
    speaker: Tensor  # [memories]
    before: Tensor  # [memories], int64: index of the neighbour, or the number of memories
    after: Tensor
    gold: Tensor  # [memories], bool
    means: Tensor  # [hidden layers, all memories, hidden]: mean input of those layers; shared among probes
    visible: Tensor  # [memories], int64: which of all memories exist
    query: Tensor  # [hidden layers, hidden]
    vector: Tensor | None = None  # [memories]: products with the sentence encoder's vectors, if it is here
    worded: float = 1.0  # `word_share` of the question


def heads_of(model: LanguageModel) -> list[tuple[int, int]]:
    """The heads that may retrieve, (layer, query head): those of layers that see everything, if there are
    such.

    Heads of the calibration that the model has now are among them, so that it can be measured too.
    """
    config = model.config
    whole = [layer for layer in range(config.layers) if layer not in config.sliding_layers]
    layers = {*(whole or range(config.layers)), *(layer for layer, _ in model.calibration.key_heads)}
    return [(layer, head) for layer in sorted(layers) for head in range(config.heads)]


def hidden_layers_of(model: LanguageModel) -> tuple[int, ...]:
    """Layers whose input may tell memories apart: some, over the upper three quarters."""
    layers = model.config.layers
    first = max(1, layers // 4)
    count = min(_HIDDEN_LAYERS, layers - first)
    return tuple(sorted({first + (layers - 1 - first) * i // max(1, count - 1) for i in range(count)}))


class Capturer:
    """Reads memories and questions with one model."""

    def __init__(self, model: LanguageModel) -> None:
        self._model = model
        self.heads = heads_of(model)
        self._layers = tuple(dict.fromkeys(layer for layer, _ in self.heads))
        self._hidden = hidden_layers_of(model)
        self.embedder = embedder_named()
        head, tail = model.template.parts("system", model.tokenizer)
        user_head, _ = model.template.parts("user", model.tokenizer)
        decoder = model.decoder
        self._prefix = encode_prefix(decoder, [*head, *model.tokenizer.encode(MEMORY_HEADER)])
        room = model.config.max_positions // 2 - self._prefix.tokens
        self._memory_tokens = min(MEMORY_TOKENS, SPAN_TOKENS, room)
        if self._memory_tokens < 1:
            raise ContextOverflowError(
                f"model {model.name}: its window of {model.config.max_positions} tokens is too short for "
                "memories; use a model with a longer window"
            )
        opening = [*tail, *user_head]
        cache = decoder.new_cache(self._prefix.tokens + len(opening))
        cache.load_prefix(self._prefix)
        decoder.prefill(opening, cache)
        self._question_prefix = cache.snapshot(0, cache.length)

    def size(self, text: str) -> int:
        """Tokens that a memory of this text takes, about."""
        return min(self._memory_tokens, len(self._model.tokenizer.encode(text)) + 12)

    def probes(self, pieces: Sequence[Piece], on_memory: Callable[[], None] | None = None) -> list[Probe]:
        """Every question of the pieces, those of one file searched together as far as they fit."""
        found: list[Probe] = []
        for first, some in self._haystacks(pieces):
            found += self._search(first, some, on_memory)
        return found

    def _haystacks(self, pieces: Sequence[Piece]) -> Iterator[tuple[int, list[Piece]]]:
        """Pieces that are searched together, and the place of the first among all."""
        first, some = 0, list[Piece]()
        for at, piece in enumerate(pieces):
            joined = [*some, piece]
            if some and (piece.file != some[0].file or not self._fits(joined)):
                yield first, some
                first, joined = at, [piece]
            some = joined
        if some:
            yield first, some

    def _fits(self, pieces: Sequence[Piece]) -> bool:
        memories = sum(len(piece.conversation.memories) for piece in pieces)
        tokens = sum(
            len(self._question(one.question)) for piece in pieces for one in piece.conversation.questions
        )
        return memories <= _MOST_MEMORIES and 4 * memories * tokens * len(self.heads) <= _SCORE_BYTES

    def _question(self, text: str) -> list[int]:
        room = (self._model.config.max_positions - self._question_prefix.tokens) // 2
        return self._model.tokenizer.encode(text)[: max(1, min(_QUESTION_TOKENS, room))]

    @torch.inference_mode()
    def _search(
        self, first: int, pieces: Sequence[Piece], on_memory: Callable[[], None] | None
    ) -> Iterator[Probe]:
        turns = [turn for piece in pieces for turn in piece.conversation.memories]
        owners = torch.tensor([at for at, piece in enumerate(pieces) for _ in piece.conversation.memories])
        asked = [(at, one) for at, piece in enumerate(pieces) for one in piece.conversation.questions]
        states = [self._read_question(one.question) for _, one in asked]
        rows = [queries.shape[2] for queries, _ in states]
        scores, means = self._scores(turns, torch.cat([queries for queries, _ in states], dim=2), on_memory)
        starts = [sum(rows[:index]) for index in range(len(rows))]
        with TemporaryDirectory(prefix="mnemos-calibrate-") as folder:
            keys = KeyFile(Path(folder) / "bank.key")
            with MemoryBank.open(Path(folder) / "bank", keys=keys) as bank:
                made = bank.remember_many([draft_of((turn,)) for turn in turns], namespace=_NAMESPACE)
                ids = [memory.id for memory in made]
                vectors = self._vectors(bank, ids)
                for number in sorted(range(len(asked)), key=lambda index: asked[index][0]):
                    at, one = asked[number]
                    conversation = pieces[at].conversation
                    seen = len(conversation.visible(one))
                    own = (owners == at).nonzero()[:, 0].tolist()
                    hidden = own[seen:]
                    for place in hidden:
                        bank.hide(ids[place], namespace=_NAMESPACE)
                    visible = torch.tensor([place for place in range(len(turns)) if place not in hidden])
                    block = scores[visible, :, starts[number] : starts[number] + rows[number]]
                    probe = self._probe(bank, one.question, [ids[place] for place in visible.tolist()], block)
                    gold = {place for place in own[:seen] if turns[place].id in one.evidence}
                    probe.file, probe.fold = pieces[at].file, first + at
                    probe.gold = torch.tensor([place in gold for place in visible.tolist()])
                    probe.means, probe.visible, probe.query = means, visible, states[number][1]
                    if vectors is not None and self.embedder is not None:
                        asked_for = self.embedder.query(one.question)
                        probe.vector = similarity(asked_for, vectors[visible])
                    others = owners[visible] != at
                    if int(others.sum()) > 1:
                        probe.unrelated = _mass(block[others])
                    for place in hidden:
                        bank.unhide(ids[place], namespace=_NAMESPACE)
                    yield probe

    def _vectors(self, bank: MemoryBank, ids: Sequence[str]) -> Tensor | None:
        """What the sentence encoder makes of memories, `[memories, dims]` in int8."""
        if self.embedder is None:
            return None
        said = [said_in(bank.get(each, namespace=_NAMESPACE)) for each in ids]
        return torch.cat([self.embedder.memory(each) for each in said])

    def _probe(self, bank: MemoryBank, query: str, ids: Sequence[str], block: Tensor) -> Probe:
        lexical = dict(bank.store.lexical(_NAMESPACE, query, LEXICAL_CANDIDATES))
        placed = {place.id: place for place in bank.store.places(_NAMESPACE, ids)}
        before, after = neighbours_of(ids, placed)
        nothing = torch.empty(0)
        return Probe(
            file="",
            fold=0,
            mass=_mass(block),
            unrelated=None,
            lexical=torch.tensor([lexical.get(each, 0.0) for each in ids]),
            speaker=speaker_signal(query, ids, placed),
            before=before,
            after=after,
            gold=nothing,
            means=nothing,
            visible=nothing,
            query=nothing,
            worded=word_share(query),
        )

    def _read_question(self, text: str) -> tuple[Tensor, Tensor]:
        """Queries of every head, scaled, `[layers, heads, tokens, dim]`, and hidden means `[layers,
        hidden]`.
        """
        tokens = self._question(text)
        decoder = self._model.decoder
        cache = decoder.new_cache(self._question_prefix.tokens + len(tokens))
        cache.load_prefix(self._question_prefix)
        collect = Collect(query_layers=self._layers, hidden_layers=self._hidden)
        decoder.probe(tokens, cache, collect)
        queries = torch.stack([collect.queries[layer] for layer in self._layers]) * decoder.scale
        return queries, torch.stack([collect.hidden[layer].mean(dim=0) for layer in self._hidden])

    def _scores(
        self, turns: Sequence[Turn], queries: Tensor, on_memory: Callable[[], None] | None
    ) -> tuple[Tensor, Tensor]:
        """Log-sum-exp of each memory's scores, `[memories, heads, query tokens]`, and hidden means
        `[layers, memories, hidden]`.
        """
        layers, heads, count, dim = queries.shape
        kv_heads = self._model.config.kv_heads
        grouped = queries.view(layers, kv_heads, heads // kv_heads * count, dim)
        scores = torch.full((len(turns), layers * heads, count), torch.nan)
        means = []
        for at, turn in enumerate(turns):
            keys, hidden = self._read_memory(turn)  # [layers, kv_heads, tokens, dim], [hidden layers, hidden]
            for layer in range(layers):
                found = _log_sum_exp_(grouped[layer] @ keys[layer].transpose(1, 2))
                scores[at, layer * heads : (layer + 1) * heads] = found.view(heads, count)
            means.append(hidden)
            if on_memory is not None:
                on_memory()
        return scores, torch.stack(means, dim=1)

    def _memory_of(self, turn: Turn) -> list[int]:
        """The tokens that a turn is read as."""
        memory = Memory(
            id=turn.id,
            namespace=_NAMESPACE,
            kind="note",
            text=turn.text or "-",
            speaker=turn.speaker or None,
            created_at=turn.created_at,
        )
        return self._model.tokenizer.encode(render_memory(memory)[0])[: self._memory_tokens]

    def _read_memory(self, turn: Turn) -> tuple[Tensor, Tensor]:
        tokens = self._memory_of(turn)
        decoder = self._model.decoder
        cache = decoder.new_cache(self._prefix.tokens + len(tokens))
        cache.load_prefix(self._prefix)
        collect = Collect(hidden_layers=self._hidden)
        decoder.prefill(tokens, cache, collect=collect)
        keys = cache.k[list(self._layers), :, self._prefix.tokens : cache.length].float()
        stored = decode_route(
            encode_route([keys.flatten(0, 1)], torch.empty(0))
        ).keys  # rounded as in the bank
        return stored.view(keys.shape), torch.stack(
            [collect.hidden[each].mean(dim=0) for each in self._hidden]
        )


def _log_sum_exp_(scores: Tensor) -> Tensor:
    """Over the last dimension, in place: most of the time goes here where a model has many heads."""
    top = scores.amax(dim=-1, keepdim=True)
    return scores.sub_(top).exp_().sum(dim=-1).log_().add_(top[..., 0])


def _mass(scores: Tensor) -> Tensor:
    """`[memories, heads, query tokens]` to the mass of each head on each memory, `[heads, memories]`."""
    return torch.softmax(scores, dim=0).mean(dim=-1).T.contiguous()
