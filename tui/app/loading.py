"""The model's loading behind the screen: in a thread, which tells the app by messages."""

import threading
import time
from typing import TYPE_CHECKING

from textual.message import Message

from mnemos.tui.app.base import MemoryApp
from mnemos.tui.app.engine import Loaded, Loader, Opener, Stopped

if TYPE_CHECKING:
    from mnemos.memory.bank import MemoryBank

_PROGRESS_S = 0.1


class ModelProgress(Message):
    """How far the model's loading is."""

    def __init__(self, what: str, done: int, total: int) -> None:
        super().__init__()
        self.words = f"{what} {done / total:.0%}" if total else what


class ModelReady(Message):
    """A model can answer now."""

    def __init__(self, loaded: Loaded) -> None:
        super().__init__()
        self.loaded = loaded


class ModelFailed(Message):
    """A model could not be loaded."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error


class LoadingApp(MemoryApp):
    """An app whose model is loaded once its bank is open."""

    def __init__(self, opener: Opener, namespace: str, loader: Loader, model: str | None) -> None:
        super().__init__(opener, namespace)
        self._loader, self._model = loader, model
        self._is_loading = True
        self._reported_at = 0.0

    def behind(self, bank: "MemoryBank") -> None:
        self._load(bank, self._model)

    def _load(self, bank: "MemoryBank", name: str | None) -> None:
        try:
            self.post_message(ModelReady(self._loader(bank, name, self._report)))
        except Stopped:
            return
        except Exception as error:
            self.post_message(ModelFailed(error))

    def _report(self, what: str, done: int, total: int) -> None:
        if self.is_closing:
            raise Stopped
        if (now := time.monotonic()) - self._reported_at > _PROGRESS_S or done == total:
            self._reported_at = now
            self.post_message(ModelProgress(what, done, total))

    def load_behind(self, name: str | None) -> None:
        """Load another model, or the same again without a name."""
        self._is_loading = True
        threading.Thread(target=self._load, args=(self.bank, name or self._model), daemon=True).start()
