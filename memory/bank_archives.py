"""What the bank writes to archives, and takes from them."""

import os
from collections.abc import Callable, Sequence
from typing import IO, TYPE_CHECKING

from mnemos.memory.bank_sessions import DEFAULT_NAMESPACE

if TYPE_CHECKING:
    from mnemos.memory.archive_records import ExportReport, ImportReport
    from mnemos.memory.archiving import Chosen
    from mnemos.memory.importing import ImportFormat
    from mnemos.memory.recall import Recaller
    from mnemos.store.store import Store


class ArchiveBank:
    """A part of `MemoryBank`."""

    store: "Store"
    _recaller: "Recaller | None"

    def export(
        self,
        target: "str | os.PathLike[str] | IO[bytes]",
        *,
        namespaces: Sequence[str] | None = None,
        chosen: "Chosen | None" = None,
        traces: bool = False,
        passphrase: str | None = None,
        overwrite: bool = False,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> "ExportReport":
        """Write memories to an archive: to a file, whole or not at all, or into an open binary stream.

        Of all namespaces unless some are named. Without a passphrase the words in it are readable; either
        way it is outside the bank's reach when something is forgotten. Raises `NotFoundError` when nothing is
        chosen, `StalePlanError` when something was erased while it ran: then what a stream got is worthless.
        """
        from mnemos.memory.archiving import Chosen, export

        return export(
            self.store,
            target,
            namespaces,
            chosen or Chosen(),
            traces=traces,
            passphrase=passphrase,
            overwrite=overwrite,
            on_progress=on_progress,
        )

    def import_(
        self,
        source: "str | os.PathLike[str] | IO[bytes]",
        *,
        format: "ImportFormat" = "auto",
        into: str | None = None,
        default_namespace: str = DEFAULT_NAMESPACE,
        passphrase: str | Callable[[], str] | None = None,
        restore_erased: bool = False,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> "ImportReport":
        """Merge an archive, or the conversations that ChatGPT, Claude or a chat log exported.

        Repeating it adds nothing. An archive's namespaces keep their names unless `into` is given;
        conversations go to `into`, or to `default_namespace`. What was forgotten here stays so unless
        `restore_erased`. Raises `ArchiveError`, which says how much is in by then.
        """
        from mnemos.memory.importing import import_any

        return import_any(
            self.store,
            source,
            format=format,
            into=into,
            default_namespace=default_namespace,
            passphrase=passphrase,
            restore_erased=restore_erased,
            on_progress=on_progress,
        )
