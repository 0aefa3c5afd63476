"""`bank rekey`, `bank audit`, `bank verify --repair`, `memory receipt ...` as people run them."""

import json
from pathlib import Path
from typing import Any

import pytest
from tests.tui.conftest import Command, OpenTerminal

from mnemos.store import keys
from mnemos.store.receipts import os_user

RECEIPT_V1 = Path(__file__).parents[1] / "store" / "fixtures" / "receipt_v1.json"


@pytest.fixture(autouse=True)
def quick_scrypt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "_SCRYPT_N", 1 << 4)


def key_file(mnemos: Command) -> Path:
    return Path(mnemos("bank", "info", "--json").json["key"])


def texts(mnemos: Command, **environment: str) -> list[str]:
    listed = mnemos("memory", "list", "--json", **environment).json
    return [memory["text"] for memory in listed["memories"]]


# rekey


def test_rekey_gives_the_key_file_a_new_key(mnemos: Command) -> None:
    mnemos.remember("kept")
    key = key_file(mnemos)
    before = key.read_bytes()
    ran = mnemos("bank", "rekey", "--yes", "--json")
    assert ran.code == 0
    assert ran.json == {"key": str(key), "destroyed": str(key), "kept": None, "pending": False}
    assert key.read_bytes() != before and texts(mnemos) == ["kept"]
    assert "back up" in ran.err


def test_rekey_from_file_to_passphrase_and_back(mnemos: Command) -> None:
    mnemos.remember("kept")
    key = key_file(mnemos)
    ran = mnemos("bank", "rekey", "--passphrase", "--yes", MNEMOS_NEW_PASSPHRASE="correct horse")
    assert ran.code == 0 and "correct horse" not in ran.out + ran.err
    assert not key.exists()
    assert mnemos("bank", "info").code == 3
    assert mnemos("bank", "info", MNEMOS_PASSPHRASE="wrong").code == 3
    assert texts(mnemos, MNEMOS_PASSPHRASE="correct horse") == ["kept"]
    again = mnemos(
        "bank", "rekey", "--yes", MNEMOS_PASSPHRASE="correct horse", MNEMOS_NEW_PASSPHRASE="battery staple"
    )
    assert again.code == 0
    assert mnemos("bank", "info", MNEMOS_PASSPHRASE="correct horse").code == 3
    assert mnemos("bank", "rekey", "--key-file", "--yes", MNEMOS_PASSPHRASE="battery staple").code == 0
    assert texts(mnemos) == ["kept"] and key.exists()


def test_rekey_keeps_the_old_key_where_told(mnemos: Command, tmp_path: Path) -> None:
    mnemos.remember("kept")
    before = key_file(mnemos).read_bytes()
    kept = tmp_path / "old.key"
    assert mnemos("bank", "rekey", "--keep-old", str(kept), "--json").json["kept"] == str(kept)
    assert kept.read_bytes() == before
    assert mnemos("bank", "rekey", "--keep-old", str(kept)).code == 2


def test_rekey_without_a_terminal_never_waits(mnemos: Command) -> None:
    mnemos.remember("kept")
    before = key_file(mnemos).read_bytes()
    assert mnemos("bank", "rekey").code == 2
    ran = mnemos("bank", "rekey", "--passphrase", "--yes")
    assert ran.code == 2 and "MNEMOS_NEW_PASSPHRASE" in ran.err
    assert mnemos("bank", "rekey", "--passphrase", "--key-file", "--yes").code == 2
    assert key_file(mnemos).read_bytes() == before


