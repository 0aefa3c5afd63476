"""After an erase, no byte of any file of the bank holds a word of what was erased."""

import random
import re
from pathlib import Path

import pytest
import zstandard

from mnemos.store.records import MemoryDraft, Selector, TraceDraft, UseRecord
from mnemos.store.store import Store

CANARIES = {
    name: f"canary{name}{'qxzjkvw'[index % 7]}{'wvkjzxq'[index % 7]}zq"
    for index, name in enumerate(
        ["text", "reply", "title", "tag", "source", "session", "speaker", "derived", "expanded", "trace"]
    )
}
_ZSTD = b"\x28\xb5\x2f\xfd"


def contents(bank: Path) -> dict[str, bytes]:
    """Every file's bytes, and what every zstd frame in them unpacks to."""
    found: dict[str, bytes] = {}
    for path in sorted(bank.rglob("*")):
        if not path.is_file():
            continue
        data = path.read_bytes()
        parts = [data]
        for match in re.finditer(re.escape(_ZSTD), data):
            try:
                parts.append(zstandard.ZstdDecompressor().decompressobj().decompress(data[match.start() :]))
            except zstandard.ZstdError:
                continue
        found[str(path.relative_to(bank))] = b"\0".join(parts).lower()
    return found


def holding(bank: Path, word: str) -> list[str]:
    forms = [word.lower().encode(), word.lower().encode("utf-16-le")]
    return [name for name, data in contents(bank).items() if any(form in data for form in forms)]


def plant(store: Store, namespace: str) -> str:
    """A memory with a canary wherever words can be, and a reply derived from it; the session's id."""
    session = store.create_session(namespace, f"talk of {CANARIES['session']}")
    long = " ".join([CANARIES["expanded"]] * 400)
    planted = store.add(
        namespace,
        [
            MemoryDraft(
                f"it is {CANARIES['text']} and {long}",
                reply=f"oh {CANARIES['reply']}",
                title=CANARIES["title"],
                tags=[CANARIES["tag"]],
                source=f"/home/{CANARIES['source']}.md",
                speaker=CANARIES["speaker"],
                session_id=session.id,
                content_key=CANARIES["text"].encode(),
            )
        ],
    )[0]
    store.add(namespace, [MemoryDraft(f"bystander number {index} stays") for index in range(30)])
    asked = store.add(namespace, [MemoryDraft("and what of it?", kind="exchange", status="open")])[0]
    store.complete(
        namespace, asked.id, "first try " + CANARIES["derived"], uses=[UseRecord(planted.id, 0, 1.0)]
    )
    store.complete(namespace, asked.id, "told: " + CANARIES["derived"], uses=[UseRecord(planted.id, 0, 1.0)])
    for model in ("m1", "m2"):
        payload = CANARIES["trace"].encode() * 300
        store.put_traces(
            namespace, [TraceDraft(i, model, 4, payload, payload) for i in (planted.id, asked.id)]
        )
    return session.id


@pytest.mark.parametrize("encrypted", [True, False], ids=["encrypted", "plain"])
@pytest.mark.parametrize("is_open", [True, False], ids=["open", "closed"])
def test_no_canary_survives_an_erase(bank: Path, encrypted: bool, is_open: bool) -> None:
    store = Store.open(bank, encrypted=encrypted)
    session_id = plant(store, "alice")
    if encrypted:
        assert all(not holding(bank, word) for word in CANARIES.values())
    else:
        assert all(holding(bank, word) for word in CANARIES.values())
    receipt = store.erase(store.plan_erase(Selector("alice", session_id=session_id)))
    assert len(receipt["rewritten"]) == 1 and store.count("alice") == 31
    if not is_open:
        store.close()
    for name, word in CANARIES.items():
        assert holding(bank, word) == [], name
    if is_open:
        assert store.verify(deep=True).ok
        store.close()


@pytest.mark.parametrize("encrypted", [True, False], ids=["encrypted", "plain"])
def test_no_canary_survives_the_erase_of_a_namespace(bank: Path, encrypted: bool) -> None:
    name = "canaryperson-zqxj"
    with Store.open(bank, encrypted=encrypted) as store:
        plant(store, name)
        store.add("bob", [MemoryDraft("bob stays")])
        assert bool(holding(bank, name)) != encrypted
        store.erase(store.plan_erase(Selector(name, everything=True)))
        for word in (*CANARIES.values(), name, "bystander"):
            assert holding(bank, word) == [], word
        assert store.verify(deep=True).ok and store.count("bob") == 1


def test_many_erased_among_many_leave_no_word_in_the_index(bank: Path) -> None:
    """What a plain FTS5 index keeps of deleted rows is why it is opened with its secure-delete option."""
    with Store.open(bank, encrypted=False) as store:
        drafts = [
            MemoryDraft(f"word{index:04d}x shared", tags=["odd" if index % 2 else "even"])
            for index in range(600)
        ]
        for start in range(0, 600, 50):
            store.add("a", drafts[start : start + 50])
        store.erase(store.plan_erase(Selector("a", tags=["odd"])))
        everything = b"\0".join(contents(bank).values())
        assert [index for index in range(1, 600, 2) if f"word{index:04d}x".encode() in everything] == []
        assert all(f"word{index:04d}x".encode() in everything for index in range(0, 600, 2))
        assert store.verify(deep=True).ok


def test_rows_that_were_moved_leave_no_copy_in_their_old_page(fast_disk: Path) -> None:
    """SQLite's secure-delete clears where a row is, not where it was before its page was split or joined."""
    chance = random.Random(3)
    with Store.open(fast_disk / "bank", encrypted=False) as store:
        drafts = [
            MemoryDraft(
                f"canary{index:03d}x " + "fill " * chance.choice((2, 20, 60)), kind="exchange", status="open"
            )
            for index in range(60)
        ]
        ids = [record.id for record in store.add("a", drafts)]
        for memory_id in chance.sample(ids, 30):
            store.complete("a", memory_id, "reply " * chance.choice((10, 80)))
        order = chance.sample(range(60), 58)
        for number in order[:36]:
            store.erase(store.plan_erase(Selector("a", ids=[ids[number]])))
        everything = b"\0".join(contents(fast_disk / "bank").values())
        assert [number for number in order[:36] if f"canary{number:03d}x".encode() in everything] == []
        assert all(f"canary{number:03d}x".encode() in everything for number in order[36:])
        assert store.verify(deep=True).ok


def test_an_encrypted_bank_holds_no_words_at_all(bank: Path) -> None:
    with Store.open(bank) as store:
        plant(store, "canaryperson-zqxj")
        for word in (*CANARIES.values(), "canaryperson", "bystander"):
            assert holding(bank, word) == [], word
    for word in (*CANARIES.values(), "canaryperson", "bystander"):
        assert holding(bank, word) == [], word
