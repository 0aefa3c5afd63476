"""What the store does for the bank as a whole: archives, keys, checks, repair, space, the audit log."""

import builtins
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mnemos.store import compacting, erasing, receipts, rekeying, repairing, verifying
from mnemos.store.archive_records import Exported
from mnemos.store.core import Core
from mnemos.store.keys import KeyProvider
from mnemos.store.records import CompactReport, RepairReport, StoreStats, VerifyReport
from mnemos.store.recovery import clear_dead_frames
from mnemos.store.words import Filter

if TYPE_CHECKING:
    from mnemos.store.archive_merge import Merger


class CareStore:
    """A part of `Store`, which has the bank open."""

    _core: Core

    def audit(self) -> builtins.list[dict[str, Any]]:
        """The hash-chained log of erases, oldest first."""
        with self._core.reading(), self._core.catalog.read() as connection:
            return receipts.audit_lines(connection)

    def export(
        self,
        out: Any,
        names: Sequence[str],
        chosen: Filter,
        *,
        traces: bool = False,
        is_filtered: bool = False,
        model: tuple[str | None, str | None] = (None, None),
        on_progress: Callable[[int, int], None] | None = None,
    ) -> Exported:
        """Writes an archive of those memories to `out`; `model` is name and fingerprint of the traces' model.

        NotFoundError before anything is written when nothing is chosen. When it raises StalePlanError,
        something was erased meanwhile and `out` is not to be used.
        """
        from mnemos.store import archive_export

        with self._core.reading():
            total = archive_export.find_any(self._core, names, chosen)
            if not self._core.read_only:
                archive_export.note_export(self._core, names)
            exporter = archive_export.Exporter(
                self._core,
                out,
                chosen,
                traces=traces,
                is_filtered=is_filtered,
                model=model[0],
                fingerprint=model[1],
                on_progress=on_progress,
            )
            return exporter.run(names, total)

    def merger(self, *, restore_erased: bool = False) -> "Merger":
        """Merges the groups of an archive into the bank."""
        from mnemos.store.archive_merge import Merger

        return Merger(self._core, restore_erased=restore_erased)

    def rekey(
        self,
        new_keys: KeyProvider | None = None,
        *,
        keep_old: Path | None = None,
        on_step: Callable[[str], None] | None = None,
    ) -> rekeying.Rekeyed:
        """Puts the bank under a new master key and destroys the old one; no frame is written anew.

        Without `new_keys` the key file gets a new key. `keep_old` names a new file that the old key is kept
        in; copies of the bank made before can be read with it, and with nothing else. Namespace keys stay as
        they are. UsageError, BankKeyError, BankLockedError.
        """
        return rekeying.rekey(self._core, new_keys, keep_old, on_step)

    def public_key(self) -> str:
        """The Ed25519 key that the bank's receipts verify with, in base64."""
        with self._core.reading():
            return erasing.public_key_of(self._core)

    def verify(
        self,
        deep: bool = False,
        progress: Callable[[int, int], None] | None = None,
        *,
        resume: bool = False,
    ) -> VerifyReport:
        """Holds everything in the bank against everything else; `deep` decrypts every frame.

        `resume` goes on where a verify of the same depth was cut off, if one was.
        """
        with self._core.reading():
            return verifying.verify(self._core, deep, progress, resume=resume)

    def repair(self, progress: Callable[[int, int], None] | None = None) -> RepairReport:
        """Rebuilds what can be rebuilt from text, and puts memories whose words are lost in quarantine.

        BankReadOnlyError, BankLockedError.
        """
        return repairing.repair(self._core, progress)

    def stats(self, namespace: str | None = None) -> StoreStats:
        from mnemos.store.statistics import stats

        with self._core.reading():
            return stats(self._core, namespace)

    def compact(
        self,
        *,
        on_progress: Callable[[int, int], None] | None = None,
        min_dead_share: float = compacting.MIN_DEAD_SHARE,
        max_bytes: int | None = None,
    ) -> CompactReport:
        """Moves live frames out of segments that are mostly dead, and removes those. Readers may go on, and
        writers between its groups. `on_progress` is told bytes moved and bytes to move.

        ErasePendingError while an erase waits for a reader, BankFullError, BankLockedError,
        BankReadOnlyError.
        """
        return compacting.compact(
            self._core, on_progress=on_progress, min_dead_share=min_dead_share, max_bytes=max_bytes
        )

    def reclaim(self) -> int:
        """Clears superseded frames; the bytes given back."""
        with self._core.writing():
            return clear_dead_frames(self._core)