def test_a_passphrase_is_asked_for_on_a_terminal(mnemos: Command, open_terminal: OpenTerminal) -> None:
    mnemos.remember("kept")
    terminal = open_terminal(mnemos, "bank", "rekey", "--passphrase")
    terminal.wait_for("New passphrase:")
    terminal.type("correct horse\n")
    terminal.wait_for("again:")
    terminal.type("correct horse\n")
    terminal.wait_for("Change the key?")
    terminal.type("y\n")
    assert terminal.end() == 0 and "horse" not in terminal.seen
    opened = open_terminal(mnemos, "memory", "list")
    opened.wait_for("Passphrase of the bank:")
    opened.type("correct horse\n")
    opened.wait_for("kept")
    assert opened.end() == 0 and "horse" not in opened.seen
    refused = open_terminal(mnemos, "memory", "list")
    refused.wait_for("Passphrase of the bank:")
    refused.type("guess\n")
    assert refused.end() == 3
    differs = open_terminal(mnemos, "bank", "rekey")
    differs.wait_for("Passphrase of the bank:")
    differs.type("correct horse\n")
    differs.wait_for("New passphrase:")
    differs.type("one\n")
    differs.wait_for("again:")
    differs.type("another\n")
    assert differs.end() == 2


def test_without_a_terminal_a_locked_bank_is_an_error_at_once(mnemos: Command) -> None:
    mnemos.remember("kept")
    mnemos.process("bank", "rekey", "--passphrase", "--yes", MNEMOS_NEW_PASSPHRASE="correct horse")
    ran = mnemos.process("memory", "list")
    assert ran.code == 3 and "MNEMOS_PASSPHRASE" in ran.err


# receipts


def forgotten(mnemos: Command, text: str = "secret words") -> Any:
    mnemos.remember(text)
    return mnemos("memory", "forget", "--match", text, "--yes", "--json").json["receipt"]


def test_receipts_are_listed_shown_and_verified(mnemos: Command, tmp_path: Path) -> None:
    receipt = forgotten(mnemos)
    listed = mnemos("memory", "receipt", "list", "--json").json
    assert listed == {"receipts": [receipt]}
    assert receipt["id"] in mnemos("memory", "receipt", "list").out
    shown = mnemos("memory", "receipt", "show", receipt["id"][:6])
    assert shown.code == 0 and json.loads(shown.out) == receipt
    file = tmp_path / "receipt.json"
    file.write_text(shown.out)
    assert mnemos("memory", "receipt", "verify", str(file)).code == 0
    assert mnemos("memory", "receipt", "verify", "-", stdin=shown.out).code == 0
    document = mnemos("memory", "receipt", "show", receipt["id"], "--json").out
    valid = mnemos("memory", "receipt", "verify", "-", "--json", stdin=document)
    assert valid.json["valid"] is True and valid.json["id"] == receipt["id"]
    assert mnemos("memory", "receipt", "show", "aaaa").code == 1


def test_a_receipt_verifies_without_a_bank_and_a_forged_one_does_not(mnemos: Command) -> None:
    assert not mnemos.bank.exists()
    good = RECEIPT_V1.read_text()
    ran = mnemos("memory", "receipt", "verify", "-", stdin=good)
    assert ran.code == 0 and not mnemos.bank.exists()
    document = json.loads(good)
    public = document["public_key"]
    assert mnemos("memory", "receipt", "verify", "-", "--key", public, stdin=good).code == 0
    assert mnemos("memory", "receipt", "verify", "-", "--key", "00" * 32, stdin=good).code == 1
    assert mnemos("memory", "receipt", "verify", "-", "--key", "zz", stdin=good).code == 2
    for name, value in (("memories", 3), ("erased", []), ("bank", "other"), ("signature", "AA==")):
        forged = json.dumps(document | {name: value})
        ran = mnemos("memory", "receipt", "verify", "-", "--json", stdin=forged)
        assert ran.code == 1 and ran.json["valid"] is False and ran.json["reason"]
    for nothing in ("", "{}", "[]", "null", "hello", '{"version": 1}', "[" * 100_000, '{"version": true}'):
        assert mnemos("memory", "receipt", "verify", "-", stdin=nothing).code == 2, nothing[:20]
    newer = mnemos("memory", "receipt", "verify", "-", stdin=json.dumps(document | {"version": 99}))
    assert newer.code == 2 and "newer" in newer.err
    assert mnemos("memory", "receipt", "verify", "/nonexistent/receipt").code == 1


