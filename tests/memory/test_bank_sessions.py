"""Sessions through the bank: deleting with memories and without, and what that leaves."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from mnemos import MemoryBank
from mnemos.errors import NotFoundError, StalePlanError, UsageError
from mnemos.memory.records import Memory


@pytest.fixture
def bank(tmp_path: Path) -> Iterator[MemoryBank]:
    with MemoryBank.open(tmp_path / "bank") as opened:
        yield opened


def turn(bank: MemoryBank, session_id: str, text: str, working: list[Memory] | None = None) -> Memory:
    exchange = bank.begin_exchange(text, namespace="default", session_id=session_id)
    return bank.complete_exchange(exchange, f"Reply to {text}", working=working or [])


def test_deleting_with_memories_takes_what_branches_made_with_them(bank: MemoryBank) -> None:
    parent = bank.create_session(title="trip")
    first = turn(bank, parent.id, "one")
    branch = bank.branch_session(parent.id[:8], at=first.id[:8])
    turn(bank, branch.id, "two", working=bank.history(branch.id))
    turn(bank, bank.create_session().id, "elsewhere")
    receipt = bank.delete_session(parent.id[:8], with_memories=True)
    assert receipt is not None and set(receipt.forgotten) == {first.id}
    assert {session.id for session in bank.sessions()} >= {branch.id}
    assert parent.id not in {session.id for session in bank.sessions()}
    (left,) = bank.history(branch.id)
    assert (left.text, left.reply) == ("two", None), "its reply was made with what is gone"
    assert [each.text for each in bank.list(matching="elsewhere")] == ["elsewhere"]
    with pytest.raises(NotFoundError):
        bank.delete_session(parent.id, with_memories=True)


def test_deleting_without_memories_leaves_them(bank: MemoryBank) -> None:
    parent = bank.create_session(title="trip")
    first = turn(bank, parent.id, "one")
    branch = bank.branch_session(parent.id)
    assert bank.delete_session(parent.id, with_memories=False) is None
    assert [session.id for session in bank.sessions()] == [branch.id]
    assert bank.get(first.id).text == "one"
    assert [each.text for each in bank.history(branch.id)] == ["one"]
    with pytest.raises(NotFoundError):
        bank.get_session(parent.id)


def test_an_empty_session_needs_no_receipt(bank: MemoryBank) -> None:
    assert bank.delete_session(bank.create_session().id, with_memories=True) is None
    assert bank.sessions() == []


def test_a_plan_that_was_shown_is_the_one_that_counts(bank: MemoryBank) -> None:
    session = bank.create_session()
    turn(bank, session.id, "one")
    plan = bank.plan_forget(session_id=session.id)
    with pytest.raises(UsageError):
        bank.delete_session(session.id, with_memories=False, plan=plan)
    turn(bank, session.id, "two")
    with pytest.raises(UsageError, match="holds memories"):
        bank.delete_session(session.id, with_memories=True, plan=plan)
    assert [each.text for each in bank.list()] == ["two"]
    with pytest.raises(StalePlanError):
        bank.delete_session(session.id, with_memories=True, plan=plan)
