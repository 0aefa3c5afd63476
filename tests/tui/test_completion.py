"""What the shell completes: the command as a shell asks it, over a real bank."""

from pathlib import Path

import pytest
from tests.tui.conftest import Command

from mnemos import MemoryBank


@pytest.fixture
def ids(mnemos: Command) -> list[str]:
    ids = mnemos.remember("the boat is called Sirius", "the van is green")
    mnemos("remember", "--tag", "work", "--tag", "travel", "--namespace", "bob", "a train to Leeds")
    return ids


def completed(mnemos: Command, line: str, **environment: str) -> list[str]:
    """What bash is offered for the last word of a line."""
    ran = mnemos.process(
        _MNEMOS_COMPLETE="complete_bash", COMP_WORDS=line, COMP_CWORD=str(line.count(" ")), **environment
    )
    assert ran.code == 0 and ran.err == ""
    return ran.out.split()


@pytest.mark.parametrize(
    "command", ["memory show", "memory forget", "memory pin", "memory why", "memory list --tag x --since"]
)
def test_ids_are_completed_where_an_id_is_meant(mnemos: Command, ids: list[str], command: str) -> None:
    expected = [] if "--since" in command else ids[::-1]
    assert completed(mnemos, f"mnemos {command} ") == expected


def test_a_prefix_narrows_them(mnemos: Command, ids: list[str]) -> None:
    assert completed(mnemos, f"mnemos memory show {ids[0][:6]}") == [ids[0]]
    assert completed(mnemos, "mnemos memory show 0000") == []


def test_namespaces_tags_and_sessions(
    mnemos: Command, ids: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MNEMOS_KEY_DIR", mnemos.environment["MNEMOS_KEY_DIR"])
    assert completed(mnemos, "mnemos memory list --namespace ") == ["bob", "default"]
    assert completed(mnemos, "mnemos memory list --namespace bob --tag ") == ["travel", "work"]
    assert completed(mnemos, "mnemos memory list --tag w", MNEMOS_NAMESPACE="bob") == ["work"]
    assert completed(mnemos, "mnemos memory list --tag ") == []
    with MemoryBank.open(mnemos.bank) as bank:
        session = bank.create_session().id
    assert completed(mnemos, "mnemos session rename ") == [session]


def test_where_no_bank_opens_nothing_is_offered_and_nothing_made(mnemos: Command, tmp_path: Path) -> None:
    assert completed(mnemos, "mnemos memory show ") == [] and not mnemos.bank.exists()
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"\xff\xd8")
    assert completed(mnemos, "mnemos memory show ", MNEMOS_BANK=str(tmp_path / "photos")) == []


def test_a_locked_bank_asks_nobody(mnemos: Command) -> None:
    mnemos("remember", "a secret", MNEMOS_PASSPHRASE="correct horse")
    assert completed(mnemos, "mnemos memory show ") == []
    assert len(completed(mnemos, "mnemos memory show ", MNEMOS_PASSPHRASE="correct horse")) == 1
