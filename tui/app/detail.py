"""One memory in the inspector: its words, its numbers, what it was made from and used in."""

import asyncio
from typing import TYPE_CHECKING

from textual.content import Content
from textual.widgets import Static

from mnemos.errors import MnemosError
from mnemos.tui import output, when
from mnemos.tui.console import visible
from mnemos.tui.recollections import one_line

if TYPE_CHECKING:
    from mnemos.memory.bank import MemoryBank
    from mnemos.memory.records import Memory

Lines = list[str | tuple[str, str]]  # with the style of each


class Detail(Static):
    """Words first; provenance is read from the bank and follows."""

    def __init__(self) -> None:
        super().__init__(id="detail")

    async def show(self, bank: "MemoryBank", memory: "Memory | None") -> None:
        if memory is None:
            self.update("")
            return
        words = words_of(memory)
        self.update(Content.assemble(*words))
        try:
            found = await asyncio.to_thread(provenance_of, bank, memory)
        except MnemosError as error:
            found = [f"\n{error}"]
        self.update(Content.assemble(*words, *found))


def words_of(memory: "Memory") -> Lines:
    """Words, then dates, marks and sizes."""
    lines: Lines = []
    if memory.title:
        lines.append((f"{visible(memory.title)}\n", "bold"))
    lines.append(f"{visible(memory.text, keep=chr(10) + chr(9))}\n")
    if memory.reply:
        lines.append((f"\n▸ {visible(memory.reply, keep=chr(10) + chr(9))}\n", "dim"))
    day = memory.created_at.astimezone().strftime("%Y-%m-%d %H:%M")
    values = {
        "id": memory.id,
        "made": f"{day} ({when.age_of(memory.created_at)})",
        "kind": f"{memory.kind}, {memory.status}",
        "session": memory.session_id,
        "source": memory.source,
        "tags": ", ".join(memory.tags),
        "trace": f"{memory.fidelity}, {memory.tokens} tokens",
        "bytes": f"{output.size(memory.text_bytes)} text, {output.size(memory.trace_bytes)} trace",
        "marks": ", ".join(name for name in ("pinned", "hidden") if getattr(memory, name)),
        "expires": memory.expires_at.astimezone().strftime("%Y-%m-%d %H:%M") if memory.expires_at else None,
    }
    lines.append("\n")
    for name, value in values.items():
        if value:
            lines += [(f"{name:<8} ", "dim"), f"{visible(value)}\n"]
    return lines


def provenance_of(bank: "MemoryBank", memory: "Memory") -> Lines:
    """What a reply was made from, with the routing's signals, and the replies that a memory was used in."""
    lines: Lines = []
    made_from = bank.why(memory.id, namespace=memory.namespace) if memory.kind == "exchange" else ()
    if made_from:
        lines.append(("\nReply made from\n", "bold"))
    for each in made_from:
        share = "" if each.attention is None else f" {each.attention:.0%}"
        lines += [f"{each.rank}. {visible(one_line(each.memory))}\n"]
        signals = "  ".join(f"{name} {value:.2f}" for name, value in each.signals.items())
        lines.append((f"   score {each.score:.2f}{share}  {signals}\n", "dim"))
    used_in = bank.used_in(memory.id, namespace=memory.namespace)
    if used_in:
        lines.append(("\nUsed in replies to\n", "bold"))
    for exchange in used_in:
        age = when.age_of(exchange.created_at)
        lines += [(f"{age:>4}  ", "dim"), f"{visible(one_line(exchange))}\n"]
    return lines
