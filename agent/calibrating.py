"""`mnemos model calibrate`: finds what is particular to one model, and says what it reaches on
conversations that had no part in it.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from mnemos.agent.calibrating_reading import ReadingCases, choose_reading, measured_reading
from mnemos.agent.evaluate_reading import Reader
from mnemos.attention.calibration import FORMAT_VERSION, Calibration, Measured
from mnemos.attention.calibration_file import calibration_of
from mnemos.attention.models import LanguageModel
from mnemos.errors import ModelError, NotFoundError
from mnemos.memory.calibrating import calibrate_routing, require_calibratable, take_data
from mnemos.memory.calibrating_data import Parts, Piece

DEFAULT_CONVERSATIONS = 24
DEFAULT_QUESTIONS = 160
DEFAULT_TOKENS = 20_000
_QUESTIONS_PER_CASE = 20  # one question of so many is answered, with every number of memories and temperature
_FEWEST_CASES = 3


def run(
    model: LanguageModel,
    data: Sequence[Path],
    *,
    held_out: Sequence[Path] = (),
    conversations: int = DEFAULT_CONVERSATIONS,
    questions: int = DEFAULT_QUESTIONS,
    tokens: int = DEFAULT_TOKENS,
    seed: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
) -> Calibration:
    """The calibration of a model from conversation files. The same arguments give the same calibration.

    `conversations` of all files, cut to `tokens` of memories together, with `questions` to choose by and
    half as many to measure by. One conversation of four is held out, unless `held_out` names files for
    that. Raises ModelError for a model that reads pooled, UsageError and NotFoundError when the data won't
    do.
    """
    require_calibratable(model)
    parts = take_data(
        model, data, held_out, conversations=conversations, questions=questions, tokens=tokens, seed=seed
    )
    cases = max(_FEWEST_CASES, questions // _QUESTIONS_PER_CASE)
    training = ReadingCases.of(parts.training, cases)
    tried = ReadingCases.of(parts.held_out, max(_FEWEST_CASES, cases // 2))
    memories = {
        "training": _memories(parts.training),
        "held_out": _memories(parts.held_out),
    }
    steps = _Steps(sum(memories.values()) + training.steps + tried.steps, on_progress)
    routing = calibrate_routing(model, parts, steps.take)
    reader = Reader(model, 4, answer_tokens=training.answer_tokens, memory_tokens=training.memory_tokens)
    reading = choose_reading(reader, training, steps.take)
    losses = measured_reading(reader, tried, reading, steps.take)
    steps.finish()
    return Calibration(
        version=FORMAT_VERSION,
        fingerprint=model.fingerprint,
        key_heads=routing.key_heads,
        hidden_layer=routing.hidden_layer,
        hidden_centre=routing.hidden_centre,
        weights=routing.weights,
        embedder=routing.embedder,
        recall_threshold=routing.recall_threshold,
        reading=reading,
        measured=Measured(
            seed=seed,
            data=parts.data,
            held_out=parts.held_out_data,
            conversations=_count(parts, lambda pieces: len(pieces)),
            questions=_count(parts, lambda pieces: sum(len(one.conversation.questions) for one in pieces)),
            memories=memories,
            recall=routing.recall,
            unrelated=routing.unrelated,
            reading=losses,
        ),
    )


def with_current(model: LanguageModel, weights: Path | None) -> tuple[LanguageModel, str | None]:
    """The model with the calibration that it is used with now, so that it can be compared.

    Where that can't be used, the model as it is and the reason.
    """
    try:
        current = calibration_of(model.name, weights, model.config, model.fingerprint, None)
    except (ModelError, NotFoundError) as error:
        return model, str(error)
    return replace(model, calibration=current), None


class _Steps:
    """Counts what is done, for whoever watches."""

    def __init__(self, total: int, on_progress: Callable[[int, int], None] | None) -> None:
        self._total, self._done, self._tell = total, 0, on_progress

    def take(self) -> None:
        self._done = min(self._done + 1, self._total)
        if self._tell is not None:
            self._tell(self._done, self._total)

    def finish(self) -> None:
        self._done = self._total - 1
        self.take()


def _memories(pieces: Sequence[Piece]) -> int:
    return sum(len(piece.conversation.memories) for piece in pieces)


def _count(parts: Parts, count: Callable[[Sequence[Piece]], int]) -> dict[str, int]:
    return {"training": count(parts.training), "held_out": count(parts.held_out)}
