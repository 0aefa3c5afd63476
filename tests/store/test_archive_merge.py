"""Merging an archive is all or nothing for each group, whenever the process dies."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mnemos.store import archive_lines
from mnemos.store.archive_stream import GroupReader
from mnemos.store.store import Store
from mnemos.store.words import Filter

KilledAtEachPoint = Callable[[Callable[[], Callable[[], object]], Callable[[int], None]], int]
Family = Any
GROUP = 2


def merge(store: Store, archive: bytes) -> None:
    reader, merger = GroupReader(io.BytesIO(archive)), store.merger()
    for group in reader.groups(fingerprint="model-a"):
        merger.put_traces(group.namespace, group, merger.merge(group.namespace, group))


def state(store: Store) -> list[tuple[Any, ...]]:
    """Of all that an import brings, but the traces, which may be made again."""
    return [
        (record.id, record.text, record.reply, record.session_id, store.uses_of("alice", record.id))
        for record in store.list("alice", newest_first=False)
    ]


@pytest.fixture
def archive(
    tmp_path: Path, fill: Callable[..., Family], monkeypatch: pytest.MonkeyPatch
) -> tuple[bytes, list[tuple[Any, ...]]]:
    monkeypatch.setattr(archive_lines, "GROUP_TEXT_BYTES", 500)
    with Store.open(tmp_path / "from") as store:
        fill(store)
        out = io.BytesIO()
        store.export(out, ["alice"], Filter(include_hidden=False), traces=True)
        return out.getvalue(), state(store)


def test_a_merge_killed_at_any_point_is_whole_groups_and_goes_on(
    fast_disk: Path, archive: tuple[bytes, list[tuple[Any, ...]]], killed_at_each_point: KilledAtEachPoint
) -> None:
    data, whole = archive
    groups = sum(1 for _ in GroupReader(io.BytesIO(data)).groups(fingerprint=None))
    assert groups == GROUP
    banks = iter(range(10_000))
    current = [fast_disk / "bank"]
    reached: set[int] = set()

    def prepare() -> Callable[[], object]:
        return lambda: merge(Store.open(current[0]), data)

    def check(point: int) -> None:
        with Store.open(current[0]) as store:
            held = state(store)
            reached.add(len(held))
            assert [row[0] for row in held] == [row[0] for row in whole[: len(held)]]
            if point % 4 == 0 or len(held) == len(whole):
                report = store.verify(deep=True)
                assert report.ok, report.problems
            merge(store, data)
            assert state(store) == whole
        current[0] = fast_disk / f"bank-{next(banks)}"
        Store.open(current[0], encrypted=False).close()

    Store.open(current[0], encrypted=False).close()
    assert killed_at_each_point(prepare, check) > 10
    assert reached == {0, 2, 3}
