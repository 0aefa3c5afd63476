"""Taking rows out of a namespace database and their words out of its FTS5 index, so that no page keeps one.

Few rows: FTS5's secure-delete edits each word's page in place. That costs the same for every row, so for many
rows the index is written anew instead: they are marked as deleted and the index is merged into one segment,
which drops marks and words alike. (SQLite's own secure-delete zeroes the pages given up either way.)
"""

from collections.abc import Iterable

from sqlalchemy import Connection, bindparam, text

from mnemos.store.catalog import chunks

_MANY_ROWS = 200  # from here on a merge is considered,
_ROWS_PER_MERGED = 200  # as a row deleted in place costs as much as merging this many rows, at least
_STRUCTURE = 10  # rowid in `words_data` of the list of segments
_WIDE = b"\xff\x00\x00\x01"  # after the cookie, where segments carry seven numbers and not three


def remove_rows(connection: Connection, ids: Iterable[str]) -> None:
    """Deletes rows with their words. The caller's transaction holds all of it or nothing."""
    query = text("SELECT ordinal FROM memory WHERE id IN :ids")
    query = query.bindparams(bindparam("ids", expanding=True))
    ordinals: list[int] = []
    for part in chunks(ids):
        ordinals += connection.execute(query, {"ids": part}).scalars()
    if not ordinals:
        return
    if len(ordinals) >= _MANY_ROWS and len(ordinals) * _ROWS_PER_MERGED >= _count(connection):
        _set_option(connection, "secure-delete", 0)
        _delete(connection, ordinals)
        _merge(connection)
        _set_option(connection, "secure-delete", 1)
    else:
        _delete(connection, ordinals)


def _count(connection: Connection) -> int:
    return int(connection.execute(text("SELECT count(*) FROM memory")).scalar_one())


def _delete(connection: Connection, ordinals: list[int]) -> None:
    # In order, since FTS5 writes its index out at each step back. A trigger takes the words out.
    connection.execute(
        text("DELETE FROM memory WHERE ordinal = :ordinal"),
        [{"ordinal": ordinal} for ordinal in sorted(ordinals)],
    )


def _merge(connection: Connection) -> None:
    """One segment without a deleted word in it."""
    connection.execute(text("INSERT INTO words (words) VALUES ('optimize')"))
    structure = text("SELECT block FROM words_data WHERE id = :id")
    if not is_merged(connection.execute(structure, {"id": _STRUCTURE}).scalar_one()):
        connection.execute(text("INSERT INTO words (words) VALUES ('rebuild')"))


def is_merged(structure: bytes) -> bool:
    """Whether an index is empty, or one segment on its last level: only there a merge drops deletion marks.

    The format is that of `fts5_index.c`: cookie (u32), then varints: levels, segments, writes, and for each
    level those being merged, segments, and three numbers a segment (seven, in the wide form).
    """
    is_wide = structure[4:8] == _WIDE
    numbers = varints(structure[8 if is_wide else 4 :])
    levels, segments = numbers[0], numbers[1]
    if segments == 0:
        return True
    at = 3
    held = 0
    for _ in range(levels):
        held = numbers[at + 1]  # of the last level, in the end
        at += 2 + held * (7 if is_wide else 3)
    return segments == 1 and held == 1


def varints(data: bytes) -> list[int]:
    """SQLite's variable-length integers, all the numbers of the structure being below 2^56."""
    found: list[int] = []
    value = 0
    for byte in data:
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            found.append(value)
            value = 0
    return found


def _set_option(connection: Connection, name: str, value: int) -> None:
    connection.execute(
        text("INSERT INTO words (words, rank) VALUES (:name, :value)"), {"name": name, "value": value}
    )
