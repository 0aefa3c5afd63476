"""How much of what was found is read for one reply."""

from collections.abc import Sequence

from mnemos.attention.kv import Span
from mnemos.memory.records import RecalledMemory

PAGED_TOKENS = 2048  # most memory tokens brought in for one reply
_SPAN_SHARE = 0.5  # of the mass of a memory's best span, for another span to be read too


def fitting(described: Sequence[RecalledMemory]) -> list[str]:
    """Ids of the first of them, as many as fit into `PAGED_TOKENS`: each is sure to be read, so they are
    fetched at once.
    """
    room_tokens = PAGED_TOKENS
    ids: list[str] = []
    for recalled in described:
        room_tokens -= recalled.memory.tokens
        if room_tokens < 0:
            break
        ids.append(recalled.memory.id)
    return ids


def readable(described: Sequence[RecalledMemory]) -> tuple[RecalledMemory, ...]:
    """The best of them, as far as `PAGED_TOKENS` goes."""
    kept: list[RecalledMemory] = []
    room_tokens = PAGED_TOKENS
    for recalled in described:
        if recalled.memory.tokens <= room_tokens:
            room_tokens -= recalled.memory.tokens
            kept.append(recalled.model_copy(update={"rank": len(kept) + 1}))
    return tuple(kept)


def telling_spans(spans: Sequence[Span], mass: Sequence[float], room_tokens: int) -> list[Span]:
    """The spans of one memory that the query points at, in their order, as far as there is room.

    Those are the spans with half the mass of its best one, or more; the best ones go first where not all fit.
    """
    chosen = set()
    for index in sorted(range(len(spans)), key=lambda i: -mass[i]):
        if mass[index] < _SPAN_SHARE * max(mass) or spans[index].tokens > room_tokens:
            continue
        room_tokens -= spans[index].tokens
        chosen.add(index)
    return [span for index, span in enumerate(spans) if index in chosen]
