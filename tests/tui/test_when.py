import time
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest

from mnemos.errors import InvalidSelectorError
from mnemos.tui import when


@pytest.fixture
def berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize(
    ("day", "end"),
    [
        ("2026-03-28", datetime(2026, 3, 28, 23, tzinfo=UTC)),
        ("2026-03-29", datetime(2026, 3, 29, 22, tzinfo=UTC)),
        ("2026-10-25", datetime(2026, 10, 25, 23, tzinfo=UTC)),
    ],
    ids=["24 hours", "23 hours", "25 hours"],
)
@pytest.mark.usefixtures("berlin")
def test_a_day_ends_at_the_next_local_midnight(day: str, end: datetime) -> None:
    assert when.until(day) == end


@pytest.mark.usefixtures("berlin")
def test_times_without_a_zone_are_local() -> None:
    assert when.since("2026-03-28T18:30") == datetime(2026, 3, 28, 17, 30, tzinfo=UTC)
    assert when.until("2026-03-28T18:30+00:00") == datetime(2026, 3, 28, 18, 30, tzinfo=UTC)


@pytest.mark.parametrize("text", ["yesterday", "2026-13-01", "", "99999999d", "3y"])
def test_what_is_no_date(text: str) -> None:
    for parse in (when.since, when.until):
        with pytest.raises(InvalidSelectorError):
            parse(text)
