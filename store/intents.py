"""What an erase set out to do, written down before anything is touched: ids and places, no words."""

import json
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, insert, select, text, update

from mnemos.errors import StalePlanError
from mnemos.store import branches, catalog, catalog_schema, editing, shards, words
from mnemos.store.core import Core, Namespace
from mnemos.store.ids import new_id
from mnemos.store.planning import WHOLE, dependants_of, is_made, token
from mnemos.store.receipts import note
from mnemos.store.records import ErasePlan, MemoryDraft
from mnemos.store.selfcheck import take_stock
from mnemos.store.words import Filter, Row


@dataclass
class Intent:
    """What an erase set out to do; kept in the catalog until its receipt is."""

    id: str
    namespace_id: str
    created_us: int
    body: dict[str, Any]

    @property
    def is_whole(self) -> bool:
        return bool(self.body["whole"])

    @property
    def selected(self) -> list[str]:
        return list(self.body["selected"])

    @property
    def rewritten(self) -> dict[str, str]:
        """Old id to new id, of exchanges whose reply goes and whose user's words stay."""
        return dict(self.body["rewritten"])

    @property
    def edited(self) -> list[str]:
        """Those of the rewritten whose new words are other ones, written before the intent was."""
        return list(self.body.get("edited", ()))

    @property
    def doomed(self) -> list[str]:
        """Ids whose keys, frames and rows go."""
        return [*self.selected, *self.rewritten]

    def save(self, connection: Connection) -> None:
        table = catalog_schema.intents
        body = json.dumps(self.body, separators=(",", ":"))
        connection.execute(update(table).where(table.c.id == self.id).values(body=body))


def pending(core: Core) -> list[Intent]:
    with core.catalog.read() as connection:
        rows = connection.execute(
            select(catalog_schema.intents).order_by(catalog_schema.intents.c.created_us)
        )
        return [Intent(row.id, row.namespace_id, row.created_us, json.loads(row.body)) for row in rows]


def confirm(core: Core, namespace: Namespace, plan: ErasePlan) -> tuple[list[Row], list[Row]]:
    """What the plan showed, if that is still how things are."""
    is_whole = plan.token.startswith(WHOLE)
    rows: list[Row] = []
    dependants: list[Row] = []
    if not is_whole:
        with namespace.database.read() as connection:
            rows = words.select_rows(connection, Filter(ids=[record.id for record in plan.selected]))
        if plan.cascade == "closure":
            dependants = dependants_of(namespace, [row.id for row in rows])
    if token(core, namespace, rows, dependants, plan.cascade, is_whole=is_whole) != plan.token:
        raise StalePlanError("What the plan showed has changed since; plan again and look at it anew.")
    return rows, dependants


def intend(
    core: Core,
    namespace: Namespace,
    plan: ErasePlan,
    rows: list[Row],
    dependants: list[Row],
    edit: editing.Edit | None = None,
) -> Intent:
    is_whole = plan.token.startswith(WHOLE)
    made = [row for row in dependants if is_made(row)]
    dependants = [row for row in dependants if not is_made(row)]
    selected = [*(record.id for record in plan.selected), *(row.id for row in made)]
    body: dict[str, Any] = {
        "whole": is_whole,
        "cascade": plan.cascade,
        "selected": selected,
        "rewritten": {row.id: new_id() for row in dependants},
    }
    if edit is not None:
        body["selected"] = [row.id for row in made]
        body["edited"] = [edit.old.id]
        body["rewritten"][edit.old.id] = edit.new.id
        rows, dependants = [], [*rows, *dependants]
    rows = [*rows, *made]
    if not is_whole:
        body |= _sessions_to_clear(namespace, rows, dependants)
        body["blocks"] = shards.blocks_of(namespace, [*body["selected"], *body["rewritten"]])
    intent = Intent(new_id(), namespace.id, catalog.now_us(), body)
    with core.catalog.write() as connection:
        if not is_whole:
            note_places(connection, intent)
        connection.execute(
            insert(catalog_schema.intents).values(
                id=intent.id,
                namespace_id=namespace.id,
                created_us=intent.created_us,
                body=json.dumps(body, separators=(",", ":")),
            )
        )
        if edit is not None:
            edit.record(connection)
        note(connection, "erase" if edit is None else "edit", intent.id, len(selected))
    return intent


def note_places(connection: Connection, intent: Intent) -> None:
    """Notes where the doomed frames lie, while the rows that say so are still there."""
    if intent.is_whole:
        intent.body |= take_stock(catalog.namespace_places(connection, intent.namespace_id))
    else:
        frames = catalog.frames_of(connection, intent.doomed)
        intent.body |= take_stock(
            sorted((frame.segment, frame.start, frame.length, frame.digest) for frame in frames)
        )


def _sessions_to_clear(namespace: Namespace, rows: list[Row], dependants: list[Row]) -> dict[str, list[str]]:
    """Sessions that end with these memories, and those whose title repeats their words."""
    gone: dict[str, int] = {}
    for row in rows:
        if row.session_id is not None:
            gone[row.session_id] = gone.get(row.session_id, 0) + 1
    ended: list[str] = []
    retitled: list[str] = []
    with namespace.database.read() as connection:
        count = text("SELECT count(*) FROM memory WHERE session_id = :id AND erased = 0")
        is_branch = text("SELECT 1 FROM session WHERE id = :id AND parent IS NOT NULL")
        for session_id, taken in gone.items():
            if connection.execute(is_branch, {"id": session_id}).first() is not None:
                continue  # it goes on from what is not its own
            if connection.execute(count, {"id": session_id}).scalar_one() <= taken:
                ended.append(session_id)
        touched = {row.session_id for row in (*rows, *dependants) if row.session_id is not None}
        touched |= branches.descendants(connection, touched)
        for session_id in touched - set(ended):
            titles = [each.title for each in words.sessions(connection, namespace.name, session_id)]
            if any(title and repeats(title, row) for title in titles for row in (*rows, *dependants)):
                retitled.append(session_id)
    return {"ended": sorted(ended), "retitled": sorted(retitled)}


def repeats(title: str, row: Row | MemoryDraft) -> bool:
    """Whether a session's title holds a memory's words."""
    needle = " ".join(title.casefold().rstrip("….").split())
    hay = [" ".join(value.casefold().split()) for value in (row.text, row.reply, row.title) if value]
    return any(needle in value or value in needle for value in hay)


def raise_epoch(core: Core, intent: Intent) -> None:
    if "epoch" not in intent.body:
        with core.catalog.write() as connection:
            intent.body["epoch"] = catalog.raise_epoch(connection)
            intent.save(connection)
    core.forget_keys()
