"""What the bank does as a whole: counts, checks, repairs, keys, receipts, compaction."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mnemos.memory.convert import (
    audit_from_store,
    receipt_from_store,
)
from mnemos.memory.records import (
    AuditLine,
    BankStats,
    Memory,
    Receipt,
    Tier,
)
from mnemos.store.records import (
    CompactReport,
    RepairReport,
    VerifyReport,
)

if TYPE_CHECKING:
    from mnemos.memory.recall import Recaller
    from mnemos.store.keys import KeyProvider
    from mnemos.store.rekeying import Rekeyed
    from mnemos.store.store import Store


class CareBank:
    """A part of `MemoryBank`."""

    store: "Store"
    _recaller: "Recaller | None"

    def stats(self, namespace: str | None = None) -> BankStats:
        found = self.store.stats(namespace)
        recaller = self._recaller
        pager = None if recaller is None else recaller.pager
        device = None if recaller is None else recaller.device_pool
        source = None if recaller is None else recaller.kv_source
        return BankStats(
            memories=found.memories,
            hidden=found.hidden,
            pending=found.pending_traces,
            tokens=found.tokens,
            text_bytes=found.text_bytes,
            trace_bytes=found.trace_bytes,
            disk_bytes=found.disk_bytes,
            namespaces=found.namespaces,
            device_bytes=device.bytes if device else 0,
            device_budget_bytes=device.budget_bytes if device else 0,
            device_hits=device.hits if device else 0,
            device_misses=device.misses if device else 0,
            cache_bytes=pager.bytes if pager else 0,
            cache_hits=pager.hits if pager else 0,
            cache_misses=pager.misses if pager else 0,
            vivid=found.vivid,
            faint=found.faint,
            kv_bytes=found.kv_bytes,
            keys_bytes=recaller.routes.bytes if recaller else 0,
            disk_reads=source.disk.reads if source else 0,
            disk_read_bytes=source.disk.bytes if source else 0,
            disk_read_ms=round(source.disk.ms, 1) if source else 0.0,
            revived=source.revived.reads if source else 0,
            revived_bytes=source.revived.bytes if source else 0,
            revived_ms=round(source.revived.ms, 1) if source else 0.0,
            last_recalls=tuple(recaller.last_recalls) if recaller else (),
        )

    def tiers(self, memories: Sequence[Memory]) -> dict[str, Tier]:
        """Where the keys and values of each are read from next, by id: what the model of this process holds
        on the device or in host memory, else the disk. A memory without keys and values is left out.
        """
        found: dict[str, Tier] = {memory.id: "disk" for memory in memories if memory.fidelity == "vivid"}
        recaller = self._recaller
        if recaller is not None:
            for namespace in dict.fromkeys(memory.namespace for memory in memories):
                ids = [memory.id for memory in memories if memory.namespace == namespace]
                found |= recaller.pager.held(namespace, ids)
        return found

    def held_bytes(self) -> dict[Tier, int]:
        """Bytes of keys and values that the model of this process holds, of all namespaces, by tier."""
        return {} if self._recaller is None else self._recaller.pager.held_bytes()

    def verify(
        self,
        *,
        deep: bool = False,
        resume: bool = False,
        progress: Callable[[int, int], None] | None = None,
    ) -> VerifyReport:
        """Check catalog, frames, keys and indexes against each other; `deep` decrypts every frame as well.

        `resume` goes on where one of the same depth was cut off, unless something was erased since.
        """
        return self.store.verify(deep=deep, progress=progress, resume=resume)

    def repair(self, *, progress: Callable[[int, int], None] | None = None) -> RepairReport:
        """Rebuild what can be rebuilt from text, and put memories whose words are lost in quarantine.

        A trace that can't be read is dropped and made again by the model. The report says what was done.
        """
        report = self.store.repair(progress)
        if self._recaller is not None:
            self._recaller.refresh()
        return report

    def rekey(
        self, new_keys: "KeyProvider | None" = None, *, keep_old: str | os.PathLike[str] | None = None
    ) -> "Rekeyed":
        """Put the bank under a new master key and destroy the old one; no frame is written anew.

        Without `new_keys` the key file gets a new key, and a bank of another kind of key raises `UsageError`.
        Copies of the bank made before can't be opened any more, unless `keep_old` names a new file to keep
        the old key in. Another bank whose key is in the same file loses it, too.
        """
        return self.store.rekey(new_keys, keep_old=None if keep_old is None else Path(keep_old))

    def receipts(self) -> Sequence[Receipt]:
        """Of every erase, oldest first. Their namespaces go by id: a name may be gone."""
        return [receipt_from_store(body, body["namespace"]) for body in self.store.receipts()]

    @property
    def public_key(self) -> str:
        """The key that the bank's receipts verify with: Ed25519, in base64."""
        return self.store.public_key()

    def audit(self) -> Sequence[AuditLine]:
        """Who erased, rekeyed or repaired, and when; oldest first. Ids and counts, never words."""
        return [audit_from_store(line) for line in self.store.audit()]

    def compact(
        self,
        *,
        min_dead_share: float = 0.25,
        max_bytes: int | None = None,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> CompactReport:
        """Give space back: move what lives out of segments of which `min_dead_share` or more is dead, and
        remove those. It stops after moving about `max_bytes`, and can be interrupted at any time.

        Other processes may read and write meanwhile. `on_progress(done, total)` counts bytes.
        """
        return self.store.compact(on_progress=on_progress, min_dead_share=min_dead_share, max_bytes=max_bytes)
