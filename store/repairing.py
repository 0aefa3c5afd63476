"""Mending a damaged bank: what can be rebuilt from text is rebuilt, the rest is put in quarantine.

A memory's words lie twice, in its text frame and in the namespace's database, and each is rebuilt from the
other. Where both are lost the memory stays in the bank as a damaged one: hidden, without words, listed by
every verify, until it is forgotten or a later repair finds its frame readable again. Nothing is dropped
silently.
"""

import os

from sqlalchemy.exc import SQLAlchemyError

from mnemos.errors import BankError, BankKeyError
from mnemos.store import catalog
from mnemos.store.core import Core, Namespace
from mnemos.store.disk import fsync_dir
from mnemos.store.frames import FrameError, decode_frame
from mnemos.store.mending import Mended, mend_namespace
from mnemos.store.rebuilding import is_sound, rebuild_database
from mnemos.store.receipts import note
from mnemos.store.records import RepairReport
from mnemos.store.recovery import adopt_rebuilt, clear_dead_frames, reclaim_files, recover
from mnemos.store.segments import SEGMENT_HEADER_BYTES
from mnemos.store.verify_findings import OnProgress
from mnemos.store.verifying import first_stray_byte, verify
from mnemos.store.writing import bank_key


def repair(core: Core, progress: OnProgress | None) -> RepairReport:
    """Mends the bank, then verifies it to the last frame."""
    mended = Mended()
    with core.writing():
        adopt_rebuilt(core)
        _segments(core, mended)
        with core.catalog.read() as connection:
            rows = catalog.live_namespaces(connection)
        for row in rows:
            namespace = _opened(core, row, mended)
            if namespace is not None:
                mend_namespace(core, namespace, mended)
        _prefixes(core, mended)
        clear_dead_frames(core)
        _orphan_frames(core, mended)
        _orphan_files(core, mended)
        if mended.repaired or mended.quarantined:
            with core.catalog.write() as connection:
                note(connection, "repair", core.bank_id, len(mended.repaired))
                note(connection, "quarantine", core.bank_id, len(mended.quarantined))
        recover(core)
        core.catalog.truncate_wal()
    after = verify(core, True, progress)
    return RepairReport(tuple(mended.repaired), tuple(mended.quarantined), after)


def _opened(core: Core, row: catalog.NamespaceRow, mended: Mended) -> Namespace | None:
    """The namespace with a database that can be used, made anew where need be. None without its key."""
    try:
        namespace = core.by_id(row.id)
        if namespace is not None and is_sound(namespace):
            return namespace
    except BankKeyError:
        return None  # not ours to mend; the verify that follows says so
    except (BankError, SQLAlchemyError):
        pass
    salvaged, lost = rebuild_database(core, row)
    detail = (
        f"its database was made anew: {salvaged:,} memories kept from the old one, {lost:,} not found in it"
    )
    mended.fixed("corrupt-database", row.id, detail)
    return core.by_id(row.id)


def _segments(core: Core, mended: Mended) -> None:
    """Files that are missing or cut short get zeros for what is lost, and take no new frames."""
    with core.catalog.read() as connection:
        ends = catalog.segment_ends(connection)
    damaged = False
    for number, end in ends.items():
        path = core.segments.name(number)
        size = core.segments.size(number)
        if size < end:
            core.segments.forget_file(number)
            if size < SEGMENT_HEADER_BYTES:
                core.segments.create(number)
            os.truncate(path, end)
            core.segments.sync(number)
            damaged = True
            mended.fixed(
                "short-segment" if size else "missing-segment", path.name, "zeros stand for what is lost"
            )
        if core.segments.read(number, 0, SEGMENT_HEADER_BYTES) != core.segments.header(number):
            core.segments.write(number, 0, core.segments.header(number))
            core.segments.sync(number)
            mended.fixed("corrupt-segment", path.name, "its header was written anew")
    if damaged:
        fresh = max(ends) + 1
        core.segments.create(fresh)
        with core.catalog.write() as connection:
            catalog.set_segment_ends(connection, {fresh: SEGMENT_HEADER_BYTES})


def _prefixes(core: Core, mended: Mended) -> None:
    """A model's prefix that can't be read is dropped: the model makes it again."""
    with core.catalog.read() as connection:
        key = bank_key(core, connection)
        places = catalog.frames_of(connection, [core.bank_id], "prefix")
    bad = []
    for place in places:
        try:
            data = core.segments.read(place.segment, place.start, place.length)
            decode_frame(data, "prefix", core.bank_id, key)
        except (FrameError, BankError) as error:
            bad.append(place.row)
            mended.fixed("corrupt-frame", core.bank_id, f"a model's prefix was dropped ({error})")
    if bad:
        with core.catalog.write() as connection:
            catalog.retire_rows(connection, bad)


def _orphan_frames(core: Core, mended: Mended) -> None:
    """Frames of no memory, and bytes between frames, become zeros."""
    with core.catalog.read() as connection:
        ends = catalog.segment_ends(connection)
    for number, end in ends.items():
        with core.catalog.read() as connection:
            frames = catalog.segment_frames(connection, number)
            owners = set(catalog.get_memories(connection, [frame.owner for frame in frames]))
        strays = [frame for frame in frames if frame.owner not in owners and frame.owner != core.bank_id]
        if strays:
            core.segments.zero(number, [(frame.start, frame.length) for frame in strays])
            with core.catalog.write() as connection:
                catalog.remove_frames(connection, [frame.row for frame in strays])
            for frame in strays:
                mended.fixed("orphan-frame", frame.owner, "a frame without its memory was cleared")
        at = SEGMENT_HEADER_BYTES
        for start, length in [*((frame.start, frame.length) for frame in frames), (end, 0)]:
            stray = first_stray_byte(core, number, at, start)
            if stray is not None:
                core.segments.zero(number, [(at, start - at)])
                name = core.segments.name(number).name
                mended.fixed("orphan-frame", name, f"bytes at {stray:,} that no row knows of were cleared")
            at = max(at, start + length)


def _orphan_files(core: Core, mended: Mended) -> None:
    with core.catalog.read() as connection:
        known = catalog.namespace_ids(connection)
    for folder in ("namespaces", "keys"):
        for path in sorted((core.path / folder).iterdir()):
            if path.name.split(".")[0] not in known:
                mended.fixed("orphan-file", f"{folder}/{path.name}", "overwritten and removed")
    reclaim_files(core)
    for folder in ("namespaces", "keys"):
        fsync_dir(core.path / folder)
