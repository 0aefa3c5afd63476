"""How much every memory of a namespace is like a text, by the routing mass that the model puts on it.

A turn looks at candidates alone; whoever forgets by meaning wants every memory looked at. So all of them are
scored, block by block, under one softmax: the mass of a block is joined with the others by its log-sum-exp.
"""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from mnemos.attention.calibration import Calibration
from mnemos.attention.encode import key_pairs
from mnemos.attention.memory_codec import RouteKeys, decode_route
from mnemos.attention.routing import RouteQuery
from mnemos.memory.records import LikeHit, LikeMatch
from mnemos.memory.router import standardised
from mnemos.store.store import Store

BLOCK = 256  # memories whose keys are in memory at once


def like_match(
    store: Store,
    namespace: str,
    text: str,
    states: RouteQuery,
    calibration: Calibration,
    group: int,
    threshold: float | None,
    on_progress: Callable[[int, int], None] | None = None,
) -> LikeMatch:
    """The memories that stand out for the text by `threshold` deviations of the log mass, or more."""
    least = calibration.recall_threshold if threshold is None else threshold
    ids = store.traced_ids(namespace)
    scored: list[str] = []

    def blocks() -> Iterable[list[RouteKeys]]:
        for start in range(0, len(ids), BLOCK):
            payloads = store.get_routes(namespace, ids[start : start + BLOCK])
            records = [decode_route(payload) for payload in payloads.values()]
            scored.extend(payloads)
            yield records
            for record in records:
                record.zero_()
            if on_progress is not None:
                on_progress(min(start + BLOCK, len(ids)), len(ids))

    scores = standardised(log_mass(states, blocks(), calibration, group)).tolist()
    ranked = sorted(zip(scores, scored, strict=True), key=lambda pair: -pair[0])
    return LikeMatch(
        text=text,
        threshold=least,
        scored=len(scored),
        unscored=store.count(namespace) - len(scored),
        best=ranked[0][0] if ranked else None,
        hits=tuple(LikeHit(id=memory_id, score=score) for score, memory_id in ranked if score >= least),
    )


def log_mass(
    query: RouteQuery, blocks: Iterable[Sequence[RouteKeys]], calibration: Calibration, group: int
) -> Tensor:
    """Log of each record's routing mass over all blocks together, `[records]`.

    As `record_mass(span_mass(...))` of the blocks in one, without holding more than one block.
    """
    pairs = key_pairs(calibration, group)
    heads: list[list[Tensor]] = [[] for _ in calibration.key_heads]
    for records in blocks:
        if not records:
            continue
        lengths = torch.tensor([record.tokens for record in records])
        owner = torch.repeat_interleave(torch.arange(len(records)), lengths)
        keys = torch.cat([record.keys for record in records], dim=1)  # [key_heads, tokens, dim]
        for index, (layer, head) in enumerate(calibration.key_heads):
            pair = pairs.index((layer, head // group))
            scores = (query.queries[index] @ keys[pair].T) * keys.shape[-1] ** -0.5  # [query, tokens]
            heads[index].append(_segment_log_sum_exp(scores, owner, len(records)))
    if not heads[0]:
        return torch.empty(0)
    mass = torch.zeros(sum(part.shape[1] for part in heads[0]))
    for parts in heads:
        by_record = torch.cat(parts, dim=1)  # [query, records]
        mass += torch.softmax(by_record, dim=-1).mean(dim=0)
    return (mass / len(heads)).clamp_min(1e-12).log()


def _segment_log_sum_exp(scores: Tensor, owner: Tensor, segments: int) -> Tensor:
    """`[query, tokens]` to `[query, segments]`."""
    rows = scores.shape[0]
    spread = owner.expand(rows, -1)
    top = torch.full((rows, segments), -torch.inf).scatter_reduce(1, spread, scores, "amax")
    sums = torch.zeros(rows, segments).index_add_(1, owner, torch.exp(scores - top[:, owner]))
    return top + sums.log()
