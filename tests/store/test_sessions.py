"""Sessions: branches share a past without a copy, and nothing that was forgotten stays in one."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mnemos.errors import NotFoundError, UsageError
from mnemos.store import catalog
from mnemos.store.rebuilding import rebuild_database
from mnemos.store.records import MemoryDraft, MemoryRecord, Selector
from mnemos.store.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "bank") as opened:
        yield opened


def say(store: Store, session_id: str, *texts: str) -> list[MemoryRecord]:
    drafts = [MemoryDraft(each, kind="exchange", reply=f"re {each}", session_id=session_id) for each in texts]
    return store.add("a", drafts)


def told(store: Store, session_id: str) -> list[str]:
    return [each.text for each in store.history("a", session_id)]


def forget(store: Store, *ids: str) -> None:
    store.erase(store.plan_erase(Selector("a", ids=ids)))


def test_a_branch_shares_the_past_up_to_its_point(store: Store) -> None:
    parent = store.create_session("a", "trip")
    _, two, _ = say(store, parent.id, "one", "two", "three")
    store.add("a", [MemoryDraft("a note", session_id=parent.id), MemoryDraft("elsewhere", kind="exchange")])
    branch = store.branch_session("a", parent.id[:8], at=two.id[:8], title="other way")
    say(store, parent.id, "four")
    say(store, branch.id, "five")
    assert (branch.parent_id, branch.title, branch.turns) == (parent.id, "other way", 2)
    assert told(store, branch.id) == ["one", "two", "five"]
    assert told(store, parent.id) == ["one", "two", "three", "four"]
    assert {each.id: each.turns for each in store.sessions("a")} == {parent.id: 4, branch.id: 3}
    assert [each.text for each in store.history("a", branch.id, limit=2)] == ["two", "five"]
    whole = store.branch_session("a", parent.id)
    assert told(store, whole.id) == told(store, parent.id)
    assert store.count("a") == 7, "no memory was copied"


def test_a_branch_of_a_branch_goes_no_further_than_either_point(store: Store) -> None:
    first = store.create_session("a")
    one, _two = say(store, first.id, "one", "two")
    second = store.branch_session("a", first.id)
    say(store, second.id, "three")
    third = store.branch_session("a", second.id, at=one.id)
    say(store, third.id, "four")
    assert told(store, second.id) == ["one", "two", "three"]
    assert told(store, third.id) == ["one", "four"]


def test_what_is_forgotten_of_the_parent_is_gone_from_the_branch(store: Store) -> None:
    parent = store.create_session("a")
    one, two = say(store, parent.id, "one", "two")
    branch = store.branch_session("a", parent.id)
    forget(store, two.id)
    assert told(store, branch.id) == ["one"]
    say(store, parent.id, "new")  # its ordinal was the forgotten one's
    assert told(store, branch.id) == ["one"], "a freed place in the order is not the branch's"
    assert told(store, parent.id) == ["one", "new"]
    forget(store, one.id)
    assert told(store, branch.id) == []


def test_a_title_that_repeats_forgotten_words_goes_from_branches_too(store: Store) -> None:
    parent = store.create_session("a", "another")
    secret, _ = say(store, parent.id, "meet at the heron", "two")
    branch = store.branch_session("a", parent.id, title="meet at the heron")
    deeper = store.branch_session("a", branch.id, title="Meet at the HERON…")
    forget(store, secret.id)
    titles = {each.id: each.title for each in store.sessions("a")}
    assert titles == {parent.id: "another", branch.id: None, deeper.id: None}


def test_a_deleted_session_leaves_its_branches_what_is_not_its_own(store: Store) -> None:
    first = store.create_session("a")
    say(store, first.id, "one")
    second = store.branch_session("a", first.id)
    (two,) = say(store, second.id, "two")
    third = store.branch_session("a", second.id)
    say(store, first.id, "later")
    with pytest.raises(UsageError, match="holds memories"):
        store.remove_session("a", second.id)
    forget(store, two.id)
    assert told(store, second.id) == ["one"], "a branch without turns of its own is still one"
    store.remove_session("a", second.id)
    store.remove_session("a", second.id)
    assert told(store, third.id) == ["one"]
    assert store.get_session("a", third.id).parent_id == first.id
    forget(store, *(each.id for each in store.history("a", first.id)))
    assert [each.id for each in store.sessions("a")] == [third.id] and told(store, third.id) == []


def test_a_closed_session_is_off_the_list_and_its_memories_are_not(store: Store) -> None:
    parent = store.create_session("a", "trip")
    say(store, parent.id, "one")
    branch = store.branch_session("a", parent.id)
    store.close_session("a", parent.id)
    assert [each.id for each in store.sessions("a")] == [branch.id]
    with pytest.raises(NotFoundError):
        store.get_session("a", parent.id)
    assert told(store, branch.id) == ["one"] and store.count("a") == 1
    say(store, parent.id, "somebody goes on")
    assert store.get_session("a", parent.id).title is None


def test_points_that_are_none(store: Store) -> None:
    parent = store.create_session("a")
    other = store.create_session("a")
    (one,) = say(store, parent.id, "one")
    (alien,) = say(store, other.id, "alien")
    (note,) = store.add("a", [MemoryDraft("note", session_id=parent.id)])
    for wrong in (alien.id, note.id):
        with pytest.raises(UsageError, match="no exchange of session"):
            store.branch_session("a", parent.id, at=wrong)
    with pytest.raises(NotFoundError):
        store.branch_session("a", parent.id, at="zzzzzz")
    with pytest.raises(NotFoundError):
        store.branch_session("a", "zzzzzz", at=one.id)
    assert told(store, store.branch_session("a", store.create_session("a").id).id) == []
    assert store.history("nobody", parent.id) == []


def test_a_branch_lasts_and_outlives_a_rebuilt_database(tmp_path: Path) -> None:
    with Store.open(tmp_path / "bank") as store:
        parent = store.create_session("a")
        one, _ = say(store, parent.id, "one", "two")
        branch = store.branch_session("a", parent.id, at=one.id)
    with Store.open(tmp_path / "bank") as store:
        assert told(store, branch.id) == ["one"]
        core = store._core
        with core.catalog.read() as connection:
            (row,) = catalog.live_namespaces(connection)
        with core.writing():
            rebuild_database(core, row)
    with Store.open(tmp_path / "bank") as store:
        assert told(store, branch.id) == ["one"]


def test_a_bank_with_an_erased_exchange_equals_one_that_never_held_it(tmp_path: Path) -> None:
    digests = []
    for name, texts in (("one", ["kept", "gone"]), ("other", ["kept"])):
        with Store.open(tmp_path / name) as store:
            parent = store.create_session("a", "t")
            made = store.add(
                "a",
                [
                    MemoryDraft(
                        each,
                        kind="exchange",
                        session_id=parent.id,
                        created_at=parent.created_at.replace(
                            year=2026, month=1, day=1, hour=0, minute=0, second=0, microsecond=0
                        ),
                    )
                    for each in texts
                ],
            )
            store.branch_session("a", parent.id, title="b")
            if len(made) == 2:
                before = store.content_digest("a")
                forget(store, made[1].id)
                assert store.content_digest("a") != before
            digests.append(store.content_digest("a"))
    assert digests[0] == digests[1]


steps = st.lists(
    st.tuples(st.sampled_from(["say", "branch", "forget", "close"]), st.integers(0, 30)), max_size=14
)


@settings(max_examples=25, deadline=None)
@given(steps)
def test_histories_are_those_of_plain_lists(
    tmp_path_factory: pytest.TempPathFactory, plan: list[tuple[str, int]]
) -> None:
    """A naive twin that copies each branch's past agrees, whatever was said, branched and forgotten."""
    with Store.open(tmp_path_factory.mktemp("bank") / "bank", encrypted=False) as store:
        twin: dict[str, list[str]] = {store.create_session("a").id: []}
        ids: dict[str, str] = {}
        for count, (what, number) in enumerate(plan):
            session = list(twin)[number % len(twin)]
            past = [each for each in twin[session] if each in ids]
            if what == "say":
                (made,) = say(store, session, f"t{count}")
                ids[made.text] = made.id
                twin[session].append(made.text)
            elif what == "branch" and past:
                at = past[number % len(past)]
                try:
                    branch = store.branch_session("a", session, at=ids[at])
                except NotFoundError:
                    continue  # it ended with its last memory, or was closed
                twin[branch.id] = twin[session][: twin[session].index(at) + 1]
            elif what == "forget" and past:
                forget(store, ids.pop(past[number % len(past)]))
            elif what == "close":
                try:
                    store.close_session("a", session)
                except NotFoundError:
                    continue
        for session, texts in twin.items():
            assert told(store, session) == [each for each in texts if each in ids]


def test_a_branch_may_begin_before_any_exchange(store: Store) -> None:
    parent = store.create_session("a")
    one, two = say(store, parent.id, "one", "two")
    branch = store.branch_session("a", parent.id, before=two.id[:8])
    assert told(store, branch.id) == ["one"]
    empty = store.branch_session("a", parent.id, before=one.id)
    assert (empty.parent_id, empty.turns, told(store, empty.id)) == (parent.id, 0, [])
    say(store, empty.id, "another one")
    assert told(store, empty.id) == ["another one"]
