"""Counts and bytes of a bank or of one namespace."""

from mnemos.errors import NotFoundError
from mnemos.store import catalog, fading, words
from mnemos.store.core import Core
from mnemos.store.records import StoreStats


def stats(core: Core, name: str | None) -> StoreStats:
    """`disk_bytes` is what the files take up; for one namespace, what its frames do."""
    namespaces = (
        list(core.live()) if name is None else [found for found in [core.find(name)] if found is not None]
    )
    if name is not None and not namespaces:
        raise NotFoundError(f"The bank has no namespace {name!r}.")
    namespace_id = None if name is None else namespaces[0].id
    with core.catalog.read() as connection:
        memories, tokens, trace_bytes = catalog.sums(connection, namespace_id)
        untraced = catalog.untraced(connection, namespace_id)
        frame_bytes = catalog.frame_bytes(connection, namespace_id)
        vivid, faint, kv_bytes = fading.counts(connection, namespace_id)
    hidden = text_bytes = 0
    for namespace in namespaces:
        with namespace.database.read() as connection:
            sums = words.sums(connection)
        hidden, text_bytes = hidden + sums[1], text_bytes + sums[2]
    return StoreStats(
        memories=memories,
        hidden=hidden,
        pending_traces=untraced,
        tokens=tokens,
        text_bytes=text_bytes,
        trace_bytes=trace_bytes,
        disk_bytes=frame_bytes if name is not None else _disk_bytes(core),
        namespaces=len(namespaces),
        vivid=vivid,
        faint=faint,
        kv_bytes=kv_bytes,
    )


def _disk_bytes(core: Core) -> int:
    """Bytes allocated, so holes count for nothing."""
    return sum(path.stat().st_blocks * 512 for path in core.path.rglob("*") if path.is_file())