def test_a_receipt_can_be_held_against_its_bank(mnemos: Command) -> None:
    receipt = json.dumps(forgotten(mnemos))
    bank = str(mnemos.bank)
    assert mnemos("memory", "receipt", "verify", "-", "--bank", bank, stdin=receipt).code == 0
    other = mnemos("memory", "receipt", "verify", "-", "--bank", bank, stdin=RECEIPT_V1.read_text())
    assert other.code == 1 and "bank" in other.err
    assert mnemos("bank", "info", "--json").json["receipt_key"] == json.loads(receipt)["public_key"]


def test_forget_saves_the_receipt(mnemos: Command, tmp_path: Path) -> None:
    mnemos.remember("secret words", "others")
    file = tmp_path / "receipt.json"
    ran = mnemos("memory", "forget", "--match", "secret", "--yes", "--receipt", str(file))
    assert ran.code == 0
    assert mnemos("memory", "receipt", "verify", str(file)).code == 0
    for place in (file, tmp_path / "absent" / "receipt.json"):
        refused = mnemos("memory", "forget", "--match", "others", "--yes", "--receipt", str(place))
        assert refused.code == 2 and texts(mnemos) == ["others"]


# audit


def test_the_audit_log_says_who_did_what_and_no_words(mnemos: Command) -> None:
    receipt = forgotten(mnemos)
    mnemos("bank", "rekey", "--yes")
    lines = mnemos("bank", "audit", "--json").json["audit"]
    assert [line["action"] for line in lines] == ["erase", "erased", "rekey"]
    assert {(line["actor"], line["user"]) for line in lines} == {("cli", os_user())}
    assert lines[1]["subject"] == receipt["id"] and receipt["audit"] == {
        "seq": lines[0]["seq"],
        "digest": lines[0]["digest"],
    }
    assert [line["seq"] for line in mnemos("bank", "audit", "--limit", "1", "--json").json["audit"]] == [3]
    shown = mnemos("bank", "audit").out
    assert "erased" in shown and "secret" not in shown


# verify and repair


def test_verify_names_damage_and_repair_mends_it(mnemos: Command) -> None:
    mnemos.remember("one", "two")
    segment = mnemos.bank / "segments" / "0001.seg"
    data = bytearray(segment.read_bytes())
    data[-1] ^= 1
    segment.write_bytes(bytes(data))
    found = mnemos("bank", "verify", "--deep", "--json")
    assert found.code == 4 and [each["kind"] for each in found.json["problems"]] == ["corrupt-frame"]
    assert mnemos("bank", "verify", "--repair", "--resume").code == 2
    mended = mnemos("bank", "verify", "--repair", "--json")
    assert mended.code == 0 and mended.json["ok"] and not mended.json["quarantined"]
    assert [each["kind"] for each in mended.json["repaired"]] == ["corrupt-frame"]
    assert mnemos("bank", "verify", "--deep", "--resume", "--json").json["problems"] == []
    assert texts(mnemos) == ["two", "one"]


def test_quarantine_is_listed_and_no_damage(mnemos: Command) -> None:
    mnemos.remember("one", "two")
    next((mnemos.bank / "namespaces").glob("*.db")).unlink()
    segment = mnemos.bank / "segments" / "0001.seg"
    data = bytearray(segment.read_bytes())
    data[-1] ^= 1
    segment.write_bytes(bytes(data))
    ran = mnemos("bank", "verify", "--repair")
    assert ran.code == 0 and "quarantine" in ran.err
    again = mnemos("bank", "verify", "--deep", "--json")
    assert again.code == 0 and len(again.json["quarantined"]) == 1
    assert texts(mnemos) == ["one"]
    hidden = mnemos("memory", "list", "--hidden", "--json").json["memories"]
    assert [memory["status"] for memory in hidden] == ["damaged", "complete"]


def test_a_bank_without_encryption_says_so(mnemos: Command) -> None:
    from mnemos.store.store import Store

    Store.open(mnemos.bank, encrypted=False).close()
    ran = mnemos("bank", "info", "--json")
    assert ran.json["encrypted"] is False
    assert "not encrypted" in mnemos("bank", "info").err
    assert mnemos("bank", "rekey", "--yes").code == 2
