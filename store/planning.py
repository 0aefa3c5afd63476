"""Which memories an erase would take, and what hangs on them. Nothing is touched here."""

import hashlib
import json
from collections.abc import Iterable, Sequence

from mnemos.errors import InvalidSelectorError
from mnemos.store import catalog, reading, words
from mnemos.store.core import Core, Namespace
from mnemos.store.records import Cascade, ErasePlan, Selector
from mnemos.store.retention import Retention, get_retention, past_ids
from mnemos.store.selector_sql import resolved
from mnemos.store.words import Filter, Row

WHOLE = "n-"  # the token of a plan that takes a whole namespace starts so


def plan_erase(core: Core, selector: Selector, cascade: Cascade) -> ErasePlan:
    """The plan; empty when the selector matches nothing."""
    check_selector(selector)
    namespace = core.get(selector.namespace)
    with namespace.database.read() as connection:
        ids = None
        if selector.ids is not None:
            ids = list(dict.fromkeys(words.full_ids(connection, selector.ids)))
        chosen = Filter(
            ids=ids,
            session_id=selector.session_id,
            tags=selector.tags,
            matching=selector.matching,
            source=selector.source,
            since=selector.since,
            until=selector.until,
            where=None if selector.where is None else resolved(connection, selector.where),
        )
        selected = words.select_rows(connection, chosen)
    return plan_rows(core, namespace, selected, cascade, is_whole=selector.everything)


def plan_expired(core: Core, name: str, limits: Retention | None = None) -> ErasePlan:
    """What has expired or is beyond the namespace's limits, or beyond those given; and the replies that hang
    on it.
    """
    namespace = core.get(name)
    with namespace.database.read() as connection:
        kept = get_retention(connection) if limits is None else limits
        trace_bytes: dict[str, int] = {}
        if kept.max_bytes is not None:
            with core.catalog.read() as rows:
                known = catalog.namespace_memories(rows, namespace.id).values()
            trace_bytes = {memory.id: memory.trace_bytes for memory in known}
        past = past_ids(connection, kept, trace_bytes, catalog.now_us())
        selected = words.select_rows(connection, Filter(ids=past))
    return plan_rows(core, namespace, selected, "closure", is_whole=False)


def plan_rows(
    core: Core, namespace: Namespace, selected: list[Row], cascade: Cascade, *, is_whole: bool
) -> ErasePlan:
    dependants = (
        [] if is_whole or cascade == "none" else dependants_of(namespace, [row.id for row in selected])
    )
    with namespace.database.read() as connection:
        takes_all = bool(selected) and words.holds_just(connection, len(selected))
    touched = [row.id for row in (*selected, *dependants)]
    with core.catalog.read() as connection:
        if is_whole:
            bytes_on_disk = catalog.frame_bytes(connection, namespace.id)
        else:
            bytes_on_disk = sum(frame.length for frame in catalog.frames_of(connection, touched))
    return ErasePlan(
        token=token(core, namespace, selected, dependants, cascade, is_whole=is_whole),
        namespace=namespace.name,
        selected=tuple(reading.records(core, namespace, selected)),
        dependants=tuple(reading.records(core, namespace, dependants)),
        cascade=cascade,
        bytes_on_disk=bytes_on_disk,
        takes_all=takes_all,
    )


def dependants_of(namespace: Namespace, ids: Sequence[str]) -> list[Row]:
    """Replies and memories made while one of these was in view, those made with one of those, and so on."""
    seen = set(ids)
    found: list[Row] = []
    frontier: Iterable[str] = ids
    with namespace.database.read() as connection:
        while frontier:
            fresh = [memory_id for memory_id in words.used_in(connection, frontier) if memory_id not in seen]
            rows = words.select_rows(connection, Filter(ids=fresh))
            rows = [row for row in rows if row.reply is not None or is_made(row)]
            found += rows
            seen.update(fresh)
            frontier = [row.id for row in rows]
    return sorted(found, key=lambda row: row.ordinal)


def is_made(row: Row) -> bool:
    """Whether a dependant has no words of the user's: what a tool returned, a note that the model wrote.

    It is erased with what it was made from; of any other, the reply is.
    """
    return row.kind != "exchange" and row.reply is None


def token(
    core: Core,
    namespace: Namespace,
    selected: Sequence[Row],
    dependants: Sequence[Row],
    cascade: Cascade,
    *,
    is_whole: bool,
) -> str:
    """Changes whenever what the plan shows has changed."""
    if is_whole:
        with namespace.database.read() as connection:
            state: object = [words.batch(connection), words.count(connection)]
    else:
        state = [sorted([row.id, row.batch, row.status] for row in rows) for rows in (selected, dependants)]
    body = json.dumps([core.bank_id, namespace.id, cascade, state], separators=(",", ":"))
    return (WHOLE if is_whole else "m-") + hashlib.sha256(body.encode()).hexdigest()[:40]


def check_selector(selector: Selector) -> None:
    """Raises InvalidSelectorError unless the selector says what to take."""
    fields = (
        selector.ids,
        selector.matching,
        selector.session_id,
        selector.source,
        selector.tags,
        selector.since,
        selector.until,
        selector.where,
    )
    is_set = [field for field in fields if field is not None]
    if selector.everything and is_set:
        raise InvalidSelectorError(
            "A selector takes everything or something: drop `everything` or the other conditions."
        )
    if not selector.everything and not is_set:
        raise InvalidSelectorError(
            "The selector selects by nothing. Give ids, words, a session, a source, tags or times."
        )
    if any(hasattr(field, "__len__") and len(field) == 0 for field in is_set):
        raise InvalidSelectorError("A condition of the selector is empty; leave it out or fill it in.")
    since, until = selector.since, selector.until
    if since is not None and until is not None and words.to_us(since) >= words.to_us(until):
        raise InvalidSelectorError("The selector's `since` is not before its `until`.")
