"""Where the bytes are: bars of memories by fidelity, with the bytes of traces, of words by kind, of tiers."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from textual.content import Content
from textual.widgets import Static

from mnemos.tui import output

if TYPE_CHECKING:
    from mnemos.memory.records import Tier
    from mnemos.memory.survey import Part, Survey

_BAR_CELLS = 24
_LOOKS = (("█", "$primary"), ("▓", "$accent"), ("▒", "$secondary"), ("░", "$text-muted"))


def shares(amounts: Sequence[int], cells: int) -> list[int]:
    """Cells of a bar by amount: together all of them, and at least one for what is not nothing."""
    total = sum(amounts)
    if not total:
        return [0] * len(amounts)
    parts = [max(1, cells * amount // total) if amount else 0 for amount in amounts]
    parts[parts.index(max(parts))] += cells - sum(parts)
    return parts


class Overview(Static):
    """The map of a namespace, as far as it is counted."""

    DEFAULT_CSS = "Overview { height: auto; padding: 0 2; color: $text-muted; }"

    def __init__(self) -> None:
        super().__init__(id="overview")

    def show(self, survey: "Survey", held: "Mapping[Tier, int]") -> None:
        """`held`: bytes that the model of this process keeps at hand, by tier."""
        traces: dict[str, tuple[int, str]] = {
            name: (part.memories, _said(part)) for name, part in survey.fidelities.items()
        }
        words: dict[str, tuple[int, str]] = {
            name: (part.bytes, _said(part)) for name, part in survey.kinds.items()
        }
        tiers = {"disk": survey.trace_bytes, **{name: count for name, count in held.items() if count}}
        sizes: dict[str, tuple[int, str]] = {
            name: (count, output.size(count)) for name, count in tiers.items()
        }
        lines = [_line("traces", traces), _line("words", words), _line("tiers", sizes)]
        self.update(Content("\n").join(lines))


def _said(part: "Part") -> str:
    return f"{part.memories:,} ({output.size(part.bytes)})" if part.bytes else f"{part.memories:,}"


def _line(name: str, parts: Mapping[str, tuple[int, str]]) -> Content:
    """`parts`: what each is called -> (amount, what is said of it)."""
    ordered = sorted(parts.items(), key=lambda part: -part[1][0])
    cells = shares([amount for _, (amount, _) in ordered], _BAR_CELLS)
    looks = [_LOOKS[min(at, len(_LOOKS) - 1)] for at in range(len(ordered))]
    pieces: list[str | tuple[str, str]] = [f"{name:<8}"]
    pieces += [(glyph * count, style) for (glyph, style), count in zip(looks, cells, strict=True)]
    pieces.append(" " * (_BAR_CELLS - sum(cells) + 2))
    for at, ((called, (_, said)), (glyph, style)) in enumerate(zip(ordered, looks, strict=True)):
        pieces += ["   " if at else "", (glyph, style), f" {called} {said}"]
    return Content.assemble(*pieces)
