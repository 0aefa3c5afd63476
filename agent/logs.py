"""One log record a turn, under the logger `mnemos.agent`: `turn status=complete memories=2 route_ms=4.1 ...`.

The fields are also in the record's attribute `mnemos`, which `JsonFormatter` writes as JSON. Turns that fail
are warnings, others information, so that nothing shows unless logging is set up. No record holds words of a
message, a reply or a memory, nor what an error said, since that may.
"""

import json
import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mnemos.agent.observing import Observed

LOGGER = "mnemos.agent"
_logger = logging.getLogger(LOGGER)
_logger.addHandler(logging.NullHandler())


def is_on() -> bool:
    return _logger.isEnabledFor(logging.WARNING)


def turn_ended(turn: "Observed") -> None:
    level = logging.WARNING if turn.status == "failed" else logging.INFO
    if not _logger.isEnabledFor(level):
        return
    fields: dict[str, object] = {"status": turn.status}
    if turn.error is not None:
        fields["error"] = turn.error
    fields["total_ms"] = round((turn.end_ns - turn.start_ns) / 1e6, 3)
    fields |= turn.fields
    line = " ".join(f"{name}={_text(value)}" for name, value in fields.items())
    _logger.log(level, "turn %s", line, extra={"mnemos": {"event": "turn", **fields}})


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, and a turn's fields. Other records have their message."""

    def format(self, record: logging.LogRecord) -> str:
        body: dict[str, object] = {
            "time": self.formatTime(record),
            "level": record.levelname.lower(),
            "logger": record.name,
        }
        fields = getattr(record, "mnemos", None)
        body |= fields if isinstance(fields, dict) else {"message": record.getMessage()}
        return json.dumps(body, ensure_ascii=False)
