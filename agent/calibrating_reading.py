"""How memories are read: the two constants of adaptive parallel encoding (arXiv 2502.05431) and how far apart
the memories stand, by their number, from the loss of right answers.
"""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mnemos.agent.evaluate_reading import Case, Reader, cases_of
from mnemos.attention.calibration import ReadingTemperature
from mnemos.memory.calibrating_data import Piece, fair_shares
from mnemos.memory.conversations import Conversation, Question

COUNTS = (1, 4, 8, 16)  # memories; between two the larger one's constants hold
ANSWER_TOKENS = 48
MEMORY_TOKENS = 128
_TEMPERATURES = (1.0, 0.9, 0.8, 0.7, 0.6)  # with the mass scale of the same size; then that alone
_SCALE_STEPS = (-0.1, 0.1)
_STRIDE = 0.25
_STRIDES = (0.0, 0.5)  # tried in its place
_GAIN = 0.01  # of loss per token, to leave the default
_ANY = 1_000_000  # memories that the last row holds for
_PLAIN = ReadingTemperature(memories=_ANY, temperature=1.0, mass_scale=1.0)


@dataclass(frozen=True, slots=True)
class ReadingCases:
    """Questions with answers by number of memories; fewer memories than asked for make no case."""

    by_count: dict[int, tuple[Case, ...]]
    answer_tokens: int = ANSWER_TOKENS
    memory_tokens: int = MEMORY_TOKENS

    @classmethod
    def of(cls, pieces: Sequence[Piece], questions: int) -> "ReadingCases":
        found: dict[int, tuple[Case, ...]] = {}
        for count in COUNTS:
            cases = cases_of(_spread_over_files(pieces, count, questions), count, None)
            found[count] = tuple(case for case in cases if len(case.turns) == count)
        return cls(found)

    @property
    def steps(self) -> int:
        return sum(len(cases) for cases in self.by_count.values())


def _spread_over_files(pieces: Sequence[Piece], count: int, most: int) -> list[Conversation]:
    """Conversations with the questions to answer: of each file the same number, as far as it has them."""
    asked: dict[str, list[tuple[int, Question]]] = {}
    for at, piece in enumerate(pieces):
        for question in piece.conversation.questions:
            if question.answer.strip() and len(piece.conversation.visible(question)) >= count:
                asked.setdefault(piece.file, []).append((at, question))
    rooms = fair_shares([len(some) for some in asked.values()], most)
    kept: dict[int, list[Question]] = {}
    for some, room in zip(asked.values(), rooms, strict=True):
        for index in range(room):
            at, question = some[index * len(some) // room]
            kept.setdefault(at, []).append(question)
    return [
        pieces[at].conversation.model_copy(update={"questions": tuple(some)})
        for at, some in sorted(kept.items())
    ]


def choose_reading(
    reader: Reader, cases: ReadingCases, on_case: Callable[[], None] | None = None
) -> tuple[ReadingTemperature, ...]:
    """The constants with the least loss by number of memories; the default where nothing is much better."""
    rows: list[ReadingTemperature] = []
    for count, some in cases.by_count.items():
        if some:
            rows.append(_choose(reader, some, default_reading(count), on_case))
        else:
            rows.append(rows[-1].model_copy(update={"memories": count}) if rows else default_reading(count))
    merged = [
        row
        for row, after in zip(rows, [*rows[1:], None], strict=True)
        if after is None or row != after.model_copy(update={"memories": row.memories})
    ]
    return (*merged[:-1], merged[-1].model_copy(update={"memories": _ANY}))


def default_reading(count: int) -> ReadingTemperature:
    """Plain attention for one memory; for more, what a small model reads well with."""
    if count == 1:
        return ReadingTemperature(memories=1, temperature=1.0, mass_scale=1.0)
    return ReadingTemperature(memories=count, temperature=0.9, mass_scale=0.9, stride=_STRIDE)


def _choose(
    reader: Reader,
    cases: Sequence[Case],
    default: ReadingTemperature,
    on_case: Callable[[], None] | None,
) -> ReadingTemperature:
    first = [default.model_copy(update={"temperature": each, "mass_scale": each}) for each in _TEMPERATURES]
    by_case = []
    for case in cases:
        by_case.append([reader.paged_loss(case, row) for row in first])
        if on_case is not None:
            on_case()
    losses = dict(
        zip(first, (statistics.fmean(column) for column in zip(*by_case, strict=True)), strict=True)
    )

    def tried(rows: Sequence[ReadingTemperature]) -> ReadingTemperature:
        for row in rows:
            losses[row] = statistics.fmean(reader.paged_loss(case, row) for case in cases)
        return min(losses, key=losses.__getitem__)

    best = tried(())
    if default.memories > 1:
        scales = [round(best.mass_scale + step, 2) for step in _SCALE_STEPS]
        best = tried([best.model_copy(update={"mass_scale": scale}) for scale in scales])
        best = tried([best.model_copy(update={"stride": stride}) for stride in _STRIDES])
    return best if losses[best] <= losses[default] - _GAIN else default


def measured_reading(
    reader: Reader,
    cases: ReadingCases,
    reading: Sequence[ReadingTemperature],
    on_case: Callable[[], None] | None = None,
) -> dict[str, dict[str, float]]:
    """Loss per answer token by number of memories: none, as text, paged plain, and paged with these
    constants.
    """
    found: dict[str, dict[str, float]] = {}
    for count, some in cases.by_count.items():
        row = next(row for row in reading if count <= row.memories)
        losses: list[tuple[float, ...]] = []
        for case in some:
            none, text, plain = reader.losses(case, _PLAIN)
            losses.append((none, text, plain, reader.paged_loss(case, row)))
            if on_case is not None:
                on_case()
        if losses:
            means = [round(statistics.fmean(column), 4) for column in zip(*losses, strict=True)]
            named = dict(zip(("none", "text", "plain", "paged"), means, strict=True))
            found[str(count)] = {**named, "questions": len(some)}
    return found
