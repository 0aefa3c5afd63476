"""Conditions against a plain Python filter over the same memories."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mnemos.errors import InvalidSelectorError, NotFoundError, StalePlanError, UsageError
from mnemos.store import selectors as s
from mnemos.store.records import MemoryDraft, MemoryRecord, Selector
from mnemos.store.store import Store

START = datetime(2026, 1, 1, tzinfo=UTC)
TEXTS = ["Clara sails", "the BOAT is Ärmel-green", "straße 50%_x", "a 'quoted' \"one\"", "clara's boat"]
TAGS = ["work", "wörk", 'a"b', "50%"]
SOURCES = ["/a/notes.md", "/a/Notes.md"]


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    folder = tmp_path_factory.mktemp("selectors")
    with pytest.MonkeyPatch.context() as patch, Store.open(folder / "bank", encrypted=False) as store:
        patch.setenv("MNEMOS_KEY_DIR", str(folder / "keys"))
        sessions = [store.create_session("a", None).id for _ in range(2)]
        drafts = [
            MemoryDraft(
                f"{TEXTS[index % 5]} {index}",
                kind=("note", "document", "tool", "exchange")[index % 4],  # type: ignore[arg-type]
                reply="aye, the boat" if index % 7 == 0 else None,
                title="Straße" if index % 6 == 0 else None,
                tags=[tag for at, tag in enumerate(TAGS) if index >> at & 1],
                source=SOURCES[index % 3] if index % 3 < 2 else None,
                session_id=sessions[index % 3] if index % 3 < 2 else None,
                created_at=START + timedelta(hours=index),
            )
            for index in range(40)
        ]
        records = store.add("a", drafts)
        for record in records[::9]:
            store.set_flags("a", record.id, pinned=True)
        for record in records[::11]:
            store.set_flags("a", record.id, hidden=True)
        store.add("b", [MemoryDraft("Clara of another namespace", tags=["work"])])
        yield store


def holds(node: s.Condition, memory: MemoryRecord) -> bool:
    match node:
        case s.And(parts):
            return all(holds(part, memory) for part in parts)
        case s.Or(parts):
            return any(holds(part, memory) for part in parts)
        case s.Not(part):
            return not holds(part, memory)
        case s.Ids(ids):
            return any(memory.id.startswith(each) for each in ids)
        case s.Among(ids):
            return memory.id in ids
        case s.Session(prefix):
            return memory.session_id is not None and memory.session_id.startswith(prefix)
        case s.Since(moment):
            return memory.created_at >= moment
        case s.Before(moment):
            return memory.created_at < moment
        case s.Tag(name):
            return name in memory.tags
        case s.Matching(text):
            hay = (memory.text, memory.reply, memory.title, memory.source)
            return any(text.casefold() in value.casefold() for value in hay if value is not None)
        case s.Source(path):
            return memory.source == path
        case s.OfKind(kind):
            return memory.kind == kind
        case s.Marked(mark):
            return bool(getattr(memory, mark))
    raise AssertionError(node)


def leaves(records: list[MemoryRecord]) -> st.SearchStrategy[s.Condition]:
    ids = st.sampled_from([record.id for record in records])
    moments = st.integers(-2, 42).map(lambda hours: START + timedelta(hours=hours))
    sessions = sorted({record.session_id for record in records if record.session_id})
    return st.one_of(
        st.lists(ids | ids.map(lambda each: each[:12]), min_size=1, max_size=4).map(
            lambda i: s.Ids(tuple(i))
        ),
        st.lists(ids, max_size=3).map(lambda i: s.Among(tuple(i))),
        st.sampled_from(sessions).map(s.Session),
        moments.map(s.Since),
        moments.map(s.Before),
        st.sampled_from([*TAGS, "nobody"]).map(s.Tag),
        st.sampled_from(["clara", "BOAT", "STRASSE", "50%", "_", "'", '"', "notes", "ärmel", "zzz"]).map(
            s.Matching
        ),
        st.sampled_from([*SOURCES, "/none"]).map(s.Source),
        st.sampled_from(s.KINDS).map(s.OfKind),
        st.sampled_from(s.MARKS).map(s.Marked),
    )


def joined(leaf: st.SearchStrategy[s.Condition]) -> st.SearchStrategy[s.Condition]:
    return st.recursive(
        leaf,
        lambda inner: st.one_of(
            inner.map(s.Not),
            st.lists(inner, min_size=2, max_size=3).map(lambda parts: s.And(tuple(parts))),
            st.lists(inner, min_size=2, max_size=3).map(lambda parts: s.Or(tuple(parts))),
        ),
        max_leaves=8,
    )


@given(data=st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_sql_selects_what_a_plain_filter_does(filled: Store, data: st.DataObject) -> None:
    records = filled.list("a", include_hidden=True, newest_first=False)
    condition = data.draw(joined(leaves(records)))
    expected = [record.id for record in records if holds(condition, record)]
    found = filled.list("a", where=condition, include_hidden=True, newest_first=False)
    assert [record.id for record in found] == expected
    plan = filled.plan_erase(Selector("a", where=condition), "none")
    assert [record.id for record in plan.selected] == expected
    assert plan.takes_all == (len(expected) == len(records))


def test_operators_are_the_nodes() -> None:
    a, b, c = s.Tag("a"), s.Tag("b"), s.Tag("c")
    assert a & b & c == s.And((a, s.And((b, c)))) and (a & b & c).parts == (a, b, c)
    assert (a | b) | c == a | (b | c) and ~a == s.Not(a)
    assert s.between(START, START + timedelta(1)) == s.Since(START) & s.Before(START + timedelta(1))
    assert s.Ids("abcd") == s.Ids(("abcd",))  # type: ignore[arg-type]
    assert s.Since(START.replace(tzinfo=None)) == s.Since(START)


@pytest.mark.parametrize(
    "make",
    [
        lambda: s.Ids(()),
        lambda: s.Ids(("a,b",)),
        lambda: s.Tag(""),
        lambda: s.Matching(""),
        lambda: s.Matching("\ud800"),
        lambda: s.OfKind("poem"),
        lambda: s.Marked("old"),
        lambda: s.Like("x", float("nan")),
        lambda: s.Like("x", float("inf")),
        lambda: s.And((s.Tag("a"),)),
        lambda: s.Or(()),
    ],
)
def test_conditions_that_can_not_be(make: object) -> None:
    with pytest.raises(InvalidSelectorError):
        make()  # type: ignore[operator]


def test_a_selector_has_a_limit_and_works_up_to_it(filled: Store) -> None:
    most: s.Condition = s.Or(tuple(s.Tag(f"t{index}") for index in range(s.MAX_CONDITIONS)))
    assert filled.list("a", where=most) == []
    with pytest.raises(InvalidSelectorError, match="too large"):
        filled.list("a", where=most | s.Tag("one more"))
    deep: s.Condition = s.Tag("work")
    for _ in range(s.MAX_DEPTH - 1):
        deep = s.Not(deep)
    assert filled.list("a", where=deep)
    with pytest.raises(InvalidSelectorError, match="too large"):
        filled.list("a", where=~deep)
    for _ in range(5000):
        deep = s.Not(deep)
    with pytest.raises(InvalidSelectorError, match="too large"):
        filled.plan_erase(Selector("a", where=deep))


def test_ids_and_sessions_that_are_not_there(filled: Store) -> None:
    for where in (s.Ids(("zzzzzzzz",)), s.Session("zzzzzzzz"), s.Tag("x") | ~s.Ids(("zzzzzzzz",))):
        with pytest.raises(NotFoundError):
            filled.plan_erase(Selector("a", where=where))
    with pytest.raises(UsageError):
        filled.plan_erase(Selector("a", where=s.Ids(("zz",))))
    (other,) = filled.list("b")
    with pytest.raises(NotFoundError):
        filled.plan_erase(Selector("a", where=s.Ids((other.id,))))


def test_like_is_not_for_the_store(filled: Store) -> None:
    with pytest.raises(InvalidSelectorError, match="model"):
        filled.plan_erase(Selector("a", where=~s.Like("boats")))


def test_a_plan_by_condition_goes_stale_like_any_other(tmp_path: Path) -> None:
    with Store.open(tmp_path / "bank") as store:
        asked = store.add("a", [MemoryDraft("one?", kind="exchange", status="open", tags=["x"])])[0]
        store.add("a", [MemoryDraft("two", tags=["x"]), MemoryDraft("three")])
        plan = store.plan_erase(Selector("a", where=s.Tag("x")))
        store.complete("a", asked.id, "a reply since")
        with pytest.raises(StalePlanError):
            store.erase(plan)
        receipt = store.erase(store.plan_erase(Selector("a", where=s.Tag("x"))))
        assert receipt["memories"] == 2 and store.count("a") == 1
