"""Which memories matter for a query: candidates from words and recency, scored by what the model would look
at.

Signals are z-scored over the candidates of one query and summed with calibrated weights; nothing is kept
between queries. What was said right before and after a good candidate then gains by it.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, time
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from mnemos.attention.memory_codec import RouteKeys
from mnemos.attention.models import LanguageModel
from mnemos.attention.routing import (
    RouteQuery,
    asked_of_keys,
    hidden_cosine,
    record_mass,
    span_mass,
    vector_similarity,
)
from mnemos.memory.records import RouterName
from mnemos.memory.role_cues import ROLES, assistant_signal
from mnemos.memory.route_index import RouteIndex
from mnemos.memory.session_cues import session_signal
from mnemos.memory.time_cues import Days, day_of, days_spoken_of, overlaps
from mnemos.store.candidates import Candidates
from mnemos.store.nearby import Place
from mnemos.store.phrases import NOTHING, Phrases
from mnemos.store.selectors import Condition, between
from mnemos.store.store import Store

if TYPE_CHECKING:
    from mnemos.attention.gpu.resident_keys import ResidentKeys
    from mnemos.memory.vector_index import VectorIndex
    from mnemos.memory.vectors_held import Codes

LEXICAL_CANDIDATES = 256
RECENT_CANDIDATES = 768
VECTOR_CANDIDATES = 128
TIME_CANDIDATES = 64  # of each span of days that the query names
TIME_BONUS = 4.0  # of a memory of those days, in deviations of the other signals
ASSISTANT_COST = 1.0  # of what the assistant said, unless it is asked for, likewise
PHRASE_BONUS = 5.0  # of one with the pairs of rare words of the query, likewise
SESSION_SHARE = 1.0  # of the best score in a memory's session, to 1 of its own
_BEFORE_NAMED = 3  # memories at most go before those that hold a pair of words which names something
_NAMED_APART = 1e-3  # between the scores of these
_READ_FOR_DAYS = 1000  # characters of a memory
_NARROWED = 32  # times as many are looked at where a condition leaves some out
_NEIGHBOURLY = 32  # best lexical candidates whose neighbours become candidates too
_QUESTION_WORDS = 20  # of a question; a longer message tells, thanks and asks at once
_NEAR_BEST = 0.5  # share of the best score that a memory needs to be read beside it
_WORD = re.compile(r"\w\w+")
_ANY_WORD = re.compile(r"\w+")


@dataclass(frozen=True, slots=True)
class Scored:
    """A memory, its fused score, each signal before fusion, and the routing mass of each of its spans."""

    id: str
    score: float
    signals: dict[str, float]
    standing: float  # z-score of the mass signal: how far it stands out of the candidates
    spans: tuple[float, ...]
    alone: float  # the score without what its session brings


@dataclass(frozen=True, slots=True)
class Looked:
    """The memories to be scored for one query, and what there is to score them by."""

    candidates: Candidates
    records: dict[str, RouteKeys]
    phrases: Phrases  # pairs of its words that they hold
    days: Sequence[Days]  # that the query names
    asked: datetime
    as_of: int  # what had been dropped of the keys on a device before the records were read


class Router:
    """Scores the memories of a namespace for one query."""

    def __init__(
        self,
        store: Store,
        routes: RouteIndex,
        model: LanguageModel,
        vectors: "VectorIndex | None" = None,
        resident: "ResidentKeys | None" = None,
    ) -> None:
        """`vectors` are those of the calibration's trained router or sentence encoder; `resident` keeps
        token keys where the model runs on a device.
        """
        self._resident = resident
        self._store = store
        self._vectors = vectors
        self._routes = routes
        self._calibration = model.calibration
        self._group = model.config.heads // model.config.kv_heads

    def score(
        self,
        namespace: str,
        query: str,
        states: RouteQuery,
        *,
        limit: int,
        router: RouterName = "full",
        where: Condition | None = None,
        now: datetime | None = None,
        looked: Looked | None = None,
    ) -> list[Scored]:
        """The best `limit` memories of those that `where` allows, best first. `latent` leaves out words,
        names and days. `now` is when the query is asked. `looked` is what `look` found for the same.
        """
        looked = looked or self.look(
            namespace, query, lambda: states.vector, router=router, where=where, now=now
        )
        asked, days, found = looked.asked, looked.days, looked.records
        lexical, placed = looked.candidates.lexical, looked.candidates.places
        ids = list(found)
        if not ids:
            return []
        records = list(found.values())
        spans = self._span_mass(namespace, states, looked)
        signals = {"mass": record_mass(spans, records)}
        if states.hidden is not None:
            signals["hidden"] = hidden_cosine(states, records)
        if states.vector is not None and self._vectors is not None:
            signals["vector"] = vector_similarity(states, self._vectors_of(namespace, ids, records))
        if router == "full":
            signals["lexical"] = torch.tensor([lexical.get(memory_id, 0.0) for memory_id in ids])
            signals["speaker"] = speaker_signal(query, ids, placed)
        worded = word_share(query)
        fused, signals["neighbours"], own = fuse(
            signals, self._calibration.weights, *neighbours_of(ids, placed), worded=worded
        )
        beside = torch.zeros(len(ids))
        if router == "full" and (aside := assistant_signal(query, ids, placed)) is not None:
            signals["assistant"] = aside
            beside = beside - ASSISTANT_COST * aside
        if telling := looked.phrases.telling:
            signals["phrase"] = torch.tensor([telling.get(memory_id, 0.0) for memory_id in ids])
            beside = beside + worded * PHRASE_BONUS * signals["phrase"]
        if days:
            signals["time"] = self._time_signal(namespace, ids, days, asked)
            beside = beside + TIME_BONUS * signals["time"]
        alone = fused + beside
        if router == "full" and (together := session_signal(own, ids, placed)) is not None:
            signals["session"] = together
            fused = (fused + SESSION_SHARE * together) / (1 + SESSION_SHARE)
        fused = fused + beside
        if worded == 1 and (named := looked.phrases.named):
            fused, signals["named"] = named_among_the_first(fused, ids, named)
        order = fused.argsort(descending=True, stable=True)[:limit].tolist()
        standing = standardised(signals["mass"])
        ends = np.cumsum([len(record.span_tokens) for record in records]).tolist()
        return [
            Scored(
                ids[i],
                float(fused[i]),
                {name: float(values[i]) for name, values in signals.items()},
                float(standing[i]),
                tuple(spans[ends[i] - len(records[i].span_tokens) : ends[i]].tolist()),
                float(alone[i]),
            )
            for i in order
        ]

    def look(
        self,
        namespace: str,
        query: str,
        vector: Callable[[], Tensor | None],
        *,
        router: RouterName = "full",
        where: Condition | None = None,
        now: datetime | None = None,
    ) -> Looked:
        """The memories to be scored for a query, with their routing records; `vector` gives the query's, or
        waits until there is one.
        """
        asked = (now or datetime.now()).astimezone(None if now is None else now.tzinfo)
        days = days_spoken_of(query, asked) if router == "full" else []
        phrases = self._store.phrases(namespace, query) if router == "full" else NOTHING
        candidates = self._store.candidates(
            namespace,
            query if router == "full" else None,
            by_words=LEXICAL_CANDIDATES,
            recent=RECENT_CANDIDATES,
            beside=_NEIGHBOURLY,
            where=where,
            more=[
                *chain.from_iterable(phrases.named),
                *self._alike(namespace, vector(), where),
                *self._then(namespace, days, asked, where),
            ],
        )
        as_of = 0 if self._resident is None else self._resident.drops
        records = self._routes.records(namespace, list(candidates.places))
        return Looked(candidates, records, phrases, days, asked, as_of)

    def _alike(self, namespace: str, vector: Tensor | None, where: Condition | None) -> list[str]:
        """Those whose vectors are the nearest: old ones, too, that share no word with the query."""
        if self._vectors is None or vector is None:
            return []
        most = VECTOR_CANDIDATES if where is None else _NARROWED * VECTOR_CANDIDATES
        near = self._vectors.nearest(namespace, vector.numpy(), most)
        allowed = self._store.recent_ids(namespace, len(near), where=where, ids=[*near]) if near else []
        return sorted(allowed, key=lambda memory_id: -near[memory_id])[:VECTOR_CANDIDATES]

    def _vectors_of(
        self, namespace: str, ids: Sequence[str], records: Sequence[RouteKeys]
    ) -> "list[Codes | None]":
        """Of each memory: those beside its keys, or those the index holds, of a trace from before it."""
        assert self._vectors is not None, "there are vectors to compare with"
        form = self._vectors.form
        found = [
            each.vectors.numpy() if each.vectors is not None and each.form == form else None
            for each in records
        ]
        lacking = [at for at, each in enumerate(found) if each is None]
        if lacking:
            held = self._vectors.held_of(namespace, [ids[at] for at in lacking])
            for at, codes in zip(lacking, held, strict=True):
                found[at] = codes
        return found

    def _then(
        self, namespace: str, days: Sequence[Days], asked: datetime, where: Condition | None
    ) -> list[str]:
        """The latest that were remembered in one of those days."""
        found: list[str] = []
        for first, after in days:
            start, end = (datetime.combine(day, time(), asked.tzinfo) for day in (first, after))
            meant = between(start, end)
            narrowed = meant if where is None else meant & where
            found += self._store.recent_ids(namespace, TIME_CANDIDATES, where=narrowed)
        return found

    def _time_signal(
        self, namespace: str, ids: Sequence[str], days: Sequence[Days], asked: datetime
    ) -> Tensor:
        """1 where a memory was made in one of those days, or speaks of one, `[memories]`."""
        meant = list(days)
        at = {memory_id: index for index, memory_id in enumerate(ids)}
        signal = torch.zeros(len(ids))
        for record in self._store.records(namespace, ids):
            made = record.created_at.astimezone(asked.tzinfo)
            spoken_of = [day_of(made)]
            if not overlaps(meant, spoken_of):
                spoken_of = days_spoken_of(record.text[:_READ_FOR_DAYS], made)
            signal[at[record.id]] = float(overlaps(meant, spoken_of))
        return signal

    def _span_mass(self, namespace: str, states: RouteQuery, looked: Looked) -> Tensor:
        """The mass on each span of each candidate, `[spans]`, of the keys on the device if they are there."""
        if self._resident is not None:
            rows = asked_of_keys(states, self._calibration, self._group)
            scale = states.queries.shape[-1] ** -0.5
            mass = self._resident.span_mass(namespace, looked.records, rows, scale, as_of=looked.as_of)
            if mass is not None:
                return mass
        return span_mass(states, list(looked.records.values()), self._calibration, self._group)

    def worth_reading(self, ranked: Sequence[Scored]) -> list[Scored]:
        """Those that share a telling word with the query, and at most one that only the model's heads point
        at.

        Both have to come near the best one: a small model answers best from few memories.
        """
        if not ranked:
            return []
        # By itself: what its session brings is another memory's doing.
        best = max(each.alone for each in ranked)
        near = [scored for scored in ranked if scored.alone >= _NEAR_BEST * best]
        worded = [scored for scored in near if scored.signals.get("lexical", 0.0) > 0]
        pointed = [
            scored
            for scored in near
            if scored not in worded and scored.standing >= self._calibration.recall_threshold
        ]
        return sorted([*worded, *pointed[: 0 if worded else 1]], key=lambda scored: -scored.score)


def fuse(
    signals: Mapping[str, Tensor],
    weights: Mapping[str, float | Tensor],
    before: Tensor,
    after: Tensor,
    *,
    worded: float = 1.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """The fused score of each memory, what its neighbours brought, and its score without that, all `[...,
    memories]`.

    `signals` are `[..., memories]`, the mass as its logarithm. `before` and `after`, `[memories]`, are the
    indices of the neighbours, or the number of memories where there is none. `worded` is what is left of the
    weights of what goes word by word, beside a vector of the whole query.
    """
    left = worded if "vector" in signals else 1.0
    fused = torch.zeros(before.shape)
    for name, values in signals.items():
        # The root of the mass: its logarithm spreads out memories that get next to none of it.
        # In numpy, since PyTorch wakes threads for it.
        spread = torch.from_numpy(np.exp(values.numpy() / 2)) if name == "mass" else values
        weight = weights.get(name, 0.0) * (left if name in ("lexical", "mass") else 1.0)
        fused = fused + weight * standardised(spread)
    known = torch.nn.functional.pad(fused.clamp_min(0), (0, 1))  # a neighbour that isn't there scores 0
    beside = known[..., before] + known[..., after]
    return fused + left * weights.get("neighbours", 0.0) * beside, beside, fused


def named_among_the_first(
    fused: Tensor, ids: Sequence[str], named: Sequence[Sequence[str]]
) -> tuple[Tensor, Tensor]:
    """The scores `[memories]`, and 1 where one was raised.

    Of the memories that hold a pair of words which names something, the best of each pair goes behind three
    others at most, so that of several things asked about at once none is crowded out by another.
    """
    at = {memory_id: index for index, memory_id in enumerate(ids)}
    best = {
        max(held, key=lambda index: float(fused[index]))
        for holders in named
        if (held := [at[each] for each in holders if each in at])
    }
    raised, marks = fused.clone(), torch.zeros(len(ids))
    others = [index for index in range(len(ids)) if index not in best]
    if not best or len(others) <= _BEFORE_NAMED:
        return raised, marks
    floor = float(fused[others].topk(_BEFORE_NAMED + 1).values[-1])
    low = sorted((index for index in best if fused[index] <= floor), key=lambda index: float(fused[index]))
    for step, index in enumerate(low, 1):
        raised[index] = floor + _NAMED_APART * step
        marks[index] = 1.0
    return raised, marks


def word_share(query: str) -> float:
    """How far to go by a query's single words: in a long message most of them are beside the point.

    1 up to the length of a question, from there as the square of the lengths' ratio.
    """
    return min(1.0, _QUESTION_WORDS / max(1, len(_ANY_WORD.findall(query)))) ** 2


def neighbours_of(ids: Sequence[str], placed: Mapping[str, Place]) -> tuple[Tensor, Tensor]:
    """Indices of the memories before and after each one, `len(ids)` where that is none of them."""
    index = {memory_id: at for at, memory_id in enumerate(ids)}
    places = [placed.get(memory_id) for memory_id in ids]
    none = len(ids)
    before = [none if place is None else index.get(place.before or "", none) for place in places]
    after = [none if place is None else index.get(place.after or "", none) for place in places]
    return torch.tensor(before, dtype=torch.long), torch.tensor(after, dtype=torch.long)


def speaker_signal(query: str, ids: Sequence[str], placed: Mapping[str, Place]) -> Tensor:
    """1 where the query names who said the memory, `[memories]`."""
    named = frozenset(_words(query))
    speakers = {place.speaker for place in placed.values()}
    meant = {speaker: _is_named(speaker, named) for speaker in speakers}
    return torch.tensor([meant[placed[each].speaker] if each in placed else 0.0 for each in ids])


def _words(text: str) -> list[str]:
    return _WORD.findall(text.casefold())


def _is_named(speaker: str | None, named: frozenset[str]) -> float:
    """1.0 where the query names that speaker."""
    if speaker is None:
        return 0.0
    return float(not named.isdisjoint(set(_words(speaker)) - ROLES))


def standardised(values: Tensor) -> Tensor:
    """Zero mean and unit deviation over the candidates (last dimension); zeros where they do not differ."""
    if values.shape[-1] < 2:
        return torch.zeros_like(values)
    deviation = values.std(dim=-1, keepdim=True)
    centred = values - values.mean(dim=-1, keepdim=True)
    return torch.where(deviation > 1e-6, centred / deviation.clamp_min(1e-6), torch.zeros_like(values))
