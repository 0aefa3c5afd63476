"""Banks that former versions made, kept as they left them: each opens, is upgraded, and holds what it held.

`banks/format-N.tar.xz` holds `bank/` and its key file. Every one has the same content.
"""

import tarfile
from pathlib import Path

import pytest

from mnemos.store import catalog_schema
from mnemos.store.keys import KeyFile
from mnemos.store.records import MemoryDraft, Selector
from mnemos.store.store import Store

BANKS = sorted((Path(__file__).parent / "banks").glob("format-*.tar.xz"))
NEWEST = catalog_schema.MIGRATIONS[-1].number


@pytest.fixture(params=BANKS, ids=lambda path: path.name.split(".")[0])
def former(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    with tarfile.open(request.param) as archive:
        archive.extractall(tmp_path, filter="data")
    (tmp_path / "bank.key").chmod(0o600)
    return tmp_path


def test_there_is_a_bank_of_a_former_format() -> None:
    assert BANKS


def test_it_opens_and_holds_what_it_held(former: Path) -> None:
    keys = KeyFile(former / "bank.key")
    with Store.open(former / "bank", keys=keys) as store:
        assert store.version == NEWEST
        assert store.namespaces() == ["alice", "bob/work"]
        clara, boiler, turn = store.list("alice", newest_first=False)
        assert clara.text == "My sister Clara works as a nurse." and clara.tags == ("family",)
        assert (boiler.title, boiler.source, boiler.pinned) == ("Home", "house.md", True)
        assert (turn.text, turn.reply) == ("What does Clara do?", "She is a nurse.")
        assert [use.memory_id for use in store.uses_of("alice", turn.id)] == [clara.id]
        assert [memory.hidden for memory in store.list("alice", include_hidden=True)].count(True) == 1
        assert store.get_session("alice", str(clara.session_id)).title == "Spring"
        assert store.get_kv("alice", clara.id) == bytes(range(256)) * 9
        assert store.get_route("alice", boiler.id) == b"route" * 20
        assert store.get_prefix("fp-1") == b"prefix" * 50
        assert store.lexical("alice", "nurse", 5)[0][0] == clara.id
        assert len(store.receipts()) == 2
        assert store.verify(deep=True).problems == ()


def test_it_goes_on_after_the_upgrade(former: Path) -> None:
    keys = KeyFile(former / "bank.key")
    with Store.open(former / "bank", keys=keys) as store:
        clara = store.list("alice", matching="Clara works")[0]
        (new,) = store.add("alice", [MemoryDraft("A memory of the new format.")])
        receipt = store.erase(store.plan_erase(Selector("alice", ids=[clara.id])))
        assert receipt["memories"] == 1 and len(receipt["rewritten"]) == 1
    with Store.open(former / "bank", keys=keys) as store:
        assert store.get("alice", new.id).text == "A memory of the new format."
        assert not store.list("alice", matching="works as a nurse")
        assert store.verify(deep=True).problems == ()


def test_its_sessions_can_be_branched(former: Path) -> None:
    keys = KeyFile(former / "bank.key")
    with Store.open(former / "bank", keys=keys) as store:
        (session,) = store.sessions("alice")
        assert (session.title, session.turns, session.parent_id) == ("Spring", 1, None)
        branch = store.branch_session("alice", session.id)
    with Store.open(former / "bank", keys=keys) as store:
        assert [each.text for each in store.history("alice", branch.id)] == ["What does Clara do?"]
        assert store.get_session("alice", branch.id).turns == 1
        assert store.verify(deep=True).problems == ()


def test_read_only_it_asks_for_the_upgrade(former: Path) -> None:
    from mnemos.errors import BankReadOnlyError

    with pytest.raises(BankReadOnlyError, match="older format"):
        Store.open(former / "bank", keys=KeyFile(former / "bank.key"), read_only=True)
