"""After any sequence of writes and erases a bank equals one that never held what was erased."""

import random
import shutil
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from mnemos.store.keys import KeyFile
from mnemos.store.records import MemoryDraft, MemoryRecord, Selector, TraceDraft, UseRecord
from mnemos.store.soak_operations import CAN_COMPACT, Chooser, perform
from mnemos.store.soak_truth import Space, differences, observe
from mnemos.store.store import Store

NAME = "ada"
SHARED = ("kettle", "harbour", "running", "runs", "blue", "the", "a", "nurse", "boat", "Straße")
QUERIES = (*SHARED, "the blue kettle", "t1", "nurse boat harbour runs", "reply kettle")


class _Wordy(Chooser):
    """Memories that share words, so that each one's score hangs on all the others."""

    def _draft(self, space: Space) -> dict[str, Any]:
        draft = super()._draft(space)
        return draft | {"text": f"{draft['text']} {' '.join(self._chance.choices(SHARED, k=6))}"}

    def _complete(self, space: Space) -> dict[str, Any] | None:
        fields = super()._complete(space)
        return fields and fields | {"reply": f"{fields['reply']} reply {self._chance.choice(SHARED)}"}

    def make(self, kind: str, space: Space) -> dict[str, Any] | None:
        fields = getattr(self, f"_{kind}", lambda _space: {})(space)
        return None if fields is None else {"do": kind, "namespace": NAME, **fields}


class Bank(RuleBasedStateMachine):
    """A bank, the truth about it, and at each check a twin that was given only what is left."""

    def __init__(self) -> None:
        super().__init__()
        shared = Path("/dev/shm")
        self.folder = Path(tempfile.mkdtemp(prefix="mnemos-test-", dir=shared if shared.exists() else None))
        self.keys = KeyFile(self.folder / "key")
        self.truth = Space()

    @initialize(encrypted=st.booleans())
    def open(self, encrypted: bool) -> None:
        self.encrypted = encrypted
        self.store = Store.open(self.folder / "bank", keys=self.keys, encrypted=encrypted)

    def _do(self, kind: str, chance: random.Random) -> None:
        operation = _Wordy(chance).make(kind, self.truth)
        if operation is not None:
            self.truth.apply(operation, perform(self.store, operation))

    chances = st.randoms(use_true_random=False)

    @rule(chance=chances)
    def remember(self, chance: random.Random) -> None:
        self._do("add", chance)

    @rule(chance=chances)
    def converse(self, chance: random.Random) -> None:
        self._do("complete", chance)
        self._do("complete", chance)

    @rule(chance=chances)
    def trace(self, chance: random.Random) -> None:
        self._do("trace", chance)

    @rule(chance=chances)
    def flag(self, chance: random.Random) -> None:
        self._do("flag", chance)

    @rule(chance=chances)
    def session(self, chance: random.Random) -> None:
        self._do(chance.choice(("session", "rename")), chance)

    @rule(chance=chances)
    def forget(self, chance: random.Random) -> None:
        self._do("erase", chance)

    @rule(chance=chances)
    def expire(self, chance: random.Random) -> None:
        self._do("sweep", chance)

    @rule(chance=chances)
    def start_anew(self, chance: random.Random) -> None:
        if chance.random() < 0.2:
            self._do("wipe", chance)

    @rule()
    def reopen(self) -> None:
        self.store.close()
        self.store = Store.open(self.folder / "bank", keys=self.keys)

    @precondition(lambda self: CAN_COMPACT)
    @rule(chance=chances)
    def compact(self, chance: random.Random) -> None:
        self._do("compact", chance)

    @rule()
    def compare(self) -> None:
        assert differences(self.truth, observe(self.store, NAME)) == []
        twin = self.folder / "twin"
        with Store.open(twin, keys=self.keys, encrypted=self.encrypted) as never:
            _write_anew(self.store, never, self.truth)
            shown, wanted = faces(self.store), faces(never)
        shutil.rmtree(twin)
        assert shown == wanted

    def teardown(self) -> None:
        try:
            if hasattr(self, "store"):
                self.compare()
                assert self.store.verify(deep=True).ok
                self.store.close()
        finally:
            shutil.rmtree(self.folder)


