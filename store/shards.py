"""Shards: the vectors that a search goes through, by blocks of memories, as the rooms above gave them.

A shard is a cache of what lies in route frames. Little-endian:

    magic 'MNSH' | version u8 | cipher u8: 0 none, 1 AES-256-GCM | stride u16 | nonce 12 bytes (zeros in
    clear)
    then, encrypted under the shard's own random key with the header before the nonce and the shard's id as
    associated data: of each vector 16 bytes of memory id and `stride` bytes

It holds the memories of one block of ordinals, at most `SHARD_VECTORS` vectors. Its key and its name are a
row
of the namespace's database, so that both go in the transaction that takes a memory's words out of it: what is
left is written to a new file under a new key first, and the old file is overwritten after.
"""

import base64
import json
import os
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from sqlalchemy import Connection, bindparam, text

from mnemos.errors import BankUnreadableError
from mnemos.store.catalog import chunks
from mnemos.store.core import Core, Namespace
from mnemos.store.crypto import NONCE_BYTES, Box, InvalidTag, new_key
from mnemos.store.disk import check_room, fsync_dir, make_folder, write_all, zero_and_unlink
from mnemos.store.ids import ID_CHARS, id_to_bytes, new_id

SHARD_VECTORS = 8192
MEMORY_VECTORS = 4  # of one memory at most
BLOCK_MEMORIES = SHARD_VECTORS // MEMORY_VECTORS
_MANY = 256  # memories whose blocks are asked for: worth reading a whole block
_FEW = 64  # found in a block that was read whole: the others are looked for one by one
VERSION = 1
_MAGIC = b"MNSH"
_HEAD = struct.Struct("<4sBBH")
_ID_BYTES = 16
_PADDING = bytes(4)  # makes an id as long as whole groups of base32
_PADDED_CHARS = 32


@dataclass(frozen=True, slots=True)
class ShardRow:
    """Where a block's vectors are; `form` says how they were made."""

    block: int
    id: str
    form: str
    stride: int
    entries: int
    key: bytes | None


@dataclass(frozen=True, slots=True)
class Shard:
    """What a shard holds: of each vector the memory's id and `stride` bytes, memories in their order."""

    ids: tuple[str, ...]
    vectors: bytes


def rows(connection: Connection, blocks: Iterable[int] | None = None) -> list[ShardRow]:
    """Of those blocks, or of all."""
    every = "SELECT block, id, form, stride, entries, key FROM shard"
    if blocks is None:
        found = connection.execute(text(f"{every} ORDER BY block"))
    else:
        chosen = f"{every} WHERE block IN (SELECT value FROM json_each(:blocks)) ORDER BY block"
        found = connection.execute(text(chosen), {"blocks": json.dumps(sorted(set(blocks)))})
    return [ShardRow(*row) for row in found]


def read(core: Core, namespace: Namespace, row: ShardRow) -> Shard:
    """What a shard holds. BankUnreadableError when it is missing, damaged or of another version."""
    lying = body(core, namespace, row)
    step = _ID_BYTES + row.stride
    starts = range(0, len(lying), step)
    padded = b"".join(lying[at : at + _ID_BYTES] + _PADDING for at in starts)
    text = base64.b32encode(padded).decode("ascii").lower()  # all at once: one by one takes longest of all
    ids = tuple(text[at : at + ID_CHARS] for at in range(0, len(text), _PADDED_CHARS))
    return Shard(ids, b"".join(lying[at + _ID_BYTES : at + step] for at in starts))


def body(core: Core, namespace: Namespace, row: ShardRow) -> bytes:
    """Entries as they lie in a shard. BankUnreadableError when it is missing, damaged or of another form."""
    path = core.index_path(namespace.id) / f"{row.id}.shard"
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise _unreadable(row, "missing") from None
    if len(data) < _HEAD.size + NONCE_BYTES:
        raise _unreadable(row, "cut short")
    magic, version, cipher, stride = _HEAD.unpack_from(data)
    if magic != _MAGIC or version != VERSION or stride != row.stride or bool(cipher) != (row.key is not None):
        raise _unreadable(row, "of another form")
    head, body = data[: _HEAD.size], data[_HEAD.size :]
    if row.key is None:
        body = body[NONCE_BYTES:]
    else:
        try:
            body = Box(row.key).open(body, head + row.id.encode("ascii"))
        except InvalidTag:
            raise _unreadable(row, "damaged") from None
    if len(body) != row.entries * (_ID_BYTES + stride):
        raise _unreadable(row, "not as long as it should be")
    return body


