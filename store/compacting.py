"""Giving space back: the live frames of segments that are mostly dead move to the end of the newest one.

Frames move as they lie, ciphertext and all, in groups. For each group, under the writer's lock: copy and
fsync; then one transaction of the catalog adds the new places and marks the old ones dead; then the dead
bytes are zeroed and their rows dropped. A segment without rows loses its own row, then its file. Whatever
step a crash comes at, each copy that is not zeros yet is named by the catalog or lies behind the committed
ends: an erase reaches it there, and the next open clears it.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

from sqlalchemy import bindparam, text

from mnemos.errors import BankUnreadableError, UsageError
from mnemos.store import catalog, catalog_schema, erasing, rewriting
from mnemos.store.catalog import Placed
from mnemos.store.core import Core
from mnemos.store.disk import check_room
from mnemos.store.frames import FrameError, check_frame, frame_digest
from mnemos.store.records import CompactReport
from mnemos.store.recovery import clear_dead_frames
from mnemos.store.segments import SEGMENT_BYTES, SEGMENT_HEADER_BYTES
from mnemos.store.writing import frame_group

OnProgress = Callable[[int, int], None]  # bytes moved, bytes to move
MIN_DEAD_SHARE = 0.25
_GROUP_BYTES = 8 << 20
_GROUP_FRAMES = 4096
_SMALL_SHARE = 0.25  # of the roll-over size: two neighbours that are both smaller are merged
_PAUSE_S = 0.02  # between groups: a writer that waits for the lock looks for it every 10 ms


def compact(
    core: Core,
    *,
    on_progress: OnProgress | None = None,
    min_dead_share: float = MIN_DEAD_SHARE,
    max_bytes: int | None = None,
    group_bytes: int = _GROUP_BYTES,
) -> CompactReport:
    """Empties segments of which `min_dead_share` or more is dead, until about `max_bytes` are moved.

    Raises ErasePendingError while an erase waits for a reader, BankFullError, BankLockedError,
    BankReadOnlyError; what was done by then stays done.
    """
    if not 0 < min_dead_share <= 1:
        raise UsageError(f"The share of dead bytes must be over 0 and at most 1, not {min_dead_share:g}.")
    if max_bytes is not None and max_bytes < 1:
        raise UsageError(f"The budget must be at least 1 byte, not {max_bytes}.")
    before = core.segments.allocated()
    with core.writing():
        erasing.resume(core)
        clear_dead_frames(core)
        victims = _choose(core, min_dead_share)
        with core.catalog.read() as connection:
            newest, _ = catalog.newest_segment(connection)
        if newest in victims:
            _begin_segment(core, newest + 1)
    rewriting.rewrite_due(core)
    report = CompactReport(bytes_before=before, bytes_after=before)
    total = sum(victims.values())
    for number in victims:
        at = 0
        while at >= 0 and (max_bytes is None or report.bytes_moved < max_bytes):
            with core.writing():
                erasing.resume(core)
                at, report = _step(core, number, at, group_bytes, report)
            if on_progress is not None:
                on_progress(min(report.bytes_moved, total), total)
            time.sleep(_PAUSE_S)
        if at >= 0:
            report = replace(report, is_finished=False)
            break
    return replace(report, bytes_after=core.segments.allocated())


def _choose(core: Core, min_dead_share: float) -> dict[int, int]:
    """The segments to empty, with the live bytes of each; those that give most first."""
    with core.catalog.read() as connection:
        ends = catalog.segment_ends(connection)
        rows = connection.execute(text("SELECT segment, sum(length) FROM frames GROUP BY segment"))
        live = {number: int(length) for number, length in rows}
    room = {number: end - SEGMENT_HEADER_BYTES for number, end in ends.items()}
    chosen = {n for n in room if room[n] and (room[n] - live.get(n, 0)) / room[n] >= min_dead_share}
    newest = max(ends, default=0)
    chosen |= {n for n in ends if n != newest and not room[n]}
    small = _SMALL_SHARE * (core.segment_bytes or SEGMENT_BYTES)
    for one, next_one in pairwise(sorted(set(ends) - chosen)):
        if max(room[one], room[next_one]) < small:
            chosen.add(one)
    return {n: live.get(n, 0) for n in sorted(chosen, key=lambda n: (live.get(n, 0) - room[n], n))}


def _begin_segment(core: Core, number: int) -> None:
    """A new, empty newest segment, so that the one before it can be emptied."""
    check_room(core.path, SEGMENT_HEADER_BYTES)
    core.segments.create(number)
    with core.catalog.write() as connection:
        catalog.set_segment_ends(connection, {number: SEGMENT_HEADER_BYTES})


def _step(
    core: Core, number: int, at: int, group_bytes: int, report: CompactReport
) -> tuple[int, CompactReport]:
    """Moves the frames that start at `at` and after, a group of them; where the next group starts, -1 when
    the segment is done with.
    """
    frames = _group(core, number, at, group_bytes)
    if frames:
        moved = _move(core, frames)
        clear_dead_frames(core)
        report = replace(
            report,
            frames_moved=report.frames_moved + len(moved),
            bytes_moved=report.bytes_moved + sum(frame.length for frame in moved),
            frames_left=report.frames_left + len(frames) - len(moved),
        )
        return frames[-1].start + 1, report
    clear_dead_frames(core)
    if _drop(core, number):
        report = replace(report, segments_removed=report.segments_removed + 1)
    return -1, report


def _group(core: Core, number: int, at: int, group_bytes: int) -> list[Placed]:
    query = text(
        "SELECT id FROM frames WHERE segment = :segment AND start >= :at AND live = 1 "
        "ORDER BY start LIMIT :limit"
    )
    with core.catalog.read() as connection:
        ids = list(connection.execute(query, {"segment": number, "at": at, "limit": _GROUP_FRAMES}).scalars())
        frames = catalog.frames_by_row(connection, ids)
    taken: list[Placed] = []
    size = 0
    for frame in frames:
        if taken and size + frame.length > group_bytes:
            break
        taken.append(frame)
        size += frame.length
    return taken


def _move(core: Core, frames: list[Placed]) -> list[Placed]:
    """The frames that were whole and lie at the end of the newest segment now. A damaged one stays where it
    is, for `verify` to name.
    """
    check_room(core.path, sum(frame.length for frame in frames) + 512 * len(frames))
    moved: list[Placed] = []
    with frame_group(core) as group:
        for frame in frames:
            data = _whole(core, frame)
            if data is not None:
                segment, start = group.appender.append(data)
                group.placed.append(replace(frame, segment=segment, start=start))
                moved.append(frame)
        if not moved:
            return []
        group.appender.sync()
        with core.catalog.write() as connection:
            retire = text("UPDATE frames SET live = 0 WHERE id IN :rows")
            connection.execute(
                retire.bindparams(bindparam("rows", expanding=True)), {"rows": [frame.row for frame in moved]}
            )
            group.record(connection)
    return moved


def _whole(core: Core, frame: Placed) -> bytes | None:
    try:
        data = core.segments.read(frame.segment, frame.start, frame.length)
        header = check_frame(data, frame.kind, frame.owner)
    except (BankUnreadableError, FrameError):
        return None
    return data if frame_digest(header, data) == frame.digest else None


def _drop(core: Core, number: int) -> bool:
    """Removes a segment that no row lies in: its row, then its file, which holds zeros by now."""
    with core.catalog.write() as connection:
        count = text("SELECT count(*) FROM frames WHERE segment = :segment")
        if connection.execute(count, {"segment": number}).scalar_one():
            return False
        table = catalog_schema.segments
        connection.execute(table.delete().where(table.c.number == number))
    core.segments.remove(number)
    return True
