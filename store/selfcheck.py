"""What an erase looks at before it signs: the ids, the keys and the bytes it was to clear."""

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import bindparam, text

from mnemos.store import catalog, shards
from mnemos.store.core import Core

_READ_BYTES = 4 << 20
_ZEROS = bytes(_READ_BYTES)
Place = tuple[int, int, int, bytes]  # segment, start, length, digest


def take_stock(places: Iterable[Place]) -> dict[str, Any]:
    """Of frames in the order they lie in: `ranges` ([segment, start, length], adjoining ones made one),
    `frames`, `bytes`, and `digest`, a SHA-256 over the frames' digests.
    """
    ranges: list[list[int]] = []
    frames = 0
    digest = hashlib.sha256()
    for segment, start, length, frame_digest in places:
        last = ranges[-1] if ranges else None
        if last is not None and last[0] == segment and last[1] + last[2] == start:
            last[2] += length
        else:
            ranges.append([segment, start, length])
        frames += 1
        digest.update(frame_digest)
    total = sum(length for _, _, length in ranges)
    return {"ranges": ranges, "frames": frames, "bytes": total, "digest": digest.hexdigest()}


def ranges_of(body: dict[str, Any]) -> dict[int, list[tuple[int, int]]]:
    """(start, length) pairs by segment."""
    found: dict[int, list[tuple[int, int]]] = {}
    for segment, start, length in body.get("ranges", ()):
        found.setdefault(segment, []).append((start, length))
    return found


def digest_of_cleared(core: Core, ranges: dict[int, list[tuple[int, int]]]) -> tuple[str, bool]:
    """SHA-256 of what lies now where the frames lay, and whether that is zeros and nothing else."""
    total = hashlib.sha256()
    is_zero = True
    for segment, parts in sorted(ranges.items()):
        for start, length in parts:
            for at in range(start, start + length, _READ_BYTES):
                size = min(_READ_BYTES, start + length - at)
                data = core.segments.read(segment, at, size)
                is_zero = is_zero and data == (_ZEROS if size == _READ_BYTES else bytes(size))
                total.update(data)
    return total.hexdigest(), is_zero


def check_erased(
    core: Core,
    namespace_id: str,
    ids: Sequence[str],
    ranges: dict[int, list[tuple[int, int]]],
    *,
    is_whole: bool,
    blocks: Sequence[int] | None = None,
) -> tuple[dict[str, bool], str]:
    """Whether each thing that must be gone is gone, and the digest of what lies in its place now.

    `blocks` are those whose vectors were written anew, where that is known.
    """
    cleared, is_zero = digest_of_cleared(core, ranges)
    with core.catalog.read() as connection:
        left = catalog.get_memories(connection, ids)
        frames = catalog.frames_of(connection, ids)
        pages = catalog.pages(connection, namespace_id)
    checks = {
        "no_catalog_rows": not left and not frames,
        "frames_zeroed": is_zero,
    }
    if is_whole:
        checks["no_database"] = not core.namespace_path(namespace_id).exists()
        checks["no_key_file"] = not core.key_path(namespace_id).exists()
        checks["no_vectors"] = not core.index_files(namespace_id)
        return checks, cleared
    namespace = core.by_id(namespace_id)
    if namespace is None:
        return {**checks, "namespace_found": False}, cleared
    if namespace.keys is not None:
        checks["no_old_key_pages"] = namespace.keys.clear(pages) == 0
    checks["no_vectors"] = shards.is_clear_of(core, namespace, ids, blocks)
    with namespace.database.read() as connection:
        for name, query in (
            ("no_words", "SELECT count(*) FROM memory WHERE id IN :ids"),
            ("no_provenance", "SELECT count(*) FROM use WHERE reply_id IN :ids OR memory_id IN :ids"),
        ):
            statement = text(query).bindparams(bindparam("ids", expanding=True))
            checks[name] = not any(
                connection.execute(statement, {"ids": part}).scalar_one() for part in catalog.chunks(ids)
            )
    return checks, cleared
