"""Token keys of many memories kept on a device, so that routing reads them at the speed of its memory.

Each namespace has one stretch of keys that grows; one launch scores all of its segments, and a query takes
those it asked for. What is dropped is zeroed at once and its room closed up when half of a stretch is such
holes.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from threading import Lock

import torch
from torch import Tensor

from mnemos.attention.kernels.dispatch import route_mass
from mnemos.attention.kernels.segments import SegmentKeys, segment_mass, segments_of_payloads

DEFAULT_BUDGET_BYTES = 2 << 30
_FIRST_TOKENS = 4096  # of a new stretch
_MOST_DEAD = 0.5  # of a stretch's tokens, before it is closed up

Read = Callable[[str, Sequence[str]], Mapping[str, bytes]]


@dataclass(frozen=True, slots=True)
class _Place:
    """Where one memory lies in its stretch."""

    slot: int  # of its scales
    first_segment: int
    segments: int
    first_token: int
    tokens: int


class ResidentKeys:
    """Keys of routing payloads by namespace and memory id, within a budget of bytes."""

    def __init__(
        self, read: Read, device: torch.device | str, *, budget_bytes: int = DEFAULT_BUDGET_BYTES
    ) -> None:
        """`read(namespace, ids)` gives the payloads of those that are there."""
        self._read = read
        self._device = torch.device(device)
        self._budget = budget_bytes
        self._stretches: OrderedDict[str, _Stretch] = OrderedDict()  # least recently used first
        self._lock = Lock()
        self._drops = 0  # so far: what was read before one may be what it was about

    @property
    def nbytes(self) -> int:
        """Of what is kept, holes included."""
        with self._lock:
            return self._bytes()

    def span_mass(
        self, namespace: str, ids: Sequence[str], rows: Sequence[Tensor], score_scale: float
    ) -> Tensor | None:
        """Softmax mass on each span of those memories, `[spans]` on the host, summing to 1.

        `rows` are the queries behind each key head, `[queries, head_dim]`. None where a memory has no payload
        or the budget has no room for all of them at once: the caller scores them elsewhere.
        """
        if not ids:
            return torch.empty(0)
        for _ in range(2):
            with self._lock:
                drops = self._drops
                missing = [each for each in ids if not self._has(namespace, each)]
            fresh = self._read(namespace, missing) if missing else {}
            with self._lock:
                if drops != self._drops:
                    continue
                if len(fresh) < len(missing) or not self._keep(namespace, missing, fresh, set(ids)):
                    return None
                return self._stretches[namespace].mass(ids, rows, score_scale)
        return None

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

    def _has(self, namespace: str, memory_id: str) -> bool:
        stretch = self._stretches.get(namespace)
        return stretch is not None and memory_id in stretch.places

    def _bytes(self) -> int:
        return sum(stretch.nbytes for stretch in self._stretches.values())

    def _keep(
        self, namespace: str, missing: Sequence[str], payloads: Mapping[str, bytes], wanted: set[str]
    ) -> bool:
        """Whether all that is wanted is there now. Others leave for it: first other namespaces, then what of
        this one was not asked for.
        """
        stretch = self._stretches.get(namespace)
        if missing:
            new = segments_of_payloads([payloads[each] for each in missing])
            if stretch is None:
                stretch = self._stretches[namespace] = _Stretch(new, self._device)
            while self._bytes() + stretch.growth(new) > self._budget and len(self._stretches) > 1:
                oldest = next(name for name in self._stretches if name != namespace)
                self._stretches.pop(oldest).zero_()
            if self._bytes() + stretch.growth(new) > self._budget:
                stretch.keep_only(wanted)
            if self._bytes() + stretch.growth(new) > self._budget:
                return False
            stretch.add(missing, new)
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


def _grown(have: int, needed: int, first: int) -> int:
    return have if needed <= have else max(needed, min(2 * have, have + (1 << 24)), first)
