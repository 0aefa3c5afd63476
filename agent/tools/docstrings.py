"""What a function's docstring says about it and about each parameter, in Google's or Sphinx's form."""

import inspect
import re
from dataclasses import dataclass, field

_ARGS = re.compile(r"^(args|arguments|parameters):\s*$", re.IGNORECASE)
_SECTION = re.compile(r"^\w[\w ]*:\s*$")
_GOOGLE = re.compile(r"^(\w+)\s*(?:\([^)]*\))?:\s*(.*)$")
_SPHINX = re.compile(r"^:param\s+(?:[^:]*\s)?(\w+):\s*(.*)$")


@dataclass(slots=True)
class Described:
    """A docstring's words."""

    summary: str = ""
    parameters: dict[str, str] = field(default_factory=dict)


def describe(docstring: str | None) -> Described:
    """The words before the parameters, on one line, and those of each parameter."""
    found = Described()
    summary: list[str] = []
    in_args, indent, current, was_field = False, 0, "", False
    for line in inspect.cleandoc(docstring or "").splitlines():
        text, depth = line.strip(), len(line) - len(line.lstrip())
        if not text:
            current = ""
            continue
        if sphinx := _SPHINX.match(text):
            current, was_field = sphinx[1], True
            found.parameters[current] = sphinx[2]
        elif text.startswith(":"):  # another field, such as :returns:
            current, was_field = "", True
        elif depth == 0 and _ARGS.match(text):
            in_args, indent, was_field = True, 0, True
        elif depth == 0 and _SECTION.match(text):
            in_args, current, was_field = False, "", True
        elif in_args and depth and (indent in (0, depth)) and (google := _GOOGLE.match(text)):
            indent, current = depth, google[1]
            found.parameters[current] = google[2]
        elif current and depth:
            found.parameters[current] = f"{found.parameters[current]} {text}".strip()
        elif not was_field:
            summary.append(text)
    found.summary = " ".join(summary)
    return found
