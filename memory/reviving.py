"""Reading KV for the pager: from the bank's files where a memory is vivid, made anew where it has faded."""

import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from threading import Lock
from typing import TypeVar

import torch

from mnemos.errors import BankFullError, BankLockedError, BankReadOnlyError, NotFoundError
from mnemos.memory.convert import to_memory
from mnemos.memory.encoder import MemoryEncoder
from mnemos.store.records import TraceDraft
from mnemos.store.store import Store

Made = TypeVar("Made")
_SPARED = 64  # memories revived last: their use is provenance only once the reply is kept


@dataclass(slots=True)
class Tally:
    """What one tier gave since the bank was opened here."""

    reads: int = 0
    bytes: int = 0
    ms: float = 0.0

    def add(self, size: int, ms: float = 0.0) -> None:
        self.reads += 1
        self.bytes += size
        self.ms += ms


class KVSource:
    """The KV payload of a memory, and what getting it cost.

    A faint memory is encoded again from its words, and vivid again from then on; where it can't be written
    (another process writes, the bank is read-only, the disk is full, or the KV is larger than the whole
    budget) it is used and not kept.
    """

    def __init__(self, store: Store, encoder: MemoryEncoder) -> None:
        self._store = store
        self._encoder = encoder
        self._lock = Lock()
        self._revived: deque[str] = deque(maxlen=_SPARED)
        self.disk = Tally()
        self.revived = Tally()

    def read(self, namespace: str, memory_id: str) -> bytes:
        """NotFoundError when it is gone or was never encoded, BankUnreadableError when it is damaged."""
        started = time.perf_counter()
        with suppress(NotFoundError):
            payload = self._store.get_kv(namespace, memory_id)
            with self._lock:
                self.disk.add(len(payload), (time.perf_counter() - started) * 1e3)
            return payload
        record = self._store.get(namespace, memory_id)
        if record.trace_fingerprint != self._encoder.fingerprint:
            raise NotFoundError(f"Memory {memory_id} has no trace of this model; encode what is pending.")
        (draft,) = self._encoder.encode([to_memory(record)])
        self._keep(namespace, draft)
        with self._lock:
            self.revived.add(len(draft.kv), (time.perf_counter() - started) * 1e3)
        return draft.kv

    def read_many(
        self, namespace: str, ids: Sequence[str], decode: Callable[[bytes | bytearray], Made]
    ) -> dict[str, Made]:
        """What `decode` makes of those that are vivid, from the bank's files in the order they lie there."""
        started = time.perf_counter()

        def made(payload: bytes | bytearray) -> Made:
            with self._lock:
                self.disk.add(len(payload))
            return decode(payload)

        found = self._store.made_of_kvs(namespace, ids, made, torch.get_num_threads())
        with self._lock:
            self.disk.ms += (time.perf_counter() - started) * 1e3
        return found

    def _keep(self, namespace: str, draft: TraceDraft) -> None:
        """NotFoundError when the memory was erased meanwhile."""
        if self._store.read_only:
            return
        budget = self._store.kv_budget(namespace)
        if budget is not None and len(draft.kv) > budget:
            return
        with self._lock:
            self._revived.append(draft.memory_id)
            spare = frozenset(self._revived)
        with suppress(BankLockedError, BankFullError, BankReadOnlyError):
            self._store.put_traces(namespace, [draft])
            if budget is not None:
                # Those revived last may be all that is vivid; then the budget goes first.
                self._store.fade(namespace, spare=spare)
                self._store.fade(namespace, spare={draft.memory_id})
