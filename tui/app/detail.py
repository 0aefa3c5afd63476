"""One memory in the inspector: its words, its numbers, and ways to what it was made from and used in."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.content import Content
from textual.message import Message
from textual.widgets import Static

from mnemos.errors import MnemosError
from mnemos.tui import output, when
from mnemos.tui.console import visible
from mnemos.tui.recollections import one_line

if TYPE_CHECKING:
    from mnemos.memory.bank import MemoryBank
    from mnemos.memory.records import Memory, RecalledMemory, Tier

Lines = list[str | tuple[str, str]]  # with the style of each
SHOWN = 40  # links each way
_TIERS = {"gpu": "gpu, held there", "host": "host memory, held there", "disk": "disk"}


@dataclass(frozen=True)
class Ties:
    """What a reply was made from, and the replies that a memory was used in, the latest first."""

    made_from: "Sequence[RecalledMemory]" = ()
    used_in: "Sequence[Memory]" = ()


class Link(Static, can_focus=True):
    """Another memory; Enter or a click goes there."""

    DEFAULT_CSS = """
    Link { height: auto; border-left: outer transparent; padding: 0 0 0 1; }
    Link:focus { border-left: outer $accent; background: $panel; }
    Link:hover { background: $panel; }
    """

    def __init__(self, memory_id: str, words: Lines) -> None:
        super().__init__(Content.assemble(*words))
        self.memory_id = memory_id

    def on_click(self) -> None:
        self.screen.query_one(Detail).jump(self.memory_id)


class Detail(VerticalScroll, can_focus=True):
    """Words first; provenance is read from the bank and follows."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("tab,n", "link(1)", "Next link", id="detail.next"),
        Binding("shift+tab,N", "link(-1)", "Link before", show=False, id="detail.previous"),
        Binding("enter", "jump", "Go there", id="detail.jump"),
        Binding("b,backspace", "back", "Go back", id="detail.back"),
    ]

    class Jumped(Message):
        """The way to another memory was taken."""

        def __init__(self, memory_id: str) -> None:
            super().__init__()
            self.memory_id = memory_id

    def __init__(self) -> None:
        super().__init__(id="detail-pane")
        self._shown: str | None = None
        self._trail: list[str] = []  # ids of the memories that were left by a link

    def compose(self) -> ComposeResult:
        yield Static(id="detail", markup=False)

    async def show(self, bank: "MemoryBank", memory: "Memory | None") -> None:
        self._shown = memory.id if memory else None
        await self.query("Link, .ties").remove()
        words = self.query_one("#detail", Static)
        if memory is None:
            words.update("")
            return
        words.update(Content.assemble(*words_of(memory, bank.tiers([memory]).get(memory.id))))
        self.scroll_home(animate=False)
        try:
            ties = await asyncio.to_thread(ties_of, bank, memory)
        except MnemosError as error:
            await self.mount(Static(str(error), classes="ties", markup=False))
            return
        await self.mount_all(widgets_of(ties))

    def jump(self, memory_id: str) -> None:
        if self._shown is not None:
            self._trail.append(self._shown)
        self.post_message(self.Jumped(memory_id))

    def action_jump(self) -> None:
        link = self.app.focused
        if isinstance(link, Link):
            self.jump(link.memory_id)

    def action_back(self) -> None:
        if self._trail:
            self.post_message(self.Jumped(self._trail.pop()))

    def action_link(self, by: int) -> None:
        links = list(self.query(Link))
        if links:
            at = next((at for at, link in enumerate(links) if link.has_focus), -1 if by > 0 else 0)
            links[(at + by) % len(links)].focus()


def words_of(memory: "Memory", tier: "Tier | None" = None) -> Lines:
    """Words, then dates, marks and sizes."""
    lines: Lines = []
    if memory.title:
        lines.append((f"{visible(memory.title)}\n", "bold"))
    lines.append(f"{visible(memory.text, keep=chr(10) + chr(9))}\n")
    if memory.reply:
        lines.append((f"\n▸ {visible(memory.reply, keep=chr(10) + chr(9))}\n", "dim"))
    day = memory.created_at.astimezone().strftime("%Y-%m-%d %H:%M")
    expires = memory.expires_at
    values = {
        "id": memory.id,
        "made": f"{day} ({when.age_of(memory.created_at)})",
        "kind": f"{memory.kind}, {memory.status}",
        "session": memory.session_id,
        "source": memory.source,
        "tags": ", ".join(memory.tags),
        "trace": f"{memory.fidelity}, {memory.tokens} tokens" if memory.tokens else memory.fidelity,
        "tier": tier and _TIERS[tier],
        "bytes": f"{output.size(memory.text_bytes)} text, {output.size(memory.trace_bytes)} trace",
        "marks": ", ".join(name for name in ("pinned", "hidden") if getattr(memory, name)),
        "expires": f"{expires.astimezone():%Y-%m-%d %H:%M} ({when.left_until(expires)})" if expires else None,
    }
    lines.append("\n")
    for name, value in values.items():
        if value:
            lines += [(f"{name:<8} ", "dim"), f"{visible(value)}\n"]
    return lines


def ties_of(bank: "MemoryBank", memory: "Memory") -> Ties:
    """Read from the bank's provenance. NotFoundError when it was forgotten meanwhile."""
    made_from = bank.why(memory.id, namespace=memory.namespace) if memory.kind == "exchange" else ()
    return Ties(made_from, bank.used_in(memory.id, namespace=memory.namespace)[::-1])


def widgets_of(ties: Ties) -> list[Static]:
    """Headings and links; with the last routing's signals below each memory that a reply was made from."""
    made: list[Static] = []
    if ties.made_from:
        made.append(Static(Content.styled("Reply made from", "bold"), classes="ties"))
    for each in ties.made_from[:SHOWN]:
        share = "" if each.attention is None else f"  attention {each.attention:.0%}"
        signals = "  ".join(f"{visible(name)} {value:.2f}" for name, value in each.signals.items())
        words: Lines = [
            f"{each.rank}. {visible(one_line(each.memory))}\n",
            (f"   score {each.score:.2f}{share}  {signals}{'  cited' if each.cited else ''}", "dim"),
        ]
        made.append(Link(each.memory.id, words))
    if ties.used_in:
        noun = "reply" if len(ties.used_in) == 1 else "replies"
        made.append(
            Static(Content.styled(f"\nUsed in {len(ties.used_in):,} {noun} to", "bold"), classes="ties")
        )
    for exchange in ties.used_in[:SHOWN]:
        age = when.age_of(exchange.created_at)
        made.append(Link(exchange.id, [(f"{age:>4}  ", "dim"), visible(one_line(exchange))]))
    left_out = max(len(ties.used_in) - SHOWN, 0)
    if left_out:
        made.append(Static(f"and {left_out:,} earlier", classes="ties", markup=False))
    return made
