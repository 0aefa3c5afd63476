"""Token keys of many memories kept on a device, so that routing reads them at the speed of its memory.

Each namespace has one stretch of keys that grows; one launch scores all of its segments, and a query takes
those it asked for. What is dropped is zeroed at once and its room closed up when half of a stretch is such
holes.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from threading import Lock

import torch
from torch import Tensor

from mnemos.attention.kernels.dispatch import route_mass
from mnemos.attention.kernels.segments import SegmentKeys, segment_mass
from mnemos.attention.memory_codec import RouteKeys

DEFAULT_BUDGET_BYTES = 2 << 30
_FIRST_TOKENS = 4096  # of a new stretch
_MOST_DEAD = 0.5  # of a stretch's tokens, before it is closed up


@dataclass(frozen=True, slots=True)
class _Place:
    """Where one memory lies in its stretch."""

    slot: int  # of its scales
    first_segment: int
    segments: int
    first_token: int
    tokens: int


class ResidentKeys:
    """Keys of routing records by namespace and memory id, within a budget of bytes."""

    def __init__(self, device: torch.device | str, *, budget_bytes: int = DEFAULT_BUDGET_BYTES) -> None:
        self._device = torch.device(device)
        self._budget = budget_bytes
        self._stretches: OrderedDict[str, _Stretch] = OrderedDict()  # least recently used first
        self._lock = Lock()
        self._drops = 0

    @property
    def drops(self) -> int:
        """How often something was dropped so far: records that were read before may be what it was about."""
        return self._drops

    @property
    def nbytes(self) -> int:
        """Of what is kept, holes included."""
        with self._lock:
            return self._bytes()

    def span_mass(
        self,
        namespace: str,
        records: Mapping[str, RouteKeys],
        rows: Sequence[Tensor],
        score_scale: float,
        *,
        as_of: int,
    ) -> Tensor | None:
        """Softmax mass on each span of each memory in `records`, `[spans]` on the host, summing to 1.

        Keys that are not here yet are copied from the records, which hold them in eight bits and were read
        when there had been `as_of` drops. `rows` are the queries behind each key head, `[queries, head_dim]`.
        None where something was dropped since, where a record is not in eight bits, or where the budget has
        no room for all of them at once: the caller scores them elsewhere.
        """
        if not records:
            return torch.empty(0)
        with self._lock:
            if as_of != self._drops or not self._keep(namespace, records):
                return None
            return self._stretches[namespace].mass(list(records), rows, score_scale)

    def keys(self) -> list[tuple[str, str]]:
        """(namespace, memory id) of what is kept."""
        with self._lock:
            return [(name, each) for name, stretch in self._stretches.items() for each in stretch.places]

    def drop(self, namespace: str | None = None, memory_id: str | None = None) -> None:
        """Zero and let go of one memory's keys, a namespace's, or all."""
        with self._lock:
            self._drops += 1
            for name in list(self._stretches):
                if namespace not in (None, name):
                    continue
                if memory_id is None:
                    self._stretches.pop(name).zero_()
                else:
                    self._stretches[name].drop([memory_id])

    def _bytes(self) -> int:
        return sum(stretch.nbytes for stretch in self._stretches.values())

    def _keep(self, namespace: str, records: Mapping[str, RouteKeys]) -> bool:
        """Whether all of them are here now. Others leave for them: first other namespaces, then what of this
        one was not asked for.
        """
        stretch = self._stretches.get(namespace)
        missing = {
            each: record for each, record in records.items() if stretch is None or each not in stretch.places
        }
        if missing:
            if any(record.scale is None for record in missing.values()):
                return False
            new = _segments_of(list(missing.values()))
            if stretch is None:
                stretch = self._stretches[namespace] = _Stretch(new, self._device)
            while self._bytes() + stretch.growth(new) > self._budget and len(self._stretches) > 1:
                oldest = next(name for name in self._stretches if name != namespace)
                self._stretches.pop(oldest).zero_()
            if self._bytes() + stretch.growth(new) > self._budget:
                stretch.keep_only(set(records))
            if self._bytes() + stretch.growth(new) > self._budget:
                return False
            stretch.add(list(missing), new)
        self._stretches.move_to_end(namespace)
        return True


class _Stretch:
    """The keys of one namespace."""

    def __init__(self, like: SegmentKeys, device: torch.device) -> None:
        heads, dim = like.keys.shape[1:]
        self._shape, self._device = (heads, dim), device
        self.places: dict[str, _Place] = {}
        self._segments = SegmentKeys(*self._room(0, 0, 0))
        self._tokens = self._slots = self._count = self._dead = 0  # taken so far; dead ones are of tokens

    @property
    def nbytes(self) -> int:
        parts = self._segments
        return sum(part.nbytes for part in (parts.keys, parts.scales, parts.starts, parts.owner))

    def growth(self, new: SegmentKeys) -> int:
        """Bytes that adding these takes beyond what there is."""
        heads, dim = self._shape
        tokens, slots, segments = self._sizes_for(new)
        have = self._segments
        return (
            (tokens - len(have.keys)) * heads * dim
            + (slots - len(have.scales)) * heads * dim * 2
            + (segments - len(have.owner)) * 12
        )

    def add(self, ids: Sequence[str], new: SegmentKeys) -> None:
        """The memories `ids`, one for each of the scales in `new`, behind what there is."""
        if new.keys.shape[1:] != self._segments.keys.shape[1:]:
            raise ValueError(
                "routing records of one namespace differ in heads or channels; encode them again"
            )
        tokens, slots, segments = self._sizes_for(new)
        if (tokens, slots, segments) != (
            len(self._segments.keys), len(self._segments.scales), len(self._segments.owner),
        ):  # fmt: skip
            self._resize(tokens, slots, segments)
        kept = self._segments
        kept.keys[self._tokens : self._tokens + len(new.keys)] = new.keys
        kept.scales[self._slots : self._slots + len(new.scales)] = new.scales
        kept.starts[self._count + 1 : self._count + 1 + new.segments] = new.starts[1:] + self._tokens
        kept.owner[self._count : self._count + new.segments] = new.owner + self._slots
        counts = torch.bincount(new.owner.long(), minlength=len(ids)).tolist()
        starts, at = new.starts.tolist(), 0
        for slot, (memory_id, count) in enumerate(zip(ids, counts, strict=True)):
            first, last = starts[at], starts[at + count]
            self.places[memory_id] = _Place(
                self._slots + slot, self._count + at, count, self._tokens + first, last - first
            )
            at += count
        self._tokens += len(new.keys)
        self._slots += len(new.scales)
        self._count += new.segments

    def mass(self, ids: Sequence[str], rows: Sequence[Tensor], score_scale: float) -> Tensor:
        """As `ResidentKeys.span_mass`, of memories that are here."""
        most = max(len(each) for each in rows)
        queries = torch.zeros(len(rows), most, self._shape[1])
        for head, each in enumerate(rows):
            queries[head, : len(each)] = each
        kept = self._segments
        taken = SegmentKeys(
            kept.keys[: self._tokens],
            kept.scales[: self._slots],
            kept.starts[: self._count + 1],
            kept.owner[: self._count],
        )
        lse = route_mass(queries.to(self._device), taken, score_scale)  # [key_heads, rows, segments]
        places = [self.places[memory_id] for memory_id in ids]
        chosen = [place.first_segment + index for place in places for index in range(place.segments)]
        picked = lse.index_select(2, torch.tensor(chosen, device=self._device))
        return segment_mass(picked, [len(each) for each in rows]).cpu()

    def drop(self, ids: Sequence[str]) -> None:
        """Zero the keys and scales of those that are here."""
        for memory_id in ids:
            place = self.places.pop(memory_id, None)
            if place is not None:
                self._segments.keys[place.first_token : place.first_token + place.tokens].zero_()
                self._segments.scales[place.slot].zero_()
                self._dead += place.tokens
        if self._dead > max(_MOST_DEAD * self._tokens, _FIRST_TOKENS):
            self._close_up()

    def keep_only(self, ids: set[str]) -> None:
        """Zero all others and close up."""
        self.drop([memory_id for memory_id in self.places if memory_id not in ids])
        self._close_up()

    def zero_(self) -> None:
        self._segments.keys.zero_()
        self._segments.scales.zero_()

    def _close_up(self) -> None:
        """The same memories without holes, in new tensors; the old ones are overwritten."""
        old, places = self._segments, self.places
        starts = old.starts[: self._count + 1].tolist()
        order = list(places)
        tokens = sum(place.tokens for place in places.values())
        segments = sum(place.segments for place in places.values())
        self.places, self._tokens, self._slots, self._count, self._dead = {}, 0, 0, 0, 0
        self._segments = SegmentKeys(*self._room(tokens, len(order), segments))
        for memory_id in order:
            place = places[memory_id]
            span = starts[place.first_segment : place.first_segment + place.segments + 1]
            self.add(
                [memory_id],
                SegmentKeys(
                    old.keys[place.first_token : place.first_token + place.tokens],
                    old.scales[place.slot : place.slot + 1],
                    torch.tensor(span) - span[0],
                    torch.zeros(place.segments, dtype=torch.int32),
                ),
            )
        old.keys.zero_()
        old.scales.zero_()

    def _sizes_for(self, new: SegmentKeys) -> tuple[int, int, int]:
        """Tokens, memories and segments of tensors that hold these too; each doubles when it is full."""
        have = self._segments
        return (
            _grown(len(have.keys), self._tokens + len(new.keys), _FIRST_TOKENS),
            _grown(len(have.scales), self._slots + len(new.scales), 64),
            _grown(len(have.owner), self._count + new.segments, 64),
        )

    def _resize(self, tokens: int, slots: int, segments: int) -> None:
        old = self._segments
        self._segments = SegmentKeys(*self._room(tokens, slots, segments))
        for name in ("keys", "scales", "starts", "owner"):
            part = getattr(old, name)
            getattr(self._segments, name)[: len(part)] = part
        old.keys.zero_()
        old.scales.zero_()

    def _room(self, tokens: int, slots: int, segments: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        heads, dim = self._shape
        with torch.inference_mode(False):  # written to in and outside of it
            return (
                torch.zeros(tokens, heads, dim, dtype=torch.int8, device=self._device),
                torch.zeros(slots, heads, dim, dtype=torch.float16, device=self._device),
                torch.zeros(segments + 1, dtype=torch.int64, device=self._device),
                torch.zeros(segments, dtype=torch.int32, device=self._device),
            )


def _segments_of(records: Sequence[RouteKeys]) -> SegmentKeys:
    """The keys of records in eight bits, in their order, on the host."""
    sizes = [size for record in records for size in record.span_tokens]
    owner = [index for index, record in enumerate(records) for _ in record.span_tokens]
    scales = [record.scale for record in records if record.scale is not None]
    starts = torch.zeros(len(sizes) + 1, dtype=torch.int64)
    starts[1:] = torch.tensor(sizes).cumsum(0)
    return SegmentKeys(
        torch.cat([record.held for record in records]),
        torch.stack(scales).half(),  # as they came
        starts,
        torch.tensor(owner, dtype=torch.int32),
    )


def _grown(have: int, needed: int, first: int) -> int:
    return have if needed <= have else max(needed, min(2 * have, have + (1 << 24)), first)
