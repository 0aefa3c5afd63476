"""Recall in rounds for models that read memories in full: what one round recalled joins the next question.

A training-free form of memory interleave (arXiv 2603.23516, section 3.5): the second link of a chain often
shares words with the first and none with the question. Off by default (`rounds=1`).
"""

from collections.abc import Sequence
from dataclasses import replace

from mnemos.attention.kv import KVCache
from mnemos.memory.layout import render_memory
from mnemos.memory.read_budget import PAGED_TOKENS
from mnemos.memory.recall import DEFAULT_K, Recall, Recaller
from mnemos.memory.records import RecalledMemory
from mnemos.store.selectors import Condition

_JOINED_TOKENS = 256  # most tokens of recalled text that join the question


def recall_in_rounds(
    recaller: Recaller,
    query: str,
    context: KVCache,
    words: Sequence[int],
    *,
    namespace: str,
    rounds: int,
    k: int = DEFAULT_K,
    exclude: frozenset[str] = frozenset(),
    selective: bool = True,
    where: Condition | None = None,
    as_text: bool = False,
) -> Recall:
    """As `Recaller.recall`, in up to `rounds` rounds that share `k`; stops when one brings nothing new.

    Each round but the last leaves half of the places that are left, rounded up, to those after it.
    """
    found: Recall | None = None
    for left in range(rounds, 0, -1):
        taken = 0 if found is None else len(found.memories)
        room = k - taken
        share = room if left == 1 else -(-room // 2)
        if share < 1 and found is not None:
            break
        asked, joined = query, list(words)
        if found is not None:
            asked, joined = _joined(recaller, query, context, words, found)
            exclude |= {recalled.memory.id for recalled in found.memories}
        most = share if selective else share + taken  # what isn't selective finds the excluded ones as well
        fresh = recaller.recall(
            asked,
            context,
            joined,
            namespace=namespace,
            k=most,
            exclude=exclude,
            selective=selective,
            where=where,
            as_text=as_text,
        )
        fresh = _without(fresh, exclude, share) if taken else fresh
        found = fresh if found is None else _together(found, fresh)
        if not fresh.memories:
            break
    assert found is not None, "there is a first round"
    return found


def search_in_rounds(
    recaller: Recaller, query: str, *, namespace: str, k: int, rounds: int
) -> Sequence[RecalledMemory]:
    """The memories that an agent with so many rounds recalls for a query that stands alone."""
    context, words = recaller.question(query, room=_JOINED_TOKENS)
    if not words:
        return []
    found = recall_in_rounds(
        recaller, query, context, words, namespace=namespace, rounds=rounds, k=k, selective=False
    )
    return found.memories


def _joined(
    recaller: Recaller, query: str, context: KVCache, words: Sequence[int], found: Recall
) -> tuple[str, list[int]]:
    """The question behind what was recalled, as text and as tokens that fit the context."""
    text = "".join(line for recalled in found.memories for line in render_memory(recalled.memory))
    window = min(context.capacity - context.length, context.max_positions - context.next_position)
    room = max(min(_JOINED_TOKENS, window - len(words)), 0)
    return f"{text}{query}", [*recaller.model.tokenizer.encode(text)[:room], *words]


def _together(first: Recall, second: Recall) -> Recall:
    """Both rounds, the first one's memories first, as far as `PAGED_TOKENS` goes."""
    offset = len(first.memories)
    memories, spans, owners = list(first.memories), list(first.spans), list(first.owners)
    tokens = first.tokens
    for index, recalled in enumerate(second.memories):
        block = [s for s, owner in zip(second.spans, second.owners, strict=True) if owner == index]
        tokens += sum(span.tokens for span in block)
        if tokens > PAGED_TOKENS:
            break
        memories.append(recalled.model_copy(update={"rank": offset + index + 1}))
        owners += [offset + index] * len(block)
        spans += block
    return Recall(
        tuple(memories),
        tuple(spans),
        tuple(owners),
        first.route_ms + second.route_ms,
        first.page_ms + second.page_ms,
    )


def _without(found: Recall, exclude: frozenset[str], most: int) -> Recall:
    """The first `most` memories of those not in `exclude`."""
    kept = [index for index, recalled in enumerate(found.memories) if recalled.memory.id not in exclude]
    kept = kept[:most]
    pairs = [
        (span, kept.index(owner))
        for span, owner in zip(found.spans, found.owners, strict=True)
        if owner in kept
    ]
    return replace(
        found,
        memories=tuple(
            found.memories[index].model_copy(update={"rank": rank}) for rank, index in enumerate(kept, 1)
        ),
        spans=tuple(span for span, _ in pairs),
        owners=tuple(owner for _, owner in pairs),
    )
