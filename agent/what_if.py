"""What a turn may see, and an earlier turn asked again without some of its memories."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from mnemos.errors import UsageError
from mnemos.memory.bank import MemoryBank
from mnemos.memory.records import Memory
from mnemos.store.selectors import And, Before, Condition


@dataclass(frozen=True, slots=True)
class Scope:
    """What one turn leaves and sees."""

    incognito: bool = False
    exclude: frozenset[str] = frozenset()  # memories that are neither recalled nor in view
    where: Condition | None = None  # in place of the agent's own recall filter
    past: Sequence[Memory] | None = None  # the exchanges before; None: the session's


def asked_again(
    bank: MemoryBank, namespace: str, exchange_id: str, without: Collection[str], where: Condition | None
) -> tuple[str, Scope]:
    """The message of an exchange, and what there was to see for it but the memories `without`.

    NotFoundError, AmbiguousIdError; UsageError for a memory that is no exchange.
    """
    exchange = bank.get(exchange_id, namespace=namespace)
    if exchange.kind != "exchange":
        raise UsageError(
            f"memory {exchange.id[:8]} is a {exchange.kind}, so nothing was asked there; "
            "`mnemos memory list --where kind:exchange` shows the exchanges"
        )
    excluded = frozenset(bank.get(each, namespace=namespace).id for each in without)
    past: list[Memory] = []
    if exchange.session_id is not None:
        earlier = bank.history(exchange.session_id, namespace=namespace, include_hidden=True)
        at = next((at for at, each in enumerate(earlier) if each.id == exchange.id), 0)
        past = [each for each in earlier[:at] if not each.hidden]
    before = Before(exchange.created_at)
    return exchange.text, Scope(
        incognito=True,
        exclude=excluded | {exchange.id},
        where=before if where is None else And((where, before)),
        past=past,
    )