def _write_anew(store: Store, never: Store, truth: Space) -> None:
    """What is left of `store`, written into an empty bank as if there had never been more."""
    known = {held.id: held.text for held in truth.held.values()}
    sessions = {
        session_id: never.create_session(NAME, title).id for session_id, title in truth.sessions.items()
    }
    ids: dict[str, str] = {}
    for record in store.list(NAME, include_hidden=True, newest_first=False):
        held = truth.held[record.text]
        draft = MemoryDraft(
            held.text,
            kind=record.kind,
            status=record.status,
            tags=held.tags,
            session_id=None if held.session_id is None else sessions[held.session_id],
            created_at=record.created_at,
            expires_at=record.expires_at,
        )
        ids[held.text] = never.add(NAME, [draft])[0].id
    for old, held in ((old, truth.held[text]) for old, text in known.items()):
        if held.reply is not None:
            uses = [
                UseRecord(ids[known[use.memory_id]], use.rank, use.score) for use in store.uses_of(NAME, old)
            ]
            assert [known[use.memory_id] for use in store.uses_of(NAME, old)] == list(held.uses)
            never.complete(NAME, ids[held.text], held.reply, uses=uses)
    for old, text in known.items():
        never.set_flags(NAME, ids[text], pinned=truth.held[text].pinned, hidden=truth.held[text].hidden)
        if truth.held[text].trace is not None:
            never.put_traces(
                NAME, [TraceDraft(ids[text], "soak", 1, store.get_kv(NAME, old), store.get_route(NAME, old))]
            )


def faces(store: Store) -> dict[str, Any]:
    """All that a bank shows of a namespace, with positions for ids."""
    records = store.list(NAME, include_hidden=True, newest_first=False)
    place = {record.id: index for index, record in enumerate(records)}

    def places(found: list[MemoryRecord]) -> list[int]:
        return [place[record.id] for record in found]

    stats = store.stats(NAME) if records else None
    return {
        "digest": store.content_digest(NAME),
        "search": {
            query: [(place[memory_id], score) for memory_id, score in store.lexical(NAME, query, 100)]
            for query in QUERIES
        },
        "recent": [place[memory_id] for memory_id in store.recent_ids(NAME, 1000)],
        "shown": places(store.list(NAME)),
        "tagged": places(store.list(NAME, tags=["t1"])),
        "matching": places(store.list(NAME, matching="KETTLE", include_hidden=True)),
        "pending": sorted(place[memory_id] for _, memory_id in store.pending_traces(NAME, "soak")),
        "sessions": sorted((session.title, session.turns) for session in store.sessions(NAME)),
        "used": [[place[one] for one in store.used_in(NAME, record.id)] for record in records],
        "stats": stats
        and (stats.memories, stats.hidden, stats.pending_traces, stats.tokens, stats.text_bytes),
    }


TestBank = Bank.TestCase
TestBank.settings = settings(
    max_examples=8,
    stateful_step_count=24,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    phases=[Phase.explicit, Phase.reuse, Phase.generate],  # shrinking a bank takes longer than a test may
)


def test_the_digest_tells_banks_apart(tmp_path: Path) -> None:
    """What the comparison rests on: each difference shows in the digest, ids alone don't."""
    with Store.open(tmp_path / "one") as one, Store.open(tmp_path / "two") as two:
        for store in (one, two):
            session = store.create_session(NAME, "talk")
            store.add(NAME, [MemoryDraft("fact", created_at=_moment(store, one)), MemoryDraft("x")])
            store.erase(store.plan_erase(Selector(NAME, matching="x")))
            assert session.title == "talk"
        assert one.content_digest(NAME) == two.content_digest(NAME)
        (fact,) = one.list(NAME)
        seen = {one.content_digest(NAME)}
        one.set_flags(NAME, fact.id, pinned=True)
        seen.add(one.content_digest(NAME))
        one.put_traces(NAME, [TraceDraft(fact.id, "m", 1, b"kv", b"route")])
        seen.add(one.content_digest(NAME))
        one.rename_session(NAME, one.sessions(NAME)[0].id, "another")
        seen.add(one.content_digest(NAME))
        asked = one.add(NAME, [MemoryDraft("why?", kind="exchange", status="open")])[0]
        one.complete(NAME, asked.id, "so")
        seen.add(one.content_digest(NAME))
        one.complete(NAME, asked.id, "so", uses=[UseRecord(fact.id, 0, 1.0)])
        seen.add(one.content_digest(NAME))
        assert len(seen) == 6 and two.content_digest(NAME) in seen
        assert one.content_digest("nobody") == two.content_digest("nobody")
        one.add("emptied", [MemoryDraft("fact")])
        one.erase(one.plan_erase(Selector("emptied", matching="fact")))
        assert one.content_digest("emptied") == one.content_digest("nobody")


def _moment(store: Store, first: Store) -> Any:
    known = first.list(NAME)
    return None if store is first or not known else known[0].created_at
