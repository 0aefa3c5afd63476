"""The operations of `bench_soak`: one side chooses them at random, the other does them and gets killed."""

import json
import os
import random
import signal
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

from mnemos.store.erasing import STEPS
from mnemos.store.keys import KeyProvider
from mnemos.store.records import MemoryDraft, Selector, TraceDraft, UseRecord
from mnemos.store.soak_truth import Held, Operation, Result, Space
from mnemos.store.store import Store

NAMESPACES = ("ada", "ada/work", "bob")
ERASING = ("erase", "wipe", "sweep")
CAN_COMPACT = hasattr(Store, "compact")
_PAST = datetime(2020, 1, 1, tzinfo=UTC)
_MOST = 300  # memories of a namespace, from where on it is thinned out
_LETTERS = "bcfhjkmnpqrtvwxz"  # no vowels, no endings: the stemmer leaves such words alone
WORD_CHARS = 14
PART_CHARS = WORD_CHARS // 2 + 1  # an index may share the first letters of two words
_TAGS = 12
_WEIGHTS = {
    "add": 34,
    "complete": 14,
    "trace": 12,
    "flag": 8,
    "session": 4,
    "rename": 2,
    "erase": 18,
    "wipe": 0.5,
    "sweep": 2,
    "reclaim": 1,
    "reopen": 2.5,
    "compact": 1.5 if CAN_COMPACT else 0,
}


