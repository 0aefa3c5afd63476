"""Moments as options take them, and ages as tables show them."""

from datetime import UTC, datetime


def since(text: str | None) -> datetime | None:
    """The first moment that counts, in UTC. Raises InvalidSelectorError."""
    from mnemos.memory.moments import moment

    return None if text is None else moment(text)


def until(text: str | None) -> datetime | None:
    """The moment before which memories count, in UTC: the end of the day for a date without a time."""
    from mnemos.memory.moments import end_of

    return None if text is None else end_of(text)


def age_of(moment: datetime) -> str:
    """How long ago, in one unit: `5m`, `3d`."""
    return _length((datetime.now(UTC) - moment).total_seconds())


def left_until(moment: datetime) -> str:
    """How long until then, in one unit; `over` when that is past."""
    seconds = (moment - datetime.now(UTC)).total_seconds()
    return "over" if seconds <= 0 else _length(seconds)


def _length(seconds: float) -> str:
    for unit, length in (("w", 604_800), ("d", 86_400), ("h", 3_600), ("m", 60)):
        if seconds >= length:
            return f"{int(seconds // length)}{unit}"
    return "now"
