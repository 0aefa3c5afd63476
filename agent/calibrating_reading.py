"""How cold memories are read: the two constants of adaptive parallel encoding (arXiv 2502.05431) by number of
memories, from the loss of right answers.
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
DEFAULT_READING = (0.9, 0.9)
_PLAIN = (1.0, 1.0)
_EQUALS = (1.0, 0.9, 0.8, 0.7, 0.6)  # temperature and mass scale together, then the scale alone
_SCALE_STEPS = (-0.1, 0.1)
_GAIN = 0.01  # of loss per token, to leave the default
_ANY = 1_000_000  # memories that the last row holds for


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
        default = _PLAIN if count == 1 else DEFAULT_READING
        best = _choose(reader, count, some, default, on_case) if some else default
        if not some and rows:
            best = (rows[-1].temperature, rows[-1].mass_scale)
        rows.append(_row(count, best))
    merged = [
        row
        for row, after in zip(rows, [*rows[1:], None], strict=True)
        if after is None or (row.temperature, row.mass_scale) != (after.temperature, after.mass_scale)
    ]
    return (*merged[:-1], merged[-1].model_copy(update={"memories": _ANY}))


def _choose(
    reader: Reader,
    count: int,
    cases: Sequence[Case],
    default: tuple[float, float],
    on_case: Callable[[], None] | None,
) -> tuple[float, float]:
    losses: dict[tuple[float, float], list[float]] = {(value, value): [] for value in _EQUALS}
    for case in cases:
        for setting, values in losses.items():
            values.append(reader.paged_loss(case, _row(count, setting)))
        if on_case is not None:
            on_case()
    least = min(losses, key=lambda setting: statistics.fmean(losses[setting]))
    for step in _SCALE_STEPS if count > 1 else ():
        setting = (least[0], round(least[1] + step, 2))
        losses[setting] = [reader.paged_loss(case, _row(count, setting)) for case in cases]
    means = {setting: statistics.fmean(values) for setting, values in losses.items()}
    best = min(means, key=means.__getitem__)
    return best if means[best] <= means[default] - _GAIN else default


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
            none, text, plain = reader.losses(case, _row(count, _PLAIN))
            losses.append((none, text, plain, reader.paged_loss(case, row)))
            if on_case is not None:
                on_case()
        if losses:
            means = [round(statistics.fmean(column), 4) for column in zip(*losses, strict=True)]
            named = dict(zip(("none", "text", "plain", "paged"), means, strict=True))
            found[str(count)] = {**named, "questions": len(some)}
    return found


def _row(count: int, setting: tuple[float, float]) -> ReadingTemperature:
    return ReadingTemperature(memories=count, temperature=setting[0], mass_scale=setting[1])
