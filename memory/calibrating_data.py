"""What a calibration is chosen on: conversations split into a training and a held-out part, each cut to a
stretch.

Whole conversations are held out, never single questions: a question of a conversation that was trained on
would prove nothing. Long ones are cut to the stretch of memories in which most of their questions can be
answered.
"""

import hashlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mnemos.errors import NotFoundError, UsageError
from mnemos.memory.conversations import Conversation, Question, read_conversations

_HELD_OUT = 4  # one conversation of so many is held out
_MOST_EVIDENCE = 0.5  # of the memories: a question that more than these answer tells nothing


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of a conversation, with the questions that can be answered from it."""

    file: str
    digest: str  # of the whole conversation's memories
    conversation: Conversation


@dataclass(frozen=True, slots=True)
class Parts:
    """What a calibration is chosen on, and what it is tried on; the digests of the files by name."""

    training: tuple[Piece, ...]
    held_out: tuple[Piece, ...]
    data: dict[str, str]
    held_out_data: dict[str, str]


def make_parts(
    data: Sequence[Path],
    held_out: Sequence[Path],
    *,
    conversations: int,
    questions: int,
    tokens: int,
    seed: int,
    size: Callable[[str], int],
) -> Parts:
    """At most that many conversations of all files, and questions of the training part; half as many more
    held out.

    Without files of their own, held-out conversations come from `data`, one of four. `tokens` are shared
    out among the conversations; `size` tells the tokens of a memory's text. The same arguments give the
    same parts. Raises NotFoundError, and UsageError when there is too little to choose from.
    """
    files, digests = _read_files(data)
    others, other_digests = _read_files(held_out)
    known = {piece.digest for pieces in files.values() for piece in pieces}
    others = {name: [one for one in pieces if one.digest not in known] for name, pieces in others.items()}
    share = max(2, conversations // len(files))
    picked = {name: random.Random(seed).sample(pieces, len(pieces))[:share] for name, pieces in files.items()}
    if others:
        most = max(1, conversations // 2 // len(others))
        tried = {name: random.Random(seed).sample(some, len(some))[:most] for name, some in others.items()}
        if not all(tried.values()):
            raise UsageError(
                "a held-out file has no conversation that isn't in the training data too; name another"
            )
    else:
        tried = {
            name: some[: (len(some) + 1) // _HELD_OUT or len(some) // 2] for name, some in picked.items()
        }
        picked = {name: some[len(tried[name]) :] for name, some in picked.items()}
    if not any(tried.values()):
        raise UsageError(
            "the data holds one conversation with questions in each file; two are needed, one of them held "
            "out. Add conversations, or name a file to measure by with --held-out"
        )
    whole = [*_joined(picked), *_joined(tried)]
    sizes = [[size(turn.text) for turn in piece.conversation.memories] for piece in whole]
    rooms = fair_shares([sum(some) for some in sizes], tokens)
    pieces = [cut(piece, room, some) for piece, room, some in zip(whole, rooms, sizes, strict=True)]
    count = len(_joined(picked))
    training, tested = _asked(pieces[:count], questions), _asked(pieces[count:], max(1, questions // 2))
    for part, name in ((training, "training"), (tested, "held-out")):
        if not part:
            raise UsageError(
                f"the {name} part has no question left that can be answered within {tokens} tokens; "
                "raise --tokens, or add data"
            )
    return Parts(training, tested, digests, other_digests)


def _read_files(paths: Sequence[Path]) -> tuple[dict[str, list[Piece]], dict[str, str]]:
    """Conversations with a question that can be answered, each once, and digests, by the name of the file."""
    files: dict[str, list[Piece]] = {}
    digests: dict[str, str] = {}
    seen: set[str] = set()
    for path in paths:
        name = path.name if path.name not in files else f"{path.name} ({len(files) + 1})"
        files[name] = []
        for conversation in read_conversations(path):
            texts = [f"{turn.speaker}\0{turn.text}" for turn in conversation.memories]
            digest = hashlib.sha256("\1".join(texts).encode()).hexdigest()
            if digest not in seen and any(_evidence(conversation, one) for one in conversation.questions):
                files[name].append(Piece(name, digest, conversation))
                seen.add(digest)
        if not files[name]:
            raise UsageError(
                f"{path} has no conversation with a question whose evidence exists when it is asked"
                " (or only such as another file has too); name another file"
            )
        digests[name] = file_sha256(path)
    return files, digests


def file_sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        raise NotFoundError(f"There is no file {path}. Check the path.") from None


def _evidence(conversation: Conversation, question: Question) -> list[int]:
    """Places of the memories that answer a question and exist when it is asked."""
    wanted = set(question.evidence)
    if not wanted or not question.question.strip():
        return []
    return [at for at, turn in enumerate(conversation.visible(question)) if turn.id in wanted]


def fair_shares(sizes: Sequence[int], room: int) -> list[int]:
    """What each gets of `room`: the small ones all they need, the others the same each."""
    shares = [0] * len(sizes)
    for left, at in enumerate(sorted(range(len(sizes)), key=sizes.__getitem__)):
        shares[at] = min(sizes[at], room // (len(sizes) - left))
        room -= shares[at]
    return shares


def cut(piece: Piece, room: int, sizes: Sequence[int]) -> Piece:
    """The stretch of at most `room` tokens in which most questions can be answered; the first of equals.

    `sizes` are the tokens of each memory. A question stays when half of its evidence or more lies in the
    stretch, and other memories as many.
    """
    whole = piece.conversation
    evidence = [_evidence(whole, question) for question in whole.questions]
    best: list[tuple[Question, list[int]]] = []
    window = (0, 0)
    end, held = 0, 0
    for start in range(len(sizes)):
        end = max(end, start)
        while end < len(sizes) and held + sizes[end] <= room:
            held += sizes[end]
            end += 1
        found = _answerable(whole, evidence, start, end)
        if len(found) > len(best):
            best, window = found, (start, end)
        if end > start:
            held -= sizes[start]
    turns = whole.memories[window[0] : window[1]]
    questions = [
        question.model_copy(update={"evidence": tuple(whole.memories[at].id for at in places)})
        for question, places in best
    ]
    return Piece(
        piece.file,
        piece.digest,
        Conversation(id=whole.id, memories=turns, questions=tuple(questions)),
    )


def _answerable(
    whole: Conversation, evidence: Sequence[Sequence[int]], start: int, end: int
) -> list[tuple[Question, list[int]]]:
    """Questions that the memories `[start, end)` answer, with the places of those that do."""
    found = []
    for question, places in zip(whole.questions, evidence, strict=True):
        if not places or places[-1] < start or places[0] >= end:
            continue
        inside = [at for at in places if start <= at < end]
        if 2 * len(inside) < len(places):
            continue
        visible = min(end, len(whole.visible(question))) - start
        if len(inside) <= _MOST_EVIDENCE * visible:
            found.append((question, inside))
    return found


def _asked(pieces: Sequence[Piece], most: int) -> tuple[Piece, ...]:
    """The pieces with at most that many questions together, as many of each file as far as it goes."""
    kept: dict[int, list[Question]] = {}
    files = list(dict.fromkeys(piece.file for piece in pieces))
    of_file = {
        name: [
            (at, one)
            for at, each in enumerate(pieces)
            if each.file == name
            for one in each.conversation.questions
        ]
        for name in files
    }
    rooms = fair_shares([len(some) for some in of_file.values()], most)
    for some, room in zip(of_file.values(), rooms, strict=True):
        for index in range(room):
            at, question = some[index * len(some) // room]
            kept.setdefault(at, []).append(question)
    return tuple(
        Piece(piece.file, piece.digest, piece.conversation.model_copy(update={"questions": tuple(kept[at])}))
        for at, piece in enumerate(pieces)
        if at in kept
    )


def _joined(by_file: dict[str, list[Piece]]) -> list[Piece]:
    return [piece for pieces in by_file.values() for piece in pieces]
