"""The memories behind the replies on the screen: shown, forgotten, pinned, left out, inspected."""

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING

from textual import events, work

from mnemos.errors import MnemosError
from mnemos.tui.app import history
from mnemos.tui.app.conversation import Answer
from mnemos.tui.app.memories_panel import MemoriesPanel
from mnemos.tui.app.places import Places

if TYPE_CHECKING:
    from textual.worker import Worker

    from mnemos.memory.records import ForgetPlan, Memory, Receipt
    from mnemos.tui.app.engine import Loaded, Talker
    from mnemos.tui.app.turns import Turns


class Remembering(Places):
    """What the chat does with memories."""

    loaded: "Loaded | None"
    turns: "Turns"

    def talker(self) -> "Talker":
        """The agent of the session."""
        raise NotImplementedError

    def show_title(self) -> "Worker[None]":
        """The line at the top: the session's name, and whose memory it is."""
        raise NotImplementedError

    async def action_why(self) -> None:
        """The memories of the latest reply."""
        answer = next((each for each in reversed(self.conversation.answers) if each.count is not None), None)
        if answer is None:
            self.notify("there is no reply to explain yet")
        elif not answer.has_memories:
            self.notify("no memory was used for the last reply")
        else:
            await self._show_memories(answer)

    async def on_answer_opened(self, event: Answer.Opened) -> None:
        await self._show_memories(event.answer)

    async def _show_memories(self, answer: Answer) -> None:
        made_with = answer.count or 0
        try:
            # Read from the bank, so that what was forgotten since is not shown.
            found, titles = await asyncio.to_thread(
                history.why, self.bank, self.namespace, answer.exchange_id or answer.memories
            )
        except MnemosError:
            answer.forget_words("forgotten since")
            return
        await self.panel.show(answer.exchange_id, found, titles, made_with)

    def on_memories_panel_closed(self) -> None:
        self.panel.display = False
        self.prompt.area.focus()

    @work(exclusive=True, group="memory")
    async def on_memories_panel_acted(self, event: MemoriesPanel.Acted) -> None:
        memory = event.memory
        match event.action:
            case "forget":
                await self.forget(ids=[memory.id])
            case "pin":
                changed = await self.change("unpin" if memory.pinned else "pin", memory.id)
                if changed is not None and self.panel.current is not None:
                    self.panel.current.refresh_with(changed)
            case "copy":
                self.copy(memory.text)
            case "without":
                await self._without(memory)
            case "inspect":
                self.inspect(f"id:{memory.id}")

    async def _without(self, memory: "Memory") -> None:
        """Show the reply of the panel as it would be without a memory."""
        exchange_id = self.panel.exchange_id
        if exchange_id is None:
            self.notify("this reply was made incognito, so there is nothing stored to make it again from")
        elif self.loaded is None or self.turns.is_running:
            self.notify("a reply can be made again once the model is free")
        else:
            try:
                exchange = await asyncio.to_thread(self.bank.get, exchange_id, namespace=self.namespace)
                talker = await asyncio.to_thread(self.talker)
            except MnemosError as error:
                self.tell_error(error)
                return
            from mnemos.tui.app.what_if import WhatIf

            await self.push_screen_wait(WhatIf(talker, exchange, memory, len(self.panel.cards)))

    async def on_forgotten(self, plan: "ForgetPlan", receipt: "Receipt") -> None:
        ids = frozenset(receipt.forgotten) | {memory.id for memory in plan.selected}
        with self.batch_update():  # at once: what is told to be forgotten isn't shown beside
            self.panel.display = False
            await self.conversation.forgotten(ids, dict(receipt.rewritten))
        gone = {memory.text for memory in plan.selected}
        self.prompt.history = [text for text in self.prompt.history if text not in gone]
        if len(self.screen_stack) == 1:
            self.prompt.area.focus()
        self.show_title()

    def on_app_focus(self, _event: events.AppFocus) -> None:
        self.refresh_marks()  # another program may have forgotten something meanwhile

    @work(exclusive=True, group="marks")
    async def refresh_marks(self) -> None:
        """Read again which memories the replies on the screen were made with."""
        if not self.is_open:
            return
        ids = [answer.exchange_id for answer in self.conversation.answers if answer.exchange_id]
        with suppress(MnemosError):
            found = await asyncio.to_thread(history.provenance, self.bank, self.namespace, ids)
            for answer in self.conversation.answers:
                if answer.exchange_id in found:
                    history.mark(answer, found[answer.exchange_id])

    def action_inspect(self) -> None:
        self.inspect("")

    def inspect(self, filter_text: str) -> None:
        """Open the inspector."""
        from mnemos.tui.app.inspector import Inspector

        if not self.is_open:
            self.notify("the bank is still being opened")
        elif not isinstance(self.screen, Inspector):
            self.push_screen(Inspector(filter_text))

    async def leave_inspector(self) -> None:
        self.pop_screen()
