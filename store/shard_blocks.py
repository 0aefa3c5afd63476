"""Shards one at a time, as they lie: for an index that mirrors them and never holds more than it has read."""

from mnemos.errors import BankUnreadableError
from mnemos.store import shards
from mnemos.store.core import Core, Namespace


def listed(namespace: Namespace, form: str, stride: int) -> dict[int, str]:
    """The shard's id of each block. Another id means other contents: a shard is never changed in place."""
    with namespace.database.read() as connection:
        found = shards.rows(connection)
    return {row.block: row.id for row in found if (row.form, row.stride) == (form, stride)}


def entries(core: Core, namespace: Namespace, block: int, shard_id: str) -> bytes | None:
    """Of each vector 16 bytes of id and its bytes; None where that shard is gone or can't be read."""
    with namespace.database.read() as connection:
        found = [row for row in shards.rows(connection, [block]) if row.id == shard_id]
    try:
        return shards.body(core, namespace, found[0]) if found else None
    except BankUnreadableError:  # a cache: whoever asks makes it again from the frames
        return None
