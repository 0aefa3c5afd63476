"""What an erase looks at before it signs: the ids, the keys and the bytes it was to clear."""

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import bindparam, text

from mnemos.store import catalog
from mnemos.store.catalog import Placed
from mnemos.store.core import Core

_READ_BYTES = 4 << 20


def join_ranges(frames: Iterable[Placed]) -> list[list[int]]:
    """[segment, start, length] of adjoining frames made one."""
    joined: list[list[int]] = []
    for frame in sorted(frames, key=lambda frame: (frame.segment, frame.start)):
        last = joined[-1] if joined else None
        if last is not None and last[0] == frame.segment and last[1] + last[2] == frame.start:
            last[2] += frame.length
        else:
            joined.append([frame.segment, frame.start, frame.length])
    return joined


def ranges_of(body: dict[str, Any]) -> dict[int, list[tuple[int, int]]]:
    """(start, length) pairs by segment."""
    found: dict[int, list[tuple[int, int]]] = {}
    for segment, start, length in body.get("ranges", ()):
        found.setdefault(segment, []).append((start, length))
    return found


def digest_of(frames: Sequence[Placed]) -> str:
    """One SHA-256 over the digests of the frames' stored bytes, in the order they lie in."""
    total = hashlib.sha256()
    for frame in sorted(frames, key=lambda frame: (frame.segment, frame.start)):
        total.update(frame.digest)
    return total.hexdigest()


def digest_of_cleared(core: Core, ranges: dict[int, list[tuple[int, int]]]) -> str:
    """SHA-256 of what lies now where the frames lay: of as many zeros as the receipt counts bytes."""
    total = hashlib.sha256()
    for segment, parts in sorted(ranges.items()):
        for start, length in parts:
            for at in range(start, start + length, _READ_BYTES):
                total.update(core.segments.read(segment, at, min(_READ_BYTES, start + length - at)))
    return total.hexdigest()


def check_erased(
    core: Core,
    namespace_id: str,
    ids: Sequence[str],
    ranges: dict[int, list[tuple[int, int]]],
    *,
    is_whole: bool,
) -> dict[str, bool]:
    """Whether each thing that must be gone is gone."""
    with core.catalog.read() as connection:
        left = catalog.get_memories(connection, ids)
        frames = catalog.frames_of(connection, ids)
        pages = catalog.pages(connection, namespace_id)
    checks = {
        "no_catalog_rows": not left and not frames,
        "frames_zeroed": all(
            _is_zero(core, segment, start, length)
            for segment, parts in ranges.items()
            for start, length in parts
        ),
    }
    if is_whole:
        checks["no_database"] = not core.namespace_path(namespace_id).exists()
        checks["no_key_file"] = not core.key_path(namespace_id).exists()
        return checks
    namespace = core.by_id(namespace_id)
    if namespace is None:
        return {**checks, "namespace_found": False}
    if namespace.keys is not None:
        checks["no_old_key_pages"] = namespace.keys.clear(pages) == 0
    with namespace.database.read() as connection:
        for name, query in (
            ("no_words", "SELECT count(*) FROM memory WHERE id IN :ids"),
            ("no_provenance", "SELECT count(*) FROM use WHERE reply_id IN :ids OR memory_id IN :ids"),
        ):
            statement = text(query).bindparams(bindparam("ids", expanding=True))
            checks[name] = not any(
                connection.execute(statement, {"ids": part}).scalar_one() for part in catalog.chunks(ids)
            )
    return checks


def _is_zero(core: Core, segment: int, start: int, length: int) -> bool:
    for at in range(start, start + length, _READ_BYTES):
        size = min(_READ_BYTES, start + length - at)
        if core.segments.read(segment, at, size) != bytes(size):
            return False
    return True
