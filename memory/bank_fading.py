"""What the bank does about KV that outgrows its budget: it fades, and comes back when it is recalled."""

from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from mnemos.errors import NotFoundError
from mnemos.memory.bank_sessions import DEFAULT_NAMESPACE
from mnemos.memory.convert import to_memory

if TYPE_CHECKING:
    from mnemos.memory.records import Memory
    from mnemos.store.fading import Faded
    from mnemos.store.store import Store


class FadingBank:
    """A part of `MemoryBank`."""

    store: "Store"

    def kv_budget(self, namespace: str = DEFAULT_NAMESPACE) -> int | None:
        """Bytes of KV that the namespace may keep on the disk; None where there is no limit."""
        return self.store.kv_budget(namespace)

    def set_kv_budget(self, budget_bytes: int | None, *, namespace: str = DEFAULT_NAMESPACE) -> "Faded":
        """Set how much KV a namespace may keep; None takes the limit away. What no longer fits fades at once.

        Nothing is forgotten: a memory that has faded is found as before, and read again by the model when it
        is recalled. Raises `UsageError` for what is no number of bytes.
        """
        self.store.set_kv_budget(namespace, budget_bytes)
        return self.store.fade(namespace)

    def fade(self, *, namespace: str = DEFAULT_NAMESPACE, budget_bytes: int | None = None) -> "Faded":
        """Let KV fade until the namespace keeps its budget, or once the one given here."""
        return self.store.fade(namespace, budget_bytes=budget_bytes)

    def next_to_fade(
        self, namespace: str = DEFAULT_NAMESPACE, *, limit: int | None = None
    ) -> "Sequence[Memory]":
        """The vivid memories that may fade, in the order they would; pinned ones never do."""
        found: list[Memory] = []
        for memory_id in self.store.fading_order(namespace)[:limit]:
            with suppress(NotFoundError):  # forgotten meanwhile
                found.append(to_memory(self.store.get(namespace, memory_id)))
        return found
