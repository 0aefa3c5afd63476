"""Moments as people type them: ISO dates and times, or an age such as `3d`."""

import re
from datetime import UTC, datetime, timedelta

from mnemos.errors import InvalidSelectorError

_AGE = re.compile(r"^(\d{1,6})\s*([mhdw])$")
_UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_DATE = re.compile(r"^\d{4}-\d{2}-\d{2}$")


def since(text: str | None) -> datetime | None:
    """The first moment that counts, in UTC."""
    return None if text is None else _parse(text)


def until(text: str | None) -> datetime | None:
    """The moment before which memories count, in UTC: the end of the day for a date without a time."""
    if text is None:
        return None
    if not _DATE.match(text.strip()):
        return _parse(text)
    _parse(text)  # so that a bad date is refused in the same words
    # The next local midnight: a day can have 23 or 25 hours. The selector takes what is before it.
    return (datetime.fromisoformat(text.strip()) + timedelta(days=1)).astimezone(UTC)


def _parse(text: str) -> datetime:
    """A time without a zone is local. Raises InvalidSelectorError."""
    text = text.strip()
    try:
        if age := _AGE.match(text):
            return datetime.now(UTC) - timedelta(**{_UNITS[age[2]]: int(age[1])})
        return datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError, OSError):
        raise InvalidSelectorError(
            f"'{text}' is no date; write 2026-03-01, 2026-03-01T18:30, or an age such as 12h, 3d or 2w"
        ) from None


def age_of(moment: datetime) -> str:
    """How long ago, in one unit: `5m`, `3d`."""
    seconds = max(0.0, (datetime.now(UTC) - moment).total_seconds())
    for unit, length in (("w", 604_800), ("d", 86_400), ("h", 3_600), ("m", 60)):
        if seconds >= length:
            return f"{int(seconds // length)}{unit}"
    return "now"
