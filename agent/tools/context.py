"""What a tool may know of the turn it is called in, and reach: memories of one namespace."""

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from mnemos.agent.recording import TurnRecord
from mnemos.agent.tools.results import cut, storable
from mnemos.errors import NotFoundError, UsageError
from mnemos.memory.bank import MemoryBank
from mnemos.memory.records import ForgetPlan, Kind, Memory, RecalledMemory, Receipt
from mnemos.store.records import MemoryDraft, UseRecord
from mnemos.store.selectors import Condition

_ARGUMENT_CHARS = 2000  # most of a call's arguments that its memory repeats
_SHORTEST = 3  # characters of words to forget by: fewer match too much


class TurnMemories:
    """The bank as the tools of one turn reach it: bound to the turn's namespace, which no argument names.

    `made_with()` gives the memories that the turn has had in view so far; what a tool writes depends on them.
    """

    def __init__(
        self,
        bank: MemoryBank,
        record: TurnRecord,
        *,
        exchange_id: str,
        made_with: Callable[[], Sequence[UseRecord]],
        where: Condition | None = None,
    ) -> None:
        """`where` says what may be recalled."""
        self.namespace = record.namespace
        self.recalled: dict[str, RecalledMemory] = {}  # by id, what tools found in this turn
        self.erased: set[str] = set()  # ids that tools erased or rewrote in this turn
        self._bank, self._record, self._where = bank, record, where
        self._exchange_id = exchange_id
        self._made_with = made_with
        self.returned: list[Memory] = []  # results that became memories

    @property
    def session_id(self) -> str | None:
        return self._record.session_id

    def remember(self, text: str) -> Memory | None:
        """A note in the model's words; forgetting what it was made from takes it, too. None where the turn is
        not kept or a policy drops it.
        """
        if self.has_forgotten:
            raise UsageError("this turn forgot what it was made from, so nothing more of it is kept")
        return self._write(text, kind="note", title=None, source="tool:remember")

    def keep_result(self, name: str, arguments: Mapping[str, Any], result: str) -> Memory | None:
        """What a tool returned, as a memory of its own; None where the turn is not kept, a policy drops it,
        or the turn forgot what it was made from.
        """
        if self.has_forgotten:
            return None
        told = ", ".join(f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in arguments.items())
        text = storable(f"{name}({cut(told, _ARGUMENT_CHARS)}) returned: {result}")
        kept = self._write(text, kind="tool", title=name, source=f"tool:{name}")
        if kept is not None:
            self.returned.append(kept)
        return kept

    def _write(self, text: str, *, kind: Kind, title: str | None, source: str) -> Memory | None:
        draft = MemoryDraft(
            text=text,
            kind=kind,
            speaker="Tool" if kind == "tool" else "Assistant",
            title=title,
            source=source,
            session_id=self.session_id,
            uses=tuple(self._made_with()),
        )
        return self._record.remember(draft)

    @property
    def has_forgotten(self) -> bool:
        """Whether tools erased something that this turn was made with."""
        return any(use.memory_id in self.erased for use in self._made_with())

    def recall(self, query: str, limit: int) -> Sequence[RecalledMemory]:
        """The best memories for a query; the reply depends on them from now on."""
        found = self._bank.search(query, namespace=self.namespace, limit=limit + 1, where=self._where)
        found = [recalled for recalled in found if recalled.memory.id != self._exchange_id][:limit]
        self.recalled |= {recalled.memory.id: recalled for recalled in found}
        return found

    def plan_forget(self, what: str) -> ForgetPlan | None:
        """What forgetting a memory by its id, or all that hold these words, would erase; None for nothing.

        The message of this turn is never among them. Raises `UsageError` in a turn that keeps nothing.
        """
        if not self._record.is_kept:
            raise UsageError("this turn changes nothing in memory")
        ids = self._ids_of(what.strip())
        return self._bank.plan_forget(namespace=self.namespace, ids=ids) if ids else None

    def forget(self, plan: ForgetPlan) -> Receipt:
        receipt = self._bank.forget(plan)
        self.erased |= {*receipt.forgotten, *receipt.rewritten}
        return receipt

    def _ids_of(self, what: str) -> list[str]:
        with suppress(NotFoundError, UsageError):  # not an id
            found = self._bank.get(what, namespace=self.namespace).id
            return [found] if found != self._exchange_id else []
        if len(what) < _SHORTEST:
            raise UsageError(f"give an id, or at least {_SHORTEST} characters of the memory's words")
        matching = self._bank.list(self.namespace, matching=what, include_hidden=True)
        return [memory.id for memory in matching if memory.id != self._exchange_id]


@dataclass(frozen=True, slots=True)
class ToolContext:
    """Given to a tool's parameter of this type; the model doesn't see that parameter."""

    call_id: str
    memories: TurnMemories

    @property
    def namespace(self) -> str:
        return self.memories.namespace

    @property
    def session_id(self) -> str | None:
        return self.memories.session_id
