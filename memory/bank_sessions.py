"""What the bank does about sessions: conversations that can be listed, gone on with, branched and deleted."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, cast

from mnemos.errors import UsageError
from mnemos.memory.convert import to_memory
from mnemos.memory.records import ForgetPlan, Memory, Receipt
from mnemos.store.records import SessionRecord

if TYPE_CHECKING:
    from mnemos.memory.bank import MemoryBank
    from mnemos.store.store import Store

DEFAULT_NAMESPACE = "default"


class SessionBank:
    """A part of `MemoryBank`. Sessions go by their id or an unambiguous prefix of it."""

    store: "Store"

    def create_session(self, namespace: str = DEFAULT_NAMESPACE, title: str | None = None) -> SessionRecord:
        return self.store.create_session(namespace, title)

    def sessions(self, namespace: str = DEFAULT_NAMESPACE) -> Sequence[SessionRecord]:
        """Latest change first."""
        return self.store.sessions(namespace)

    def get_session(self, session_id: str, *, namespace: str = DEFAULT_NAMESPACE) -> SessionRecord:
        """Raises `NotFoundError`, `AmbiguousIdError`."""
        return self.store.get_session(namespace, session_id)

    def rename_session(
        self, session_id: str, title: str, *, namespace: str = DEFAULT_NAMESPACE
    ) -> SessionRecord:
        found = self.store.get_session(namespace, session_id)
        self.store.rename_session(namespace, found.id, title)
        return self.store.get_session(namespace, found.id)

    def history(
        self,
        session_id: str,
        *,
        namespace: str = DEFAULT_NAMESPACE,
        limit: int | None = None,
        include_hidden: bool = False,
    ) -> list[Memory]:
        """The latest exchanges of a session by its whole id, oldest first; a branch has those before it."""
        records = self.store.history(namespace, session_id, limit=limit, include_hidden=include_hidden)
        return [to_memory(record) for record in records]

    def branch_session(
        self,
        session_id: str,
        *,
        at: str | None = None,
        before: str | None = None,
        title: str | None = None,
        namespace: str = DEFAULT_NAMESPACE,
    ) -> SessionRecord:
        """A new session that goes on from another as it was at the exchange `at`, as it was before the
        exchange `before`, or as it is now.

        Nothing is copied: an exchange of the parent that is forgotten is gone from the branch, too. Raises
        `UsageError` for an exchange that is not of the session, and for both.
        """
        if at is not None and before is not None:
            raise UsageError("a branch begins at an exchange or before one; name one of the two")
        return self.store.branch_session(namespace, session_id, at=at, before=before, title=title)

    def delete_session(
        self,
        session_id: str,
        *,
        with_memories: bool,
        namespace: str = DEFAULT_NAMESPACE,
        plan: ForgetPlan | None = None,
        on_step: Callable[[str], None] | None = None,
    ) -> Receipt | None:
        """Take a session away, and erase what was said in it if `with_memories`; the receipt of that erase.

        Without them its memories stay and are recalled as before, and branches keep the past they share with
        it. With them, what branches shared is gone, too, and so are replies that hang on it. `plan` is the
        plan of forgetting the session, if it was shown to somebody. Raises as `forget` does.
        """
        found = self.store.get_session(namespace, session_id)
        if not with_memories:
            if plan is not None:
                raise UsageError("a session that leaves its memories takes no plan of forgetting them")
            self.store.close_session(namespace, found.id)
            return None
        bank = cast("MemoryBank", self)
        if plan is None:
            plan = bank.plan_forget(namespace=namespace, session_id=found.id)
        receipt = bank.forget(plan, on_step=on_step) if plan.selected else None
        self.store.remove_session(namespace, found.id)
        return receipt
