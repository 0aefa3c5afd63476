"""Which days a sentence speaks of: "yesterday", "last week", "on 3 March", "two months ago", "in 2024".

A rule each, in English. What is vague ("recently", "once") is no cue. Days are those of the time zone that
`spoken` is in.
"""

import calendar
import re
from collections.abc import Callable, Iterator
from datetime import date, datetime, timedelta

Days = tuple[date, date]  # the first day, and the first one after

_FIRST = date(1, 1, 3)  # of which every time zone has the start

_MONTHS = {name.lower(): at for at, name in enumerate(calendar.month_name) if name}
_MONTHS |= {name.lower(): at for at, name in enumerate(calendar.month_abbr) if name} | {"sept": 9}
_WEEKDAYS = {name.lower(): at for at, name in enumerate(calendar.day_name)}
_NUMBERS = {"a": 1, "an": 1, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7}
_NUMBERS |= {"eight": 8, "nine": 9, "ten": 10, "couple of": 2, "a couple of": 2, "few": 3, "a few": 3}
_MONTH = "|".join(sorted(_MONTHS, key=len, reverse=True))
_DAY = r"(\d{1,2})(?:st|nd|rd|th)?"
_YEAR = r"((?:19|20)\d\d)"
_COUNT = "|".join(sorted(map(re.escape, _NUMBERS), key=len, reverse=True))
_MOST_CUES = 8  # of one sentence: a chronicle points nowhere
_READ = 8000  # characters, the last ones: every cue is held against all that were found


def days_spoken_of(text: str, spoken: datetime) -> list[Days]:
    """The days that a text names, as one who says it at `spoken` means them; [] for a text without a cue."""
    today = spoken.date()
    text = text[-_READ:]
    found: dict[tuple[int, int], Days] = {}  # by the place in the text: the first rule that reads it has it
    for pattern, rule in _RULES:
        for match in pattern.finditer(text):
            if any(start < match.end() and match.start() < end for start, end in found):
                continue
            try:
                days = rule(match, today)
            except (ValueError, OverflowError):  # no such day in the calendar
                continue
            if days is not None and days[0] >= _FIRST:
                found[match.span()] = days
    return [found[span] for span in sorted(found)][:_MOST_CUES]


def overlaps(these: list[Days], those: list[Days]) -> bool:
    """Whether some day is in both."""
    return any(first < other_end and other < end for first, end in these for other, other_end in those)


def day_of(moment: datetime) -> Days:
    """The day of a moment."""
    return moment.date(), moment.date() + timedelta(days=1)


def _day(at: date) -> Days:
    return at, at + timedelta(days=1)


def _month(year: int, month: int) -> Days:
    after = date(year + month // 12, month % 12 + 1, 1)
    return date(year, month, 1), after


def _latest(today: date, make: Callable[[int], Days]) -> Days:
    """This year's, or last year's where it is still to come."""
    this = make(today.year)
    return this if this[0] <= today else make(today.year - 1)


def _iso(match: re.Match[str], today: date) -> Days:
    return _day(date.fromisoformat(match[0]))


def _month_day(match: re.Match[str], today: date) -> Days:
    month, day, year = _MONTHS[match[1].lower()], int(match[2]), match[3]
    return _day(date(int(year), month, day)) if year else _latest(today, lambda y: _day(date(y, month, day)))


def _day_month(match: re.Match[str], today: date) -> Days:
    day, month, year = int(match[1]), _MONTHS[match[2].lower()], match[3]
    return _day(date(int(year), month, day)) if year else _latest(today, lambda y: _day(date(y, month, day)))


def _in_month(match: re.Match[str], today: date) -> Days:
    month, year = _MONTHS[match[1].lower()], match[2]
    return _month(int(year), month) if year else _latest(today, lambda y: _month(y, month))


def _in_year(match: re.Match[str], today: date) -> Days:
    year = int(match[1])
    return date(year, 1, 1), date(year + 1, 1, 1)


def _near_day(match: re.Match[str], today: date) -> Days:
    said = match[1].lower()
    back = {"yesterday": 1, "last night": 1, "the day before yesterday": 2}.get(said, 0)
    return _day(today - timedelta(days=back))


def _unit(match: re.Match[str], today: date) -> Days:
    which, unit = match[1].lower(), match[2].lower()
    back = 0 if which == "this" else 1
    if unit == "week":
        monday = today - timedelta(days=today.weekday() + 7 * back)
        return monday, monday + timedelta(days=7)
    if unit == "weekend":
        saturday = today - timedelta(days=(today.weekday() - 5) % 7)
        return saturday, saturday + timedelta(days=2)
    if unit == "month":
        year, month = divmod(today.year * 12 + today.month - 1 - back, 12)
        return _month(year, month + 1)
    return date(today.year - back, 1, 1), date(today.year - back + 1, 1, 1)


def _ago(match: re.Match[str], today: date) -> Days | None:
    said, unit = match[1].lower(), match[2].lower()
    count = int(said) if said.isdigit() else _NUMBERS[said]
    if unit == "day":
        return _day(today - timedelta(days=count))
    if unit == "week":
        middle = today - timedelta(days=7 * count)
        return middle - timedelta(days=3), middle + timedelta(days=4)
    if unit == "month":
        year, month = divmod(today.year * 12 + today.month - 1 - count, 12)
        return _month(year, month + 1)
    return date(today.year - count, 1, 1), date(today.year - count + 1, 1, 1)


def _weekday(match: re.Match[str], today: date) -> Days:
    """The latest one: with "last" it is never today."""
    wanted, is_last = _WEEKDAYS[match[2].lower()], match[1].lower() == "last"
    back = (today.weekday() - wanted) % 7
    return _day(today - timedelta(days=back or (7 if is_last else 0)))


def _rules() -> Iterator[tuple[re.Pattern[str], Callable[[re.Match[str], date], Days | None]]]:
    def words(pattern: str) -> re.Pattern[str]:
        return re.compile(rf"\b{pattern}\b", re.IGNORECASE)

    yield re.compile(r"\b\d{4}-\d\d-\d\d\b"), _iso
    yield words(rf"({_MONTH})\.? {_DAY}(?:,? {_YEAR})?(?!\d)"), _month_day
    yield words(rf"{_DAY}(?: of)? ({_MONTH})(?:,? {_YEAR})?"), _day_month
    yield words(rf"(?:in|since|of|during|last|this|early|late|mid) ({_MONTH})(?:,? {_YEAR})?"), _in_month
    yield words(rf"({_MONTH}),? {_YEAR}"), _in_month
    yield words(rf"(?:in|since|during|of) {_YEAR}"), _in_year
    yield words("(the day before yesterday|yesterday|last night|today|tonight|this morning)"), _near_day
    yield words("(last|this|past|previous) (weekend|week|month|year)"), _unit
    yield words(rf"(\d{{1,3}}|{_COUNT}) (day|week|month|year)s? ago"), _ago
    yield words(rf"(last|on|this) ({'|'.join(_WEEKDAYS)})"), _weekday


_RULES = tuple(_rules())