class Chooser:
    """Makes operations that can be carried out on what the truth holds."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self._parts: set[str] = set()

    def word(self) -> str:
        """A word of which no part of `PART_CHARS` letters occurs in any other one."""
        while True:
            word = "".join(self._chance.choices(_LETTERS, k=WORD_CHARS))
            parts = {word[at : at + PART_CHARS] for at in range(WORD_CHARS - PART_CHARS + 1)}
            if self._parts.isdisjoint(parts):
                self._parts |= parts
                return word

    def choose(self, spaces: dict[str, Space]) -> Operation:
        name = self._chance.choice(NAMESPACES)
        space = spaces[name]
        kinds, weights = zip(*_WEIGHTS.items(), strict=True)
        kind = self._chance.choices(kinds, weights)[0]
        if len(space.held) > _MOST and self._chance.random() < 0.1:
            kind = "erase"
        make: Callable[[Space], dict[str, Any] | None] | None = getattr(self, f"_{kind}", None)
        fields = {} if make is None else make(space)
        if fields is None:
            kind, fields = "add", self._add(space)
        return {"do": kind, "namespace": name, **fields}

    def _add(self, space: Space) -> dict[str, Any]:
        count = self._chance.choice((1, 1, 1, 2, 5, 12))
        return {"drafts": [self._draft(space) for _ in range(count)]}

    def _draft(self, space: Space) -> dict[str, Any]:
        chance = self._chance
        is_exchange = chance.random() < 0.4
        known = [held.content_key for held in space.held.values() if held.content_key is not None]
        key = self.word() if chance.random() < 0.2 else None
        return {
            "text": " ".join(self.word() for _ in range(chance.choice((1, 3, 40)))),
            "kind": "exchange" if is_exchange else "note",
            "status": "open" if is_exchange else "complete",
            "tags": [f"t{number}" for number in chance.sample(range(_TAGS), chance.randrange(3))],
            "session_id": chance.choice([None, None, *space.sessions]),
            "content_key": chance.choice(known) if known and chance.random() < 0.05 else key,
            "is_expired": chance.random() < 0.03,
        }

    def _complete(self, space: Space) -> dict[str, Any] | None:
        asked = [held for held in space.held.values() if held.kind == "exchange"]
        if not asked:
            return None
        held = self._chance.choice(asked)
        others = [one.id for one in space.held.values() if one is not held]
        uses = self._chance.sample(others, min(len(others), self._chance.randrange(4)))
        return {"id": held.id, "reply": f"{self.word()} {self.word()}", "uses": uses}

    def _trace(self, space: Space) -> dict[str, Any] | None:
        chosen = self._some(space, 8)
        sizes = (16, 700, 4000)
        traces = [[held.id, self._chance.randbytes(self._chance.choice(sizes)).hex()] for held in chosen]
        return {"traces": traces} if chosen else None

    def _flag(self, space: Space) -> dict[str, Any] | None:
        chosen = self._some(space, 1)
        flags = {"pinned": self._chance.random() < 0.5, "hidden": self._chance.random() < 0.3}
        return {"id": chosen[0].id, **flags} if chosen else None

    def _session(self, _space: Space) -> dict[str, Any]:
        return {"title": f"talk {self.word()}"}

    def _rename(self, space: Space) -> dict[str, Any] | None:
        if not space.sessions:
            return None
        return {"id": self._chance.choice(list(space.sessions)), "title": f"talk {self.word()}"}

    def _erase(self, space: Space) -> dict[str, Any] | None:
        if not space.held:
            return None
        chance = self._chance
        cascade = "none" if chance.random() < 0.3 else "closure"
        way = chance.random()
        if way < 0.3 or len(space.held) > _MOST:
            tag = f"t{chance.randrange(_TAGS)}"
            doomed = [held.id for held in space.held.values() if tag in held.tags]
            if doomed:
                return {"by": {"tags": [tag]}, "ids": doomed, "cascade": cascade}
        if way < 0.5 and space.sessions:
            session_id = chance.choice(list(space.sessions))
            doomed = [held.id for held in space.held.values() if held.session_id == session_id]
            if doomed:
                return {"by": {"session_id": session_id}, "ids": doomed, "cascade": cascade}
        if way < 0.7:
            held = chance.choice(list(space.held.values()))
            return {"by": {"matching": held.text.split()[0].upper()}, "ids": [held.id], "cascade": cascade}
        doomed = [held.id for held in self._some(space, 5)]
        return {"by": {"ids": doomed}, "ids": doomed, "cascade": cascade}

    def _wipe(self, space: Space) -> dict[str, Any] | None:
        return {} if space.held else None

    def _sweep(self, _space: Space) -> dict[str, Any]:
        return {"cascade": "closure"}

    def _some(self, space: Space, most: int) -> list[Held]:
        held = list(space.held.values())
        return self._chance.sample(held, min(len(held), self._chance.randint(1, most)))


# -- the side that gets killed


def serve(bank: Path, keys: KeyProvider | None, asked: int, told: int) -> NoReturn:
    """Opens the bank and does what it is asked, a JSON line each, until the end of the file descriptor
    `asked`.

    A line on `told` acknowledges that the bank is open, and each operation after it is durable.
    """
    code = 1
    try:
        store = Store.open(bank, keys=keys)
        _tell(told, {})
        with os.fdopen(asked, encoding="ascii") as lines:
            for line in lines:
                operation = json.loads(line)
                try:
                    result = perform(store, operation)
                    if operation["do"] == "reopen":
                        store.close()
                        store = Store.open(bank, keys=keys)
                except Exception as error:  # told to the parent, which counts it as a failure
                    result = {"error": f"{operation['do']}: {type(error).__name__}: {error}"}
                _tell(told, result)
        store.close()
        code = 0
    finally:
        os._exit(code)


def _tell(told: int, result: Result) -> None:
    data = json.dumps(result).encode("ascii") + b"\n"
    while data:
        data = data[os.write(told, data) :]


def perform(store: Store, operation: Operation) -> Result:
    """Carries one operation out; `die_at` names the step of an erase after which the process kills itself."""
    kind, name = operation["do"], operation["namespace"]
    if kind == "add":
        return {
            "ids": [record.id for record in store.add(name, [_draft(one) for one in operation["drafts"]])]
        }
    if kind == "complete":
        uses = [UseRecord(one, rank, 1.0 / (1 + rank)) for rank, one in enumerate(operation["uses"])]
        return {"id": store.complete(name, operation["id"], operation["reply"], uses=uses).id}
    if kind == "trace":
        store.put_traces(
            name, [TraceDraft(one, "soak", 1, bytes.fromhex(kv), b"route") for one, kv in operation["traces"]]
        )
    elif kind == "flag":
        store.set_flags(name, operation["id"], pinned=operation["pinned"], hidden=operation["hidden"])
    elif kind == "session":
        return {"id": store.create_session(name, operation["title"]).id}
    elif kind == "rename":
        store.rename_session(name, operation["id"], operation["title"])
    elif kind == "erase":
        plan = store.plan_erase(Selector(name, **operation["by"]), operation["cascade"])
        return _erased(store.erase(plan, on_step=_death(operation.get("die_at"))))
    elif kind == "wipe":
        plan = store.plan_erase(Selector(name, everything=True))
        return _erased(store.erase(plan, on_step=_death(operation.get("die_at"))))
    elif kind == "sweep":
        made = [_erased(receipt) for receipt in store.sweep_expired()]
        return {
            "receipts": [one for erased in made for one in erased["receipts"]],
            "erased": [one for erased in made for one in erased["erased"]],
            "rewritten": {old: new for erased in made for old, new in erased["rewritten"].items()},
        }
    elif kind == "reclaim":
        store.reclaim()
    elif kind == "compact":
        getattr(store, "compact")()  # noqa: B009
    return {}


def _draft(fields: dict[str, Any]) -> MemoryDraft:
    key = fields["content_key"]
    return MemoryDraft(
        fields["text"],
        kind=fields["kind"],
        status=fields["status"],
        tags=fields["tags"],
        session_id=fields["session_id"],
        content_key=None if key is None else key.encode(),
        expires_at=_PAST if fields["is_expired"] else None,
    )


def _erased(receipt: dict[str, Any]) -> Result:
    return {
        "receipts": [receipt["id"]],
        "erased": receipt["erased"],
        "rewritten": receipt["rewritten"],
    }


def _death(step: str | None) -> Callable[[str], None] | None:
    if step is None:
        return None
    assert step in STEPS

    def on_step(reached: str) -> None:
        if reached == step:
            os.kill(os.getpid(), signal.SIGKILL)

    return on_step
