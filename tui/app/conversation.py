"""The conversation: what was said, what was answered, and what went wrong, one under the other."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical, VerticalScroll
from textual.message import Message
from textual.widgets import Static

from mnemos.tui.app.pace import SizedOnce
from mnemos.tui.app.prose import Prose
from mnemos.tui.console import visible

if TYPE_CHECKING:
    from mnemos.memory.records import Memory, RecalledMemory


_FOLD_CHARS, _FOLD_LINES = 3_000, 24  # a longer message shows its start
_SHOWN_CHARS = 200_000  # of an unfolded one


class Entry(SizedOnce, Vertical, can_focus=True):
    """One thing in the conversation. Arrow keys walk from one to the next."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,k", "app.walk(-1)", "Earlier", id="message.earlier", show=False),
        Binding("down,j", "app.walk(1)", "Later", id="message.later", show=False),
        Binding("c", "copy", "Copy", id="message.copy"),
        Binding("b", "copy_code", "Copy code", id="message.copy_code"),
        Binding("e", "again", "Edit", id="message.again"),
        Binding("r", "regenerate", "Again", id="message.regenerate"),
        Binding("n", "branch", "Branch", id="message.branch"),
        Binding("left", "way(-1)", "Other reply", key_display="←/→", id="message.way_back"),
        Binding("right", "way(1)", "Other reply", show=False, id="message.way_on"),
        Binding("home,g", "app.walk_to(0)", "First", id="message.first", show=False),
        Binding("end,G", "app.walk_to(-1)", "Last", id="message.last", show=False),
        Binding("enter", "unfold", "Unfold", id="message.unfold"),
        Binding("m", "memories", "Memories", id="message.memories"),
        Binding("escape", "leave", "Prompt", id="message.leave"),
    ]

    def __init__(
        self, words: str, exchange_id: str | None = None, *, incognito: bool = False, classes: str = ""
    ) -> None:
        super().__init__(classes=f"{classes} -incognito" if incognito else classes)
        self.words = words
        self.exchange_id = exchange_id
        self.incognito = incognito  # nothing of it is stored
        self.ways: tuple[str, ...] = ()  # sessions with the exchanges that stand here, its own among them
        self.way = 0  # its own place in `ways`

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        match action:
            case "memories":
                return isinstance(self, Answer) and self.has_memories
            case "copy_code":
                return isinstance(self, Answer) and "```" in self.words
            case "again":
                return isinstance(self, Said)
            case "branch":
                return self.exchange_id is not None
            case "way":
                return len(self.ways) > 1
            case "unfold":
                return isinstance(self, Said) and self.is_long
        return True

    def action_copy(self) -> None:
        self.post_message(self.Copied(self.words))

    def action_copy_code(self) -> None:
        self.post_message(self.Copied(last_code(self.words)))

    def action_again(self) -> None:
        self.post_message(self.Asked("edit", self))

    def action_regenerate(self) -> None:
        self.post_message(self.Asked("regenerate", self))

    def action_branch(self) -> None:
        self.post_message(self.Asked("branch", self))

    def action_way(self, by: int) -> None:
        at = self.way + by
        if 0 <= at < len(self.ways):
            self.post_message(self.Asked("way", self, self.ways[at]))

    def action_unfold(self) -> None:
        if isinstance(self, Said):
            self.unfold()

    def action_memories(self) -> None:
        if isinstance(self, Answer):
            self.post_message(Answer.Opened(self))

    def action_leave(self) -> None:
        self.post_message(self.Left())

    class Left(Message):
        """Back to the prompt."""

    class Copied(Message):
        """Words to be copied."""

        def __init__(self, words: str) -> None:
            super().__init__()
            self.words = words

    class Asked(Message):
        """To `edit` the message, `regenerate` the reply, `branch` here, or go another `way` from here."""

        def __init__(self, action: str, entry: "Entry", session_id: str = "") -> None:
            super().__init__()
            self.action, self.entry, self.session_id = action, entry, session_id


