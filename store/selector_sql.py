"""Conditions as SQL over the `memory` table. Every piece is true or false, never null, so `NOT` is exact."""

import json
from typing import Any

from sqlalchemy import Connection

from mnemos.errors import InvalidSelectorError
from mnemos.store import words
from mnemos.store.selectors import (
    Among,
    And,
    Before,
    Condition,
    Ids,
    Like,
    Marked,
    Matching,
    Not,
    OfKind,
    Or,
    Session,
    Since,
    Source,
    Tag,
    conditions,
    replaced,
)

_SEARCHED = ("text", "reply", "title", "source")


def resolved(connection: Connection, root: Condition) -> Condition:
    """With whole ids for prefixes. NotFoundError, AmbiguousIdError, InvalidSelectorError."""

    def whole(node: Condition) -> Condition:
        if isinstance(node, Ids):
            return Among(tuple(dict.fromkeys(words.full_ids(connection, node.ids))))
        if isinstance(node, Session):
            return Session(words.full_session_id(connection, node.id))
        if isinstance(node, Like):
            raise InvalidSelectorError(
                "`like` needs a model: ask the `MemoryBank`, which has one, not the store."
            )
        return node

    list(conditions(root))  # refuses what is too large before it is walked recursively
    return replaced(root, whole)


def to_sql(root: Condition, bound: dict[str, Any]) -> str:
    """The condition over a row of `memory`; its values are added to `bound`. It must be `resolved`."""

    def bind(value: object) -> str:
        name = f"w{len(bound)}"
        bound[name] = value
        return f":{name}"

    def write(node: Condition) -> str:
        if isinstance(node, And):
            return "(" + " AND ".join(write(part) for part in node.parts) + ")"
        if isinstance(node, Or):
            return "(" + " OR ".join(write(part) for part in node.parts) + ")"
        if isinstance(node, Not):
            return f"NOT {write(node.part)}"
        return "(" + _leaf(node, bind) + ")"

    return write(root)


def _leaf(node: Condition, bind: Any) -> str:
    if isinstance(node, Among):
        return f"id IN (SELECT value FROM json_each({bind(json.dumps(node.ids))}))"
    if isinstance(node, Session):
        return f"session_id IS NOT NULL AND session_id = {bind(node.id)}"
    if isinstance(node, Source):
        return f"source IS NOT NULL AND source = {bind(node.path)}"
    if isinstance(node, Since):
        return f"created_us >= {bind(words.to_us(node.moment))}"
    if isinstance(node, Before):
        return f"created_us < {bind(words.to_us(node.moment))}"
    if isinstance(node, Tag):
        return f"EXISTS (SELECT 1 FROM json_each(memory.tags) WHERE value = {bind(node.name)})"
    if isinstance(node, Matching):
        folded = bind(node.text.casefold())
        return " OR ".join(f"contains({column}, {folded})" for column in _SEARCHED)
    if isinstance(node, OfKind):
        return f"kind = {bind(node.kind)}"
    if isinstance(node, Marked):
        return f"{node.mark} = 1"
    raise TypeError(f"no SQL for {type(node).__name__}")
