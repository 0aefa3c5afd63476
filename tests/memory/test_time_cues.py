"""Which days a sentence means, from the day it is said on."""

import time
from datetime import UTC, date, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mnemos.memory.time_cues import day_of, days_spoken_of, overlaps

NOW = datetime(2026, 3, 18, 9, 30, tzinfo=UTC)  # a Wednesday


@pytest.mark.parametrize(
    ("text", "first", "after"),
    [
        ("What did I buy yesterday?", "2026-03-17", "2026-03-18"),
        ("the day before yesterday we met", "2026-03-16", "2026-03-17"),
        ("Where was I last week?", "2026-03-09", "2026-03-16"),
        ("this week is busy", "2026-03-16", "2026-03-23"),
        ("what happened last weekend", "2026-03-14", "2026-03-16"),
        ("last month's bill", "2026-02-01", "2026-03-01"),
        ("Who visited last year?", "2025-01-01", "2026-01-01"),
        ("In March I sold the boat.", "2026-03-01", "2026-04-01"),
        ("what did she say in May", "2025-05-01", "2025-06-01"),
        ("in December 2024", "2024-12-01", "2025-01-01"),
        ("on March 3rd", "2026-03-03", "2026-03-04"),
        ("on 3 April", "2025-04-03", "2025-04-04"),
        ("the 3rd of April, 2024", "2024-04-03", "2024-04-04"),
        ("Sept. 9, 2025", "2025-09-09", "2025-09-10"),
        ("three days ago", "2026-03-15", "2026-03-16"),
        ("a couple of weeks ago", "2026-03-01", "2026-03-08"),
        ("14 months ago", "2025-01-01", "2025-02-01"),
        ("two years ago", "2024-01-01", "2025-01-01"),
        ("on Monday we spoke", "2026-03-16", "2026-03-17"),
        ("last Wednesday", "2026-03-11", "2026-03-12"),
        ("in 2019", "2019-01-01", "2020-01-01"),
        ("2026-02-28", "2026-02-28", "2026-03-01"),
    ],
)
def test_a_cue_is_read(text: str, first: str, after: str) -> None:
    assert days_spoken_of(text, NOW) == [(date.fromisoformat(first), date.fromisoformat(after))]


@pytest.mark.parametrize(
    "text",
    [
        "What is my sister called?",
        "You may march on.",
        "I recently moved",
        "room 2024",
        "on February 31",
        "0 june",
    ],
)
def test_what_is_no_cue(text: str) -> None:
    assert days_spoken_of(text, NOW) == []


def test_a_place_in_the_text_is_read_once() -> None:
    assert days_spoken_of("between March 3, 2024 and last week", NOW) == [
        (date(2024, 3, 3), date(2024, 3, 4)),
        (date(2026, 3, 9), date(2026, 3, 16)),
    ]


def test_overlap() -> None:
    week = days_spoken_of("last week", NOW)
    assert overlaps(week, [day_of(NOW - timedelta(days=7))])
    assert not overlaps(week, [day_of(NOW)]) and not overlaps([], week)


@given(st.text(max_size=60), st.datetimes(timezones=st.just(UTC)))
def test_no_text_and_no_day_breaks_it(text: str, spoken: datetime) -> None:
    for first, after in days_spoken_of(f"{text} 3 days ago, last month", spoken):
        assert first < after


def test_a_text_of_any_length_is_read_in_no_time() -> None:
    text = "in May 2023, last week, on 3 March, " * 30_000
    started = time.process_time()
    assert len(days_spoken_of(f"{text} 3 days ago", NOW)) == 8
    assert time.process_time() - started < 5.0


def test_days_that_not_every_time_zone_has_are_none() -> None:
    for text in ("on 0001-01-01", "on 9999-12-31"):
        assert days_spoken_of(text, NOW) == []