def put(core: Core, namespace: Namespace, form: str, stride: int, vectors: Mapping[str, bytes]) -> int:
    """Adds memories' vectors, in place of those they had; how many memories. Those that are gone are left
    out.

    The caller holds the writer's lock. Shards of another form, and those that can't be read, are replaced.
    """
    for data in vectors.values():
        if not data or len(data) % stride or len(data) > MEMORY_VECTORS * stride:
            raise ValueError(f"a memory has 1 to {MEMORY_VECTORS} vectors of {stride} bytes")
    with namespace.database.read() as connection:
        placed = _blocks_of(connection, vectors)
    by_block: dict[int, dict[str, bytes]] = {}
    for memory_id, block in placed.items():
        by_block.setdefault(block, {})[memory_id] = vectors[memory_id]
    check_room(core.path, 2 * sum(len(data) + 64 for data in vectors.values()) + (1 << 16))
    with namespace.database.write() as connection:
        for old in rows(connection):
            if old.form != form:
                connection.execute(text("DELETE FROM shard WHERE block = :block"), {"block": old.block})
        kept = {row.block: row for row in rows(connection, by_block)}
        for block, fresh in by_block.items():
            held = _entries(core, namespace, kept[block]) if block in kept else {}
            alive = {memory_id for memory_id, _ in _of_block(connection, block)}
            held = {memory_id: data for memory_id, data in held.items() if memory_id in alive} | fresh
            packed = [
                id_to_bytes(memory_id) + data[at : at + stride]
                for memory_id, data in held.items()
                for at in range(0, len(data), stride)
            ]
            _replace(
                core, namespace, connection, ShardRow(block, "", form, stride, len(packed), None), packed
            )
        _sync_folder(core, namespace)
    sweep(core, namespace)
    return len(placed)


def blocks_of(namespace: Namespace, ids: Iterable[str]) -> list[int]:
    """The blocks that memories lie in."""
    with namespace.database.read() as connection:
        return sorted(set(_blocks_of(connection, ids).values()))


def take_out(core: Core, namespace: Namespace, connection: Connection, ids: Iterable[str]) -> None:
    """Writes anew, without these memories, every shard that may hold one. A part of the transaction that
    removes their rows, while these are still there. A shard that can't be read goes whole.
    """
    held = set(ids)
    doomed = {id_to_bytes(memory_id) for memory_id in held}
    for row in rows(connection, set(_blocks_of(connection, held).values())):
        left = []
        with suppress(BankUnreadableError):
            left = [each for each in _packed(core, namespace, row) if each[:_ID_BYTES] not in doomed]
        if left:
            _replace(core, namespace, connection, row, left)
        else:
            connection.execute(text("DELETE FROM shard WHERE block = :block"), {"block": row.block})
    _sync_folder(core, namespace)


def drop(namespace: Namespace, blocks: Iterable[int]) -> None:
    """Lets go of shards; `sweep` removes their files."""
    with namespace.database.write() as connection:
        for block in blocks:
            connection.execute(text("DELETE FROM shard WHERE block = :block"), {"block": block})


def strays(core: Core, namespace: Namespace) -> list[str]:
    """Names of files that no row knows of: of a write that was cut off, or overtaken by an erase."""
    names = core.index_names(namespace.id)
    if not names:
        return []
    with namespace.database.read() as connection:
        known = {f"{row[0]}.shard" for row in connection.execute(text("SELECT id FROM shard"))}
    return [name for name in names if name not in known]


def sweep(core: Core, namespace: Namespace) -> list[str]:
    """Overwrites and removes such files; their names. The caller holds the writer's lock."""
    found = strays(core, namespace)
    for name in found:
        zero_and_unlink(core.index_path(namespace.id) / name)
    if found:
        fsync_dir(core.index_path(namespace.id))
    return found


def is_clear_of(core: Core, namespace: Namespace, ids: Iterable[str], blocks: Iterable[int] | None) -> bool:
    """Whether no file of the index holds these memories; shards of those blocks, or of all, are read. False
    where one can't be.
    """
    gone = {id_to_bytes(memory_id) for memory_id in ids}
    with namespace.database.read() as connection:
        left = rows(connection, blocks)
    try:
        is_clear = not any(each[:_ID_BYTES] in gone for row in left for each in _packed(core, namespace, row))
    except BankUnreadableError:
        return False
    return is_clear and not strays(core, namespace)


