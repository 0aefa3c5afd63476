import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import sqlcipher3.dbapi2
from hypothesis import given, settings
from hypothesis import strategies as st

from mnemos.errors import UsageError
from mnemos.store.receipts import (
    RECEIPT_VERSION,
    new_signing_key,
    os_user,
    public_key,
    read_receipt,
    same_key,
    sign,
    verify_receipt,
)
from mnemos.store.records import Selector
from mnemos.store.store import Store

V1 = (Path(__file__).parent / "fixtures" / "receipt_v1.json").read_bytes()


@pytest.fixture
def bank(fast_disk: Path) -> Path:
    return fast_disk / "bank"


def _sql(path: Path, statement: str, *values: object) -> None:
    connection = sqlcipher3.dbapi2.connect(str(path))
    connection.execute(statement, values)
    connection.commit()
    connection.close()


def test_a_receipt_of_the_first_version_still_verifies() -> None:
    receipt = read_receipt(V1)
    assert receipt["version"] == 1 and verify_receipt(receipt)
    assert verify_receipt(receipt, receipt["public_key"])
    assert not verify_receipt(receipt, public_key(new_signing_key()))


def test_a_receipt_says_what_was_cleared_and_checked_and_no_word(store: Store, fill: Any) -> None:
    family = fill(store)
    receipt = store.erase(store.plan_erase(Selector("alice", ids=[family.fact])))
    assert receipt["version"] == RECEIPT_VERSION
    assert read_receipt(json.dumps(receipt).encode()) == receipt and verify_receipt(receipt)
    assert receipt["cleared_sha256"] == hashlib.sha256(bytes(receipt["bytes"])).hexdigest()
    assert receipt["cleared_sha256"] != receipt["ciphertext_sha256"]
    assert all(step["outcome"] == "done" for step in receipt["steps"])
    assert receipt["checks"] and all(receipt["checks"].values())
    said = json.dumps(receipt).lower()
    assert not any(word in said for word in ("clara", "nurse", "sister", "alice", "evening"))


def test_the_audit_names_who_it_was(bank: Path, fill: Any) -> None:
    for actor in ("api", "cli"):
        with Store.open(bank, actor=actor) as store:
            family = fill(store)
            store.erase(store.plan_erase(Selector("alice", ids=[family.other])))
    with Store.open(bank) as store:
        who = [line["actor"] for line in store.audit()]
        assert who == [f"api:{os_user()}"] * 2 + [f"cli:{os_user()}"] * 2
        assert store.verify().ok


TAMPERINGS = (
    "UPDATE audit SET actor = 'nobody' WHERE seq = 2",
    "UPDATE audit SET at_us = at_us + 1 WHERE seq = 1",
    "UPDATE audit SET count = 9 WHERE seq = 4",
    "DELETE FROM audit WHERE seq = 2",
    "DELETE FROM audit WHERE seq = 4",
    "DELETE FROM audit WHERE seq >= 3",
    "DELETE FROM audit",
)


def test_tampering_with_the_audit_log_is_found(bank: Path, fill: Any) -> None:
    with Store.open(bank) as store:
        for _ in range(2):
            family = fill(store)
            store.erase(store.plan_erase(Selector("alice", ids=[family.other])))
        assert store.verify().ok
    good = (bank / "catalog.db").read_bytes()
    for tampering in TAMPERINGS:
        (bank / "catalog.db").write_bytes(good)
        _sql(bank / "catalog.db", tampering)
        with Store.open(bank, read_only=True) as store:
            assert [problem.kind for problem in store.verify().problems] == ["audit-broken"], tampering


def test_a_log_that_was_written_anew_does_not_fit_the_receipts(bank: Path, fill: Any) -> None:
    """Every link holds, but it is not the log that the receipt was signed over."""
    with Store.open(bank) as store:
        family = fill(store)
        receipt = store.erase(store.plan_erase(Selector("alice", ids=[family.other])))
    _sql(bank / "catalog.db", "DELETE FROM audit")
    with Store.open(bank) as store, store._core.catalog.write() as connection:
        from mnemos.store.receipts import note

        note(connection, "erase", "somebody-else")
        note(connection, "erased", receipt["id"])
    with Store.open(bank) as store:
        assert [problem.kind for problem in store.verify().problems] == ["audit-broken"]


@settings(deadline=None, max_examples=300)
@given(st.integers(0, len(V1) - 1), st.integers(1, 255))
def test_a_changed_byte_is_an_error_or_changes_nothing(at: int, flip: int) -> None:
    data = bytearray(V1)
    data[at] ^= flip
    try:
        receipt = read_receipt(bytes(data))
    except UsageError:
        return
    assert not verify_receipt(receipt) or receipt == json.loads(V1)


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=300) | st.text(max_size=200).map(str.encode))
def test_any_bytes_are_a_receipt_or_an_error(data: bytes) -> None:
    with pytest.raises(UsageError):
        read_receipt(data)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None, max_examples=300)
@given(st.sampled_from(sorted(json.loads(V1))), _JSON)
def test_a_changed_field_is_an_error_or_not_valid(name: str, value: Any) -> None:
    good = json.loads(V1)
    data = json.dumps(good | {name: value}).encode()
    try:
        receipt = read_receipt(data)
    except UsageError:
        return
    assert verify_receipt(receipt) == (receipt == good)


def test_two_readings_of_a_document_are_refused() -> None:
    twice = V1.replace(b'"memories": 2', b'"memories": 2, "memories": 2')
    with pytest.raises(UsageError):
        read_receipt(twice)
    for odd in (b"NaN", b"Infinity", b"1e999", b"9" * 5000):
        with pytest.raises(UsageError):
            read_receipt(V1.replace(b'"memories": 2', b'"memories": ' + odd))


def test_a_key_is_given_in_hexadecimal_or_base64() -> None:
    key = new_signing_key()
    public = public_key(key)
    receipt = sign({"id": "x"}, key)
    assert verify_receipt(receipt, public)
    from base64 import b64decode

    assert same_key(b64decode(public).hex(), public) and same_key(public, public)
    assert not same_key("00" * 32, public)
    for bad in ("", "00", "zz", "é"):
        with pytest.raises(UsageError):
            same_key(bad, public)
