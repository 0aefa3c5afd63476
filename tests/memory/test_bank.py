"""The bank without a model: words, flags, sessions, forgetting."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from mnemos import MemoryBank
from mnemos.errors import (
    InvalidSelectorError,
    InvalidTextError,
    NotFoundError,
    StalePlanError,
    UsageError,
)


@pytest.fixture
def bank(tmp_path: Path) -> MemoryBank:
    with MemoryBank.open(tmp_path / "bank") as opened:
        yield opened


def test_what_is_remembered_is_there_after_a_restart(tmp_path: Path) -> None:
    when = datetime(2026, 3, 3, 12, tzinfo=UTC)
    with MemoryBank.open(tmp_path / "bank") as bank:
        first = bank.remember(
            "My sister Clara is a nurse.", namespace="alice", tags=["family"], created_at=when
        )
    with MemoryBank.open(tmp_path / "bank") as bank:
        again = bank.get(first.id[:8], namespace="alice")
    assert again == first
    assert again.created_at == when
    assert again.fidelity == "pending"


def test_lexical_search_needs_no_model(bank: MemoryBank) -> None:
    bank.remember("My sister Clara is a nurse.")
    bank.remember("The bus was late.")
    (found,) = bank.search("where is clara?", router="lexical")
    assert found.memory.text.startswith("My sister")
    assert found.rank == 1
    assert found.signals["lexical"] == found.score > 0


def test_hidden_memories_are_not_found_until_unhidden(bank: MemoryBank) -> None:
    memory = bank.remember("My sister Clara is a nurse.")
    assert bank.hide(memory.id).hidden
    assert not bank.search("Clara", router="lexical")
    assert not bank.list()
    assert bank.list(include_hidden=True)
    assert not bank.unhide(memory.id).hidden
    assert bank.search("Clara", router="lexical")


def test_pins(bank: MemoryBank) -> None:
    memory = bank.remember("one")
    assert bank.pin(memory.id).pinned
    assert not bank.unpin(memory.id).pinned


def test_forgetting_takes_the_selected_and_nothing_else(bank: MemoryBank) -> None:
    bank.remember("My sister Clara is a nurse.")
    kept = bank.remember("The bus was late.")
    plan = bank.plan_forget(matching="clara")
    assert [memory.text for memory in plan.selected] == ["My sister Clara is a nurse."]
    steps: list[str] = []
    receipt = bank.forget(plan, on_step=steps.append)
    assert receipt.forgotten == (plan.selected[0].id,)
    assert steps
    assert bank.list() == [kept]
    with pytest.raises(NotFoundError):
        bank.get(plan.selected[0].id)


def test_what_has_expired_is_gone_at_the_next_open(tmp_path: Path) -> None:
    moment = datetime(2026, 1, 1, tzinfo=UTC)
    with MemoryBank.open(tmp_path / "bank") as bank:
        bank.remember("short-lived", expires_at=moment)
        kept = bank.remember("long-lived", expires_at=datetime(2999, 1, 1, tzinfo=UTC))
    with MemoryBank.open(tmp_path / "bank") as bank:
        assert bank.list(include_hidden=True) == [kept]
        assert len(bank.store.receipts()) == 1
        assert bank.sweep() == 0


def test_a_stale_plan_is_refused(bank: MemoryBank) -> None:
    bank.remember("My sister Clara is a nurse.")
    plan = bank.plan_forget(matching="clara")
    bank.forget(bank.plan_forget(matching="clara"))
    with pytest.raises(StalePlanError):
        bank.forget(plan)


def test_a_plan_survives_json(bank: MemoryBank) -> None:
    bank.remember("My sister Clara is a nurse.")
    plan = bank.plan_forget(matching="clara")
    assert bank.forget(type(plan).model_validate_json(plan.model_dump_json())).forgotten


def test_replies_made_with_a_forgotten_memory_go_too(bank: MemoryBank) -> None:
    fact = bank.remember("My sister Clara is a nurse.")
    session = bank.create_session()
    (found,) = bank.search("Clara", router="lexical")
    exchange = bank.begin_exchange("What does my sister do?", namespace="default", session_id=session.id)
    bank.complete_exchange(exchange, "She works in a hospital.", recalled=[found])
    assert [use.memory.id for use in bank.why(exchange.id)] == [fact.id]
    plan = bank.plan_forget(ids=[fact.id])
    assert [memory.id for memory in plan.dependants] == [exchange.id]
    receipt = bank.forget(plan)
    (left,) = bank.list()
    assert (left.text, left.reply) == ("What does my sister do?", None)
    assert receipt.rewritten == {exchange.id: left.id}


def test_namespaces_never_cross(bank: MemoryBank) -> None:
    memory = bank.remember("My sister Clara is a nurse.", namespace="alice")
    bank.remember("Nothing about her here.", namespace="bob")
    assert not bank.search("Clara", namespace="bob", router="lexical")
    with pytest.raises(NotFoundError):
        bank.get(memory.id, namespace="bob")
    assert not bank.plan_forget(namespace="bob", matching="clara").selected
    assert set(bank.namespaces()) == {"alice", "bob"}


def test_a_write_of_several_is_all_or_nothing(bank: MemoryBank) -> None:
    from mnemos.store.records import MemoryDraft

    with pytest.raises(InvalidTextError):
        bank.remember_many([MemoryDraft("fine"), MemoryDraft("")])
    assert not bank.list()


@pytest.mark.parametrize("text", ["", "   \n", "x" * (2 << 20)], ids=["empty", "blank", "huge"])
def test_texts_that_can_not_be_remembered(bank: MemoryBank, text: str) -> None:
    with pytest.raises(InvalidTextError):
        bank.remember(text)


def test_selectors_that_select_by_nothing(bank: MemoryBank) -> None:
    with pytest.raises(InvalidSelectorError):
        bank.plan_forget()
    with pytest.raises(UsageError):
        bank.search("x", limit=0)


def test_sessions_are_kept_with_their_titles(bank: MemoryBank) -> None:
    session = bank.create_session(title="Plans")
    bank.begin_exchange("hello", namespace="default", session_id=session.id)
    renamed = bank.rename_session(session.id[:8], "Better plans")
    assert renamed.title == "Better plans"
    (listed,) = bank.sessions()
    assert (listed.id, listed.turns) == (session.id, 1)


def test_statistics_count_what_is_there(bank: MemoryBank) -> None:
    bank.remember("My sister Clara is a nurse.")
    bank.hide(bank.remember("The bus was late.").id)
    stats = bank.stats("default")
    assert (stats.memories, stats.hidden, stats.pending) == (2, 1, 2)
    assert stats.text_bytes == len("My sister Clara is a nurse.") + len("The bus was late.")
    assert bank.verify(deep=True).ok


def test_selectors_can_be_joined(bank: MemoryBank) -> None:
    from mnemos.store.selectors import Matching, Tag

    for text, tags in (("Clara sails", ["family"]), ("the boat", ["work"]), ("Clara's boat", ["work"])):
        bank.remember(text, tags=tags)
    where = Tag("work") & ~Matching("clara")
    assert [memory.text for memory in bank.list(where=where)] == ["the boat"]
    assert bank.list(where="tag:work and not match:clara") == bank.list(where=where)
    plan = bank.plan_forget(where="match:clara", tags=["work"])
    assert [memory.text for memory in plan.selected] == ["Clara's boat"] and not plan.takes_all
    assert bank.plan_forget(where="not tag:nothing").takes_all
    assert bank.forget(plan).forgotten == (plan.selected[0].id,)
    for nothing in ("", "tag:", "boat"):
        with pytest.raises(InvalidSelectorError):
            bank.plan_forget(where=nothing)


def test_an_edit_erases_the_old_words(bank: MemoryBank) -> None:
    old = bank.remember("Clara lives in Leeds", tags=["family"])
    plan = bank.plan_forget(ids=[old.id])
    done = bank.edit(old.id[:6], "Clara lives in York")
    assert done.memory == bank.list()[0]
    assert (done.memory.text, done.memory.tags, done.memory.created_at) == (
        "Clara lives in York",
        ("family",),
        old.created_at,
    )
    assert done.receipt.rewritten == {old.id: done.memory.id} and done.receipt.forgotten == ()
    with pytest.raises(StalePlanError):
        bank.edit(old.id, "Clara lives in Hull", plan=plan)
    with pytest.raises(NotFoundError):
        bank.edit(old.id, "Clara lives in Hull")
    with pytest.raises(InvalidTextError):
        bank.edit(done.memory.id, "x" * (65 << 10))


def test_retention_and_expiry(tmp_path: Path) -> None:
    from datetime import timedelta

    now = datetime.now(UTC)
    with MemoryBank.open(tmp_path / "bank") as bank:
        old = bank.remember("old", created_at=now - timedelta(days=40))
        bank.pin(bank.remember("old, pinned", created_at=now - timedelta(days=40)).id)
        young = bank.remember("young")
        assert bank.retention().max_age is None
        limits = bank.set_retention(max_age=timedelta(days=30))
        assert limits == bank.retention()
        assert [memory.id for memory in bank.plan_sweep().selected] == [old.id]
        with pytest.raises(UsageError):
            bank.expire(young.id, now - timedelta(seconds=1))
        assert bank.expire(young.id, now + timedelta(days=1)).expires_at == now + timedelta(days=1)
        assert bank.expire(young.id, None).expires_at is None
    with MemoryBank.open(tmp_path / "bank", sweep=False) as bank:
        assert len(bank.list()) == 3
    with MemoryBank.open(tmp_path / "bank") as bank:
        assert {memory.text for memory in bank.list()} == {"old, pinned", "young"}
        assert len(bank.store.receipts()) == 1 and bank.sweep() == 0
