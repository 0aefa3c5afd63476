"""What the app talks to: a bank that is opened and a model that is loaded behind the screen."""

import os
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from mnemos.errors import BankLockedError, BankReadOnlyError

if TYPE_CHECKING:
    from mnemos.agent.events import Event
    from mnemos.memory.bank import MemoryBank

Ask = Callable[[], str]  # a passphrase, from the person
Tell = Callable[[str], None]
Progress = Callable[[str, int, int], None]  # (what is done, done, total); raises to give up


class Opener(Protocol):
    """Opens the app's bank."""

    def __call__(
        self, ask: Ask, tell: Tell, *, read_only: bool = False
    ) -> "AbstractContextManager[MemoryBank]": ...


class Talker(Protocol):
    """What a conversation needs of an agent; `mnemos.agent.agent.Agent` is one."""

    @property
    def session_id(self) -> str: ...

    def stream(
        self, text: str, *, incognito: bool = False, exclude: Collection[str] = ()
    ) -> "AsyncIterator[Event]": ...

    def what_if(self, exchange_id: str, *, without: Collection[str]) -> "AsyncIterator[Event]": ...


@dataclass(frozen=True)
class Loaded:
    """A model that is ready: its name, agents by namespace and session (None: a new one), and what there is
    to say.
    """

    name: str
    agents: "Callable[[str, str | None], Talker]"
    note: str | None = None


Loader = Callable[["MemoryBank", str | None, Progress], Loaded]


class Stopped(Exception):
    """The app is closing, so what runs behind it gives up."""


def opener_of(path: Path | None, namespace: str, *, create: bool) -> Opener:
    """How the app opens its bank."""

    def opened(ask: Ask, tell: Tell, *, read_only: bool = False) -> "AbstractContextManager[MemoryBank]":
        from mnemos.tui.opening import open_bank

        return open_bank(
            path, namespace, create=create and not read_only, read_only=read_only, ask=ask, tell=tell
        )

    return opened


def loader_of(namespace: str, max_tokens: int | None) -> Loader:
    """How the app loads a model: fetched on first use, and what is new in the bank encoded."""

    def load(bank: "MemoryBank", name: str | None, progress: Progress) -> Loaded:
        os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")  # Triton warns where it is unset
        from mnemos.attention import models
        from mnemos.tui.ask import make_agent

        model = models.load(name, on_progress=lambda done, total: progress("fetching the model", done, total))
        progress("encoding what is new", 0, 0)
        with suppress(BankLockedError, BankReadOnlyError):  # nobody waits for it: the next turn catches up
            bank.encode_pending(
                model,
                namespace=namespace,
                on_progress=lambda done, total: progress("encoding what is new", done, total),
            )
        progress("getting ready", 0, 0)
        bank.recaller(model).warm()
        note = (
            None
            if model.calibration.calibrated
            else f"{model.name} is not calibrated; it reads with safe defaults"
        )
        return Loaded(
            model.name, lambda name, session: make_agent(bank, name, model, session, max_tokens), note
        )

    return load
