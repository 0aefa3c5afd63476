"""Moments and lengths of time as people type them: ISO dates and times, or an age such as `3d`."""

import re
from datetime import UTC, datetime, timedelta

from mnemos.errors import InvalidSelectorError

_AGE = re.compile(r"^(\d{1,6})\s*([mhdw])$")
_UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_DATE = re.compile(r"^\d{4}-\d{2}-\d{2}$")


def moment(text: str) -> datetime:
    """In UTC; a time without a zone is local, an age counts back from now. Raises InvalidSelectorError."""
    text = text.strip()
    try:
        if _AGE.match(text):
            return datetime.now(UTC) - length(text)
        return datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError, OSError):
        raise InvalidSelectorError(
            f"'{text}' is no date; write 2026-03-01, 2026-03-01T18:30, or an age such as 12h, 3d or 2w"
        ) from None


def end_of(text: str) -> datetime:
    """As `moment`, but the end of the day for a date without a time."""
    start = moment(text)
    if not _DATE.match(text.strip()):
        return start
    # The next local midnight: a day can have 23 or 25 hours.
    return (datetime.fromisoformat(text.strip()) + timedelta(days=1)).astimezone(UTC)


def length(text: str) -> timedelta:
    """A length of time: `30m`, `12h`, `3d`, `2w`. Raises InvalidSelectorError."""
    age = _AGE.match(text.strip())
    if age is None:
        raise InvalidSelectorError(f"'{text}' is no length of time; write 30m, 12h, 90d or 2w")
    return timedelta(**{_UNITS[age[2]]: int(age[1])})
