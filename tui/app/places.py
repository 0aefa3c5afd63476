"""Where the parts of the chat's screen are."""

from mnemos.tui.app.conversation import Conversation
from mnemos.tui.app.loading import LoadingApp
from mnemos.tui.app.memories_panel import MemoriesPanel
from mnemos.tui.app.prompt import Prompt
from mnemos.tui.app.sidebar import Sidebar
from mnemos.tui.app.status import Status


class Places(LoadingApp):
    """An app whose first screen is the chat."""

    @property
    def conversation(self) -> Conversation:
        return self.screen_stack[0].query_one(Conversation)

    @property
    def prompt(self) -> Prompt:
        return self.screen_stack[0].query_one(Prompt)

    @property
    def status(self) -> Status:
        return self.screen_stack[0].query_one(Status)

    @property
    def panel(self) -> MemoriesPanel:
        return self.screen_stack[0].query_one(MemoriesPanel)

    @property
    def sidebar(self) -> Sidebar:
        return self.screen_stack[0].query_one(Sidebar)