class Said(Entry):
    """What the person said."""

    def __init__(
        self,
        words: str,
        exchange_id: str | None = None,
        *,
        incognito: bool = False,
        exclude: frozenset[str] = frozenset(),
    ) -> None:
        super().__init__(words, exchange_id, incognito=incognito, classes="said")
        self.exclude = exclude  # memories that are not recalled for it
        self._is_folded = self.is_long

    @property
    def is_long(self) -> bool:
        return len(self.words) > _FOLD_CHARS or self.words.count("\n") > _FOLD_LINES

    def compose(self) -> ComposeResult:
        yield Static(self._shown(), markup=False)

    def unfold(self) -> None:
        """Show all of a long message, or its start again."""
        self._is_folded = not self._is_folded
        self.query_one(Static).update(self._shown())

    def _shown(self) -> str:
        if not self._is_folded:
            return visible(self.words[:_SHOWN_CHARS], keep="\n\t")
        start = "\n".join(self.words[:_FOLD_CHARS].split("\n")[:_FOLD_LINES])
        return f"{visible(start, keep=chr(10) + chr(9))}\n… {len(self.words):,} characters, Enter shows them"


class Answer(Entry):
    """A reply as it streams in, and the memories that it was made with."""

    class Opened(Message):
        """The person wants to see the memories of a reply."""

        def __init__(self, answer: "Answer") -> None:
            super().__init__()
            self.answer = answer

    def __init__(self, words: str = "", exchange_id: str | None = None, *, incognito: bool = False) -> None:
        super().__init__(words, exchange_id, incognito=incognito, classes="answer")
        self.memories: Sequence[RecalledMemory] = ()
        self.count: int | None = None  # memories it was made with; None: not known yet
        self.mark = ""  # interrupted, or what was forgotten since
        self._prose = Prose(visible(words, keep="\n\t"))

    def compose(self) -> ComposeResult:
        yield self._prose
        yield Chip(id="chip", markup=False)

    def on_mount(self) -> None:
        self._show_chip()

    @property
    def has_memories(self) -> bool:
        return bool(self.count) and (self.exchange_id is not None or bool(self.memories))

    def add(self, piece: str) -> None:
        """Some more words."""
        self.words += piece
        self._prose.add(visible(piece, keep="\n\t"))

    def settle(self, words: str | None = None) -> None:
        """The reply is over: show its Markdown as a whole."""
        self.words = self.words if words is None else words
        self._prose.update(visible(self.words, keep="\n\t"))
        self._prose.display = bool(self.words.strip())

    def show_memories(self, memories: "Sequence[RecalledMemory]") -> None:
        self.memories, self.count = memories, len(memories)
        self._show_chip()

    def forget_words(self, mark: str) -> None:
        """What it was made from was forgotten, so its words go from the screen as well."""
        self.memories, self.count, self.exchange_id = (), None, None
        self.mark = mark
        self.settle("")
        self._show_chip()

    def set_mark(self, mark: str) -> None:
        self.mark = mark
        self._show_chip()

    def set_ways(self, ways: tuple[str, ...], at: int) -> None:
        """Other exchanges stand in the same place, in other sessions."""
        self.ways, self.way = ways, at
        self._show_chip()

    def _show_chip(self) -> None:
        if not self.is_mounted:
            return
        chip = self.query_one(Chip)
        parts = []
        if self.count is not None:
            cited = sum(each.cited for each in self.memories)
            parts.append(f"◆ {count_of(self.count)}" if self.count else "no memories")
            parts += [f"{cited} cited"] if cited else []
        parts += [self.mark] if self.mark else []
        parts += ["incognito, not stored"] if self.incognito else []
        parts += [f"◂ {self.way + 1} of {len(self.ways)} ▸"] if len(self.ways) > 1 else []
        chip.update("  ·  ".join(parts))
        chip.display = bool(parts)
        chip.set_class(bool(self.count), "-some")
        chip.set_class(bool(self.mark) or self.incognito, "-marked")


class Chip(Static):
    """`4 memories`: a click opens them."""

    def on_click(self) -> None:
        answer = self.query_ancestor(Answer)
        if answer.has_memories:
            answer.post_message(Answer.Opened(answer))


class Card(Static):
    """A line of news, or what went wrong and what to do."""

    def __init__(self, text: str, *, error: bool = False) -> None:
        super().__init__(visible(text, keep="\n"), markup=False, classes="card -error" if error else "card")


