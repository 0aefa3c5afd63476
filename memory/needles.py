"""Needles in a haystack, in the manner of RULER (arXiv 2404.06654): facts with made-up values, hidden in
passages of other text, and questions that only they answer.
"""

import random
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, product
from typing import Literal, get_args

from mnemos.errors import UsageError

Task = Literal["single", "multi-key", "multi-value", "multi-query"]
Value = Literal["word", "number", "uuid"]
TASKS: tuple[Task, ...] = get_args(Task)
VALUES: tuple[Value, ...] = get_args(Value)
DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
_DISTRACTORS = 3  # needles of a multi-key question that name other things
_TOGETHER = 4  # values of a multi-value question, keys of a multi-query one

_KINDS = (
    "amber copper marble velvet crimson silent hollow northern wooden frozen painted crooked gilded distant"
)
_KINDS += (
    " broken narrow ancient hidden floating silver golden paper winter summer eastern western stone iron"
)
_THINGS = "lighthouse orchard bridge market garden harbour library station workshop bakery chapel mill quarry"
_THINGS += (
    " meadow tower canal cellar theatre foundry stable nursery archive kiosk vineyard reservoir pavilion"
)
_WORDS = (
    "acorn badger canyon dolphin ember falcon glacier hazel indigo jasmine kestrel lantern mango nectar onyx"
)
_WORDS += (
    " pebble quartz raven saffron thistle umbra violet walrus xenon yarrow zephyr bramble cobalt drizzle"
)


@dataclass(frozen=True, slots=True)
class Needle:
    """One sentence that is hidden, and how deep."""

    sentence: str
    value: str
    depth: float  # 0 for the first memory, 1 for the last


@dataclass(frozen=True, slots=True)
class NeedleQuestion:
    """A question and the needles that answer it; `others` only stand in its way."""

    task: Task
    kind: Value
    depth: float
    question: str
    needles: tuple[Needle, ...]
    others: tuple[Needle, ...] = ()


def make_questions(repeats: int, *, seed: int = 0) -> list[NeedleQuestion]:
    """`repeats` questions of every task, kind of value and depth; no two ask about the same thing.

    Raises UsageError when there are not as many things to ask about.
    """
    chance = random.Random(seed)
    keys = [f"{kind} {thing}" for kind, thing in product(_KINDS.split(), _THINGS.split())]
    chance.shuffle(keys)
    fresh = iter(keys)
    made: list[NeedleQuestion] = []
    try:
        for task, kind, depth, _ in product(TASKS, VALUES, DEPTHS, range(repeats)):
            made.append(_make(task, kind, depth, fresh, chance))
    except StopIteration:
        raise UsageError(f"there are {len(keys)} things to ask about, too few; ask for less") from None
    return made


def _make(
    task: Task, kind: Value, depth: float, keys: Iterator[str], chance: random.Random
) -> NeedleQuestion:
    name = {"word": "word", "number": "number", "uuid": "UUID"}[kind]

    def needle(key: str, at: float) -> Needle:
        value = _value(kind, chance)
        return Needle(f"The secret {name} of the {key} is {value}.", value, at)

    def elsewhere() -> float:
        return chance.random()

    if task == "multi-value":
        key = _next(keys, 1)[0]
        needles = [needle(key, depth), *(needle(key, elsewhere()) for _ in range(_TOGETHER - 1))]
        return NeedleQuestion(
            task, kind, depth, f"What are all the secret {name}s of the {key}?", tuple(needles)
        )
    if task == "multi-query":
        asked = _next(keys, _TOGETHER)
        needles = [needle(key, depth if at == 0 else elsewhere()) for at, key in enumerate(asked)]
        things = ", ".join(f"the {key}" for key in asked[:-1]) + f" and the {asked[-1]}"
        return NeedleQuestion(task, kind, depth, f"What are the secret {name}s of {things}?", tuple(needles))
    key = _next(keys, 1)[0]
    others = _next(keys, _DISTRACTORS) if task == "multi-key" else []
    return NeedleQuestion(
        task,
        kind,
        depth,
        f"What is the secret {name} of the {key}?",
        (needle(key, depth),),
        tuple(needle(other, elsewhere()) for other in others),
    )


def _next(keys: Iterator[str], count: int) -> list[str]:
    taken = list(islice(keys, count))
    if len(taken) < count:
        raise StopIteration
    return taken


def _value(kind: Value, chance: random.Random) -> str:
    if kind == "word":
        return "-".join(chance.sample(_WORDS.split(), 2))
    if kind == "number":
        return str(chance.randrange(1_000_000, 10_000_000))
    return str(uuid.UUID(int=chance.getrandbits(128), version=4))


def hide(passage: str, needle: Needle, chance: random.Random) -> str:
    """The passage with the needle's sentence between two of its sentences, or two words where it has one."""
    ends = [at + 2 for at in range(len(passage)) if passage.startswith((". ", "? ", "! "), at)]
    at = chance.choice(ends) if ends else passage.find(" ", len(passage) // 2) + 1
    return f"{passage[:at]}{needle.sentence} {passage[at:]}".strip()


def placed(needles: Sequence[Needle], memories: int) -> dict[int, Needle]:
    """The memory that each needle goes into, by its index: near its depth, no two into one.

    Raises UsageError when there are more needles than memories.
    """
    if len(needles) > memories:
        raise UsageError(f"{len(needles)} needles don't fit into {memories} memories; take more tokens")
    taken: dict[int, Needle] = {}
    for needle in needles:
        at = round(needle.depth * (memories - 1))
        step = 0
        while at in taken or not 0 <= at < memories:
            step += 1
            at = round(needle.depth * (memories - 1)) + (step + 1) // 2 * (1 if step % 2 else -1)
        taken[at] = needle
    return taken