def readable(core: Core, namespace: Namespace, form: str, stride: int) -> Iterator[Shard]:
    """The shards of a form that can be read, one at a time."""
    with namespace.database.read() as connection:
        found = [row for row in rows(connection) if (row.form, row.stride) == (form, stride)]
    for row in found:
        try:
            yield read(core, namespace, row)
        except BankUnreadableError:  # a cache: whoever asks makes it again from the frames
            continue


def _entries(core: Core, namespace: Namespace, row: ShardRow) -> dict[str, bytes]:
    """Vectors by memory; none where the shard can't be read."""
    try:
        shard = read(core, namespace, row)
    except BankUnreadableError:
        return {}
    held: dict[str, bytes] = {}
    for at, memory_id in enumerate(shard.ids):
        vector = shard.vectors[at * row.stride : (at + 1) * row.stride]
        held[memory_id] = held.get(memory_id, b"") + vector
    return held


def _packed(core: Core, namespace: Namespace, row: ShardRow) -> list[bytes]:
    """Entries, each an id and a vector."""
    lying, step = body(core, namespace, row), _ID_BYTES + row.stride
    return [lying[at : at + step] for at in range(0, len(lying), step)]


def _replace(
    core: Core, namespace: Namespace, connection: Connection, row: ShardRow, packed: Sequence[bytes]
) -> None:
    """A new file under a new key, synced, and the block's row for it; form and stride are those of `row`."""
    shard_id, key = new_id(), new_key() if core.encrypted else None
    head, body = _HEAD.pack(_MAGIC, VERSION, int(core.encrypted), row.stride), b"".join(packed)
    context = head + shard_id.encode("ascii")
    sealed = bytes(NONCE_BYTES) + body if key is None else Box(key).seal(body, context)
    folder = core.index_path(namespace.id)
    make_folder(folder)
    fd = os.open(folder / f"{shard_id}.shard", os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        write_all(fd, head + sealed, 0)
        os.fsync(fd)
    finally:
        os.close(fd)
    connection.execute(
        text(
            "INSERT OR REPLACE INTO shard (block, id, form, stride, entries, key) "
            "VALUES (:block, :id, :form, :stride, :entries, :key)"
        ),
        {
            "block": row.block,
            "id": shard_id,
            "form": row.form,
            "stride": row.stride,
            "entries": len(packed),
            "key": key,
        },
    )


def _sync_folder(core: Core, namespace: Namespace) -> None:
    folder = core.index_path(namespace.id)
    if folder.is_dir():
        fsync_dir(folder)


def _blocks_of(connection: Connection, ids: Iterable[str]) -> dict[str, int]:
    """The block of each memory that exists, in the order they were made."""
    left = set(ids)
    found: list[tuple[str, int]] = []
    # Many are mostly neighbours, whose rows lie beside each other; looking for each by its id touches a page
    # of the index and one of the rows.
    while len(left) >= _MANY:
        one = _placed(connection, [left.pop()])
        if not one:
            continue
        beside = [each for each in _of_block(connection, one[0][1] // BLOCK_MEMORIES) if each[0] in left]
        found += one + beside
        left.difference_update(each[0] for each in beside)
        if len(beside) < _FEW:
            break
    found += _placed(connection, left)
    return {
        memory_id: ordinal // BLOCK_MEMORIES for memory_id, ordinal in sorted(found, key=lambda one: one[1])
    }


def _placed(connection: Connection, ids: Iterable[str]) -> list[tuple[str, int]]:
    """Those of the memories that exist, each with its ordinal."""
    query = text("SELECT id, ordinal FROM memory WHERE id IN :ids AND erased = 0")
    query = query.bindparams(bindparam("ids", expanding=True))
    found: list[tuple[str, int]] = []
    for part in chunks(ids):
        found += [(row[0], row[1]) for row in connection.execute(query, {"ids": part})]
    return found


def _of_block(connection: Connection, block: int) -> list[tuple[str, int]]:
    """The memories of a block that exist, each with its ordinal."""
    query = text("SELECT id, ordinal FROM memory WHERE ordinal >= :low AND ordinal < :high AND erased = 0")
    bound = {"low": block * BLOCK_MEMORIES, "high": (block + 1) * BLOCK_MEMORIES}
    return [(row[0], row[1]) for row in connection.execute(query, bound)]


def _unreadable(row: ShardRow, what: str) -> BankUnreadableError:
    return BankUnreadableError(
        f"Shard {row.id} of the vector index is {what}; the next search makes it again, or run `mnemos bank "
        "verify --repair`."
    )
