"""What a verify looks at in the vector index."""

from collections.abc import Set
from pathlib import Path

from mnemos.errors import BankUnreadableError
from mnemos.store import shards
from mnemos.store.core import Core, Namespace
from mnemos.store.ids import is_id
from mnemos.store.verify_findings import Findings


def check_shards(
    core: Core,
    namespace: Namespace,
    memories: Set[str],
    erased: Set[str],
    found: Findings,
) -> None:
    """Vectors are of memories that are there, and every file of them is known."""
    with namespace.database.read() as connection:
        rows = shards.rows(connection)
    for row in rows:
        found.count("shards")
        try:
            held = set(shards.read(core, namespace, row).ids)
        except BankUnreadableError as error:
            found.add("corrupt-shard", row.id, str(error))
            continue
        for memory_id in sorted(held - memories):
            kind = "present-though-erased" if memory_id in erased else "stale-shard"
            found.add(kind, memory_id, f"shard {row.id} holds a vector of a memory that is gone")
    for name in shards.strays(core, namespace):
        found.add("orphan-file", f"index/{namespace.id}/{name}", "no row of the namespace owns it")


def stray_folders(core: Core, known: Set[str]) -> list[str]:
    """Names in the index folder that are no namespace's: files, and a former namespace's folder that still
    has some. Other folders are other programs'.
    """
    folder = core.path / "index"
    if not folder.is_dir():
        return []
    return sorted(
        path.name
        for path in folder.iterdir()
        if path.name not in known and (not path.is_dir() or _is_left(core, path))
    )


def _is_left(core: Core, folder: Path) -> bool:
    return is_id(folder.name) and bool(core.index_files(folder.name))
