"""What can be done with memories in the inspector: forget, hide, pin, tag, expire, export, copy."""

import asyncio
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

from textual import work
from textual.worker import Worker

from mnemos.errors import MnemosError
from mnemos.tui.app.dialogs import TextDialog
from mnemos.tui.app.pace import PromptScreen
from mnemos.tui.app.table import MemoryTable

if TYPE_CHECKING:
    from mnemos.memory.bank import MemoryBank
    from mnemos.memory.records import Memory
    from mnemos.tui.app.base import MemoryApp


class Acting(PromptScreen):
    """A screen with a table of memories, and what is done with the marked ones."""

    app: "MemoryApp"

    @property
    def table(self) -> MemoryTable:
        raise NotImplementedError

    @property
    def bank(self) -> "MemoryBank":
        return self.app.bank

    def load(self, *, keep: bool = False) -> "Worker[None]":
        """Read anew what is shown."""
        raise NotImplementedError

    @property
    def chosen(self) -> "list[Memory]":
        """The marked memories, or the one under the cursor."""
        current = self.table.current
        return list(self.table.marked.values()) or ([current] if current else [])

    @work(exclusive=True, group="act")
    async def action_forget(self) -> None:
        ids = [memory.id for memory in self.chosen]
        if ids and await self.app.forget(ids=ids):
            self.table.marked.clear()
            self.action_reload()

    def action_reload(self) -> None:
        self.load(keep=True)

    @work(exclusive=True, group="act")
    async def action_flag(self, action: str) -> None:
        """Hide or pin what is not, and the reverse where all of it is."""
        chosen = self.chosen
        held = "hidden" if action == "hide" else "pinned"
        name = f"un{action}" if all(getattr(memory, held) for memory in chosen) else action
        for memory in chosen:
            changed = await self.app.change(name, memory.id)
            if changed is not None:
                self.table.replace(changed)

    @work(exclusive=True, group="act")
    async def action_expire(self) -> None:
        chosen = self.chosen
        if not chosen:
            return
        hint = "12h, 30d, 2w, a date, or nothing: it does not expire"
        text = await self.app.push_screen_wait(TextDialog("When does it expire?", hint=hint))
        if text is None:
            return
        for memory in chosen:
            changed = await self.app.expire(memory.id, text.strip())
            if changed is None:
                return
            self.table.replace(changed)

    @work(exclusive=True, group="act")
    async def action_tag(self) -> None:
        """The tags that all chosen memories have can be changed; what only some have stays with those."""
        chosen = self.chosen
        if not chosen:
            return
        common = [tag for tag in chosen[0].tags if all(tag in memory.tags for memory in chosen)]
        question = "Tags" if len(chosen) == 1 else f"Tags of {len(chosen):,} memories"
        hint = "parted by commas"
        if any(set(memory.tags) - set(common) for memory in chosen):
            hint += "; tags that only some of them have are kept"
        text = await self.app.push_screen_wait(TextDialog(question, ", ".join(common), hint=hint))
        if text is None:
            return
        wanted = list(dict.fromkeys(tag for part in text.split(",") if (tag := part.strip())))
        for memory in chosen:
            own = [tag for tag in memory.tags if tag not in common]
            changed = await self.app.tag(memory.id, [*own, *(tag for tag in wanted if tag not in own)])
            if changed is None:
                return
            self.table.replace(changed)

    @work(exclusive=True, group="act")
    async def action_export(self) -> None:
        """To an archive that `mnemos memory import` reads, of mode 0600."""
        ids = [memory.id for memory in self.chosen]
        if not ids:
            return
        noun = "this memory" if len(ids) == 1 else f"{len(ids):,} memories"
        hint = "an archive, readable by you alone; what you forget later stays in it"
        named = f"memories-{date.today():%Y-%m-%d}.mnemos"
        answer = await self.app.push_screen_wait(TextDialog(f"Export {noun} to", named, hint=hint))
        if not answer or not answer.strip():
            return
        path = Path(answer.strip()).expanduser()
        try:
            written = await asyncio.to_thread(self._export, path, ids)
        except MnemosError as error:
            self.app.tell_error(error)
            return
        self.notify(f"{written:,} exported to {path}", markup=False)

    def _export(self, path: Path, ids: list[str]) -> int:
        from mnemos.memory.archiving import Chosen

        chosen = Chosen(ids=ids, include_hidden=True)
        return self.bank.export(path, namespaces=[self.app.namespace], chosen=chosen).memories

    def action_copy(self) -> None:
        memory = self.table.current
        if memory is not None:
            self.app.copy(memory.text if not memory.reply else f"{memory.text}\n\n{memory.reply}")
