"""What the store does about KV that outgrows its budget."""

import builtins
from collections.abc import Collection

from mnemos.store import fading
from mnemos.store.core import Core
from mnemos.store.fading import Faded


class FadingStore:
    """A part of `Store`, which has the bank open."""

    _core: Core

    def kv_budget(self, namespace: str) -> int | None:
        """Bytes of KV that a namespace may keep on the disk; None for no limit, or no such namespace."""
        with self._core.reading():
            found = self._core.find(namespace)
            return None if found is None else fading.get_budget(found.database)

    def set_kv_budget(self, namespace: str, budget_bytes: int | None) -> None:
        """Makes the namespace if need be. Nothing fades before `fade` is called. UsageError."""
        with self._core.writing():
            found = self._core.ensure(namespace)
            with found.database.write() as connection:
                fading.set_budget(connection, budget_bytes)

    def fade(self, namespace: str, *, budget_bytes: int | None = None, spare: Collection[str] = ()) -> Faded:
        """Lets KV go until the namespace keeps its budget, or the one given; words and routing keys stay.

        What was neither made nor recalled for longest fades first; pinned memories and `spare` don't.
        """
        with self._core.reading():
            found = self._core.find(namespace)
            return (
                Faded()
                if found is None
                else fading.fade(self._core, found, budget_bytes=budget_bytes, spare=spare)
            )

    def fading_order(self, namespace: str) -> builtins.list[str]:
        """Ids of the vivid memories that may fade, in the order they would."""
        with self._core.reading():
            found = self._core.find(namespace)
            if found is None:
                return []
            with self._core.catalog.read() as connection:
                held = fading.vivid(connection, found.id)
            return fading.order(found, held)

    def kv_sizes(self, namespace: str) -> dict[str, int]:
        """Bytes of KV by memory id, of those that are vivid."""
        with self._core.reading():
            found = self._core.find(namespace)
            if found is None:
                return {}
            with self._core.catalog.read() as connection:
                return fading.vivid(connection, found.id)