class Conversation(SizedOnce, VerticalScroll, can_focus=False):
    """The column of entries. It follows what comes in only while its end is in view."""

    def __init__(self) -> None:
        super().__init__(id="conversation")

    def has_grown(self) -> None:
        self._follow()

    def on_resize(self) -> None:
        self._follow()

    def _follow(self) -> None:
        """Keep the end in view once there is more than the screen holds: what is short stays at the top."""
        is_long = self.virtual_size.height > self.container_size.height
        if is_long != self.is_anchored:
            self.anchor(is_long)
            if not is_long:
                self.scroll_target_y = self.scroll_y = 0

    @property
    def entries(self) -> list[Entry]:
        return list(self.query(Entry))

    @property
    def answers(self) -> list[Answer]:
        return list(self.query(Answer))

    async def put(self, *widgets: Static | Entry) -> None:
        """Add at the end. What the person did shows at once; a reply only where the end is in view."""
        await self.query("#welcome").remove()
        await self.mount(*widgets)
        if not all(isinstance(widget, Answer) for widget in widgets):
            self.scroll_end(animate=False)

    async def welcome(self, memories: int) -> None:
        """What an empty conversation says."""
        if self.entries:
            return
        await self.query("#welcome").remove()
        known = f"{count_of(memories)} to recall from" if memories else "Nothing is remembered yet"
        text = (
            f"{known}.\n\nWhat you say here is remembered, shown with each reply that uses it, "
            "and forgotten for good when you say so."
        )
        await self.mount(Static(text, id="welcome", markup=False))

    async def show(self, memories: "Sequence[Memory]") -> None:
        """The exchanges of a session in place of what is there."""
        await self.remove_children()
        widgets: list[Entry] = []
        for memory in memories:
            widgets.append(Said(memory.text, memory.id))
            answer = Answer(memory.reply or "", memory.id)
            if memory.status == "interrupted":
                answer.mark = "interrupted"
            elif not memory.reply:
                answer.mark = "reply forgotten" if memory.status == "complete" else ""
            if memory.reply or answer.mark:
                widgets.append(answer)
        await self.mount(*widgets)
        self._follow()
        self.scroll_end(animate=False)

    def walk(self, by: int) -> bool:
        """Move to the entry before or behind the one in focus; False where there is none."""
        entries = self.entries
        here = next((at for at, entry in enumerate(entries) if entry.has_focus), None)
        at = len(entries) - 1 if here is None else here + by
        if (here is None and by > 0) or not 0 <= at < len(entries):
            return at < 0
        entries[at].focus()
        return True

    def walk_to(self, at: int) -> None:
        """Move to an entry by its place."""
        entries = self.entries
        if entries:
            entries[max(at, -len(entries)) if at < 0 else min(at, len(entries) - 1)].focus()

    def said_of(self, entry: Entry) -> "Said | None":
        """The message that an entry is, or answers."""
        entries = self.entries
        at = entries.index(entry) if entry in entries else -1
        return next((each for each in reversed(entries[: at + 1]) if isinstance(each, Said)), None)

    async def forgotten(self, ids: frozenset[str], rewritten: dict[str, str]) -> None:
        """Take what was forgotten off the screen, and mark the replies that lost their words."""
        for entry in self.entries:
            if entry.exchange_id in rewritten:
                new_id = rewritten[entry.exchange_id]
                if isinstance(entry, Answer):
                    entry.forget_words("reply forgotten with the memory it was made from")
                entry.exchange_id = new_id
            elif entry.exchange_id in ids:
                if isinstance(entry, Answer):
                    await entry.remove()
                else:
                    await self.mount(Card("forgotten"), before=entry)
                    await entry.remove()
        for answer in self.answers:
            left = [each for each in answer.memories if each.memory.id not in ids]
            if len(left) < len(answer.memories):
                if answer.incognito:  # only the screen holds its words
                    answer.forget_words("reply forgotten with the memory it was made from")
                    continue
                gone = len(answer.memories) - len(left)
                answer.show_memories(left)
                answer.set_mark(f"{count_of(gone)} forgotten since")


def count_of(number: int) -> str:
    return f"{number:,} {'memory' if number == 1 else 'memories'}"


def last_code(markdown: str) -> str:
    """The last fenced block of a Markdown text; all of the text where there is none."""
    blocks = markdown.split("```")
    if len(blocks) < 3:
        return markdown
    block = blocks[len(blocks) - 2 if len(blocks) % 2 else len(blocks) - 3]
    return block.partition("\n")[2] or block
