"""`mnemos train router` for an MSA checkpoint: its own routers, from conversations with questions whose
evidence is known.

A question is read as a search reads it and memories as a bank encodes them. Whole conversations are held out
twice, as for a model of full resolution.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mnemos.attention.config import ModelConfig
from mnemos.attention.interleave import MsaTokens
from mnemos.attention.tokenizer import Tokenizer
from mnemos.attention.training.msa_fit import (
    Asked,
    Haystack,
    MsaEpoch,
    MsaFit,
    MsaOptions,
    Shelf,
    measured,
)
from mnemos.attention.training.msa_reading import MsaReading
from mnemos.attention.weights import Weights
from mnemos.errors import UsageError
from mnemos.memory.calibrating_data import Parts, Piece, make_parts
from mnemos.memory.conversations import Turn
from mnemos.memory.evaluate_recall import draft_of
from mnemos.memory.pooled_encoder import SEGMENT_TOKENS, document_text, number_of
from mnemos.memory.records import Memory

_STOPPED_BY = 5  # one training conversation of so many


@dataclass(frozen=True, slots=True)
class TrainedMsa:
    """Trained weights and what they reach; recall is of weights rounded as they are stored."""

    weights: dict[str, Tensor]  # by Hugging Face name
    recall: dict[str, dict[str, dict[str, float]]]  # untrained, trained -> file or mean -> measure
    epochs: tuple[MsaEpoch, ...]
    best_epoch: int
    train_s: float
    tokens: int  # of all memories
    questions: dict[str, int]  # by part: trained, stopped_by, held_out
    memories: dict[str, int]
    worse: tuple[str, ...]  # held-out files where it finds less than before


class MsaData:
    """Conversations as one checkpoint reads them. Raises InvalidTokenizerError without control tokens."""

    def __init__(self, config: ModelConfig, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.words = MsaTokens(tokenizer)
        self._longest = min(SEGMENT_TOKENS, config.max_positions)
        self._room = config.max_positions // 2

    def parts(
        self,
        data: Sequence[Path],
        held_out: Sequence[Path],
        *,
        conversations: int,
        questions: int,
        tokens: int,
        seed: int,
    ) -> Parts:
        """As `make_parts`, sizes counted as the model reads memories."""

        def size(text: str) -> int:
            return len(self._tokenizer.encode(text)) + 12

        return make_parts(
            data,
            held_out,
            conversations=conversations,
            questions=questions,
            tokens=tokens,
            seed=seed,
            size=size,
        )

    def haystack(self, piece: Piece) -> Haystack:
        """The memories of a piece as documents, and its questions."""
        turns = piece.conversation.memories
        documents = tuple(self._document(piece, turn) for turn in turns)
        place = {turn.id: at for at, turn in enumerate(turns)}
        asked = []
        for each in piece.conversation.questions:
            visible = len(piece.conversation.visible(each))
            gold = sorted({place[one] for one in each.evidence if place.get(one, visible) < visible})
            words = tuple(self.words.question(each.question)[: self._room])
            if gold:
                told, answer = self._answer(each.question, each.answer, self._room - len(words))
                asked.append(Asked(words, answer, told, tuple(gold), visible))
        return Haystack(piece.file, documents, tuple(asked))

    def _document(self, piece: Piece, turn: Turn) -> tuple[tuple[int, ...], ...]:
        draft = draft_of((turn,))
        name = f"{piece.digest}\0{turn.id}"
        memory = Memory(
            id=name,
            namespace="training",
            kind=draft.kind,
            text=draft.text,
            speaker=draft.speaker,
            created_at=turn.created_at,
        )
        tokens = self.words.document(number_of(name), document_text(memory))
        starts = range(0, len(tokens), self._longest)
        return tuple(tuple(tokens[start : start + self._longest]) for start in starts)

    def _answer(self, question: str, answer: str, room: int) -> tuple[int, tuple[int, ...]]:
        """What follows the question up to the answer, and then the answer; none where none is known."""
        if not answer.strip():
            return 0, ()
        words = self.words
        told = [*words.question_end(), *words.end_of_retrieve(), *words.answer_head(question)]
        said = [*self._tokenizer.encode(answer), words.end]
        return (len(told), (*told, *said)) if len(told) + len(said) <= room else (0, ())


def train_msa(
    config: ModelConfig,
    weights: Weights,
    data: MsaData,
    parts: Parts,
    *,
    options: MsaOptions | None = None,
    readers: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> TrainedMsa:
    """Trains and measures. `on_progress` is told of every epoch.

    Raises:
        ModelError: the checkpoint has no routers of its own.
        UsageError: too few conversations.
    """
    options = options or MsaOptions()
    model = MsaReading(config, weights, readers=readers)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    judging = [data.haystack(piece) for at, piece in enumerate(parts.training) if at % _STOPPED_BY == 0]
    learning = [data.haystack(piece) for at, piece in enumerate(parts.training) if at % _STOPPED_BY]
    testing = [data.haystack(piece) for piece in parts.held_out]
    if not learning:
        raise UsageError("one conversation is left to train on, and one more is needed to stop by; add data")
    template = data.words.template
    untrained = measured(model, template, Shelf(model), testing)
    started = time.perf_counter()
    fit = MsaFit(model, template, learning, judging, options)
    done = 0

    def on_epoch() -> None:
        nonlocal done
        done += 1
        if on_progress is not None:
            on_progress(done, options.epochs)

    fit.run(on_epoch)
    train_s = round(time.perf_counter() - started, 1)
    stored = dict(weights.named())
    with torch.no_grad():
        for name, parameter in model.named_learnt():
            parameter.copy_(parameter.to(stored[name].dtype))
    trained = measured(model, template, Shelf(model), testing)
    groups = {"trained": learning, "stopped_by": judging, "held_out": testing}
    return TrainedMsa(
        weights=model.learnt(),
        recall={"untrained": untrained, "trained": trained},
        epochs=tuple(fit.epochs),
        best_epoch=fit.best,
        train_s=train_s,
        tokens=sum(
            len(part) for some in groups.values() for one in some for each in one.documents for part in each
        ),
        questions={name: sum(len(one.questions) for one in some) for name, some in groups.items()},
        memories={name: sum(len(one.documents) for one in some) for name, some in groups.items()},
        worse=tuple(
            name
            for name in trained
            if name != "mean"
            and trained[name]["10"] + trained[name]["mrr"] < untrained[name]["10"] + untrained[name]["mrr"]
        ),
    )
