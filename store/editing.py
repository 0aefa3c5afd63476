"""Putting new words in the place of a memory's old ones, as part of an erase.

The new words are durable in a frame of their own, under a new id and a new key, in the same transaction that
records the intent to erase the old ones: before it there is the old memory alone, and whatever happens after
it ends with the new one alone. The catalog holds ids only.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from sqlalchemy import Connection, text

from mnemos.errors import InvalidTextError, UsageError
from mnemos.store import catalog, reading
from mnemos.store.core import Core, Namespace
from mnemos.store.disk import check_room
from mnemos.store.ids import new_id
from mnemos.store.keypages import PageRow, Slot
from mnemos.store.payload import pack_text, unpack_text
from mnemos.store.records import MemoryDraft
from mnemos.store.words import Row
from mnemos.store.writing import Group, allocate_keys, catalog_row, check_draft, frame_group


@dataclass(frozen=True)
class Edit:
    """New words that are on the disk, and not yet in the catalog."""

    namespace: Namespace
    old: Row
    new: Row
    slot: Slot | None
    pages: list[PageRow]
    group: Group

    def record(self, connection: Connection) -> None:
        """Puts the new memory into the catalog. With the intent in the same transaction, it will replace."""
        catalog.add_memories(connection, [catalog_row(self.namespace, self.new, self.slot)])
        catalog.set_pages(connection, self.namespace.id, self.pages)
        self.group.record(connection)


@contextmanager
def written(core: Core, namespace: Namespace, old: Row, words: str) -> Iterator[Edit]:
    """The old memory with other words, durable; taken back when the block raises before it is recorded.

    A reply goes, since it was made with the old words. Raises InvalidTextError, UsageError, BankFullError.
    """
    check_draft(MemoryDraft(words))
    if old.text == words:
        raise InvalidTextError("The memory says exactly that already, so nothing was changed.")
    if old.status == "open":
        raise UsageError("The memory still waits for its reply. Edit it when the turn is over.")
    check_room(core.path, 2 * len(words.encode()) + 4096)
    new = replace(
        old,
        id=new_id(),
        text=words,
        reply=None,
        status="complete",
        content_tag=None,
        text_bytes=len(words.encode()),
    )
    (slot,), pages = allocate_keys(core, namespace, 1)
    with frame_group(core) as group:
        group.add("text", new.id, pack_text(new, ()), None if slot is None else slot.key)
        group.start_sync(namespace)
        yield Edit(namespace, old, new, slot, pages, group)


def put_words(
    core: Core, namespace: Namespace, connection: Connection, edited: Iterable[tuple[str, str]]
) -> None:
    """Gives the rows of old ids the words and ids of the new ones, with their lexical index; at once with
    whatever else the transaction does. Where that is done already, nothing.
    """
    for old, new in edited:
        query = text("SELECT 1 FROM memory WHERE id = :old")
        if connection.execute(query, {"old": old}).scalar_one_or_none() is None:
            continue
        payload = reading.read_frame(core, namespace, new, "text")
        row, _ = unpack_text(payload, new)
        connection.execute(
            text(
                "UPDATE memory SET id = :new, text = :text, reply = NULL, status = :status, "
                "content_tag = NULL, text_bytes = :bytes WHERE id = :old"
            ),
            {"old": old, "new": new, "text": row.text, "status": row.status, "bytes": row.text_bytes},
        )
