import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from mnemos.errors import (
    AmbiguousIdError,
    InvalidNamespaceError,
    InvalidTextError,
    NotFoundError,
    UsageError,
)
from mnemos.store.records import MemoryDraft, TraceDraft, UseRecord
from mnemos.store.store import Store


def test_what_goes_in_comes_out_in_another_opening(bank: Path, either_store: Store) -> None:
    created = datetime(2024, 3, 3, 12, 30, 15, 123456, tzinfo=UTC)
    draft = MemoryDraft(
        text="Grüße, 世界 \N{ROCKET}\nzero\0byte",
        kind="document",
        reply="ja",
        speaker="Ann",
        title="Notes",
        source="notes.md",
        session_id=None,
        created_at=created,
        expires_at=created + timedelta(days=100_000),
        tags=("ünï", "b", "b"),
    )
    written = either_store.add("acme/alice", [draft])[0]
    either_store.close()
    with Store.open(bank) as again:
        read = again.get("acme/alice", written.id)
        assert again.verify(deep=True).ok
    assert read == written
    assert (read.text, read.reply, read.speaker, read.title) == (draft.text, "ja", "Ann", "Notes")
    assert (read.source, read.kind, read.tags, read.created_at) == (
        "notes.md",
        "document",
        ("ünï", "b"),
        created,
    )
    assert (read.trace_bytes, read.tokens, read.trace_fingerprint, read.ordinal) == (0, 0, None, 1)
    assert len(read.id) == 26 and read.id == read.id.lower()


def test_a_large_group_keeps_its_order_and_spans_key_pages(store: Store) -> None:
    records = store.add("a", [MemoryDraft(f"memory {index}") for index in range(2500)])
    assert [record.text for record in records] == [f"memory {index}" for index in range(2500)]
    assert [record.ordinal for record in records] == list(range(1, 2501))
    report = store.verify(deep=True)
    assert report.ok and report.checked["keys"] == 2500


def test_the_same_content_key_gives_the_first_memory(store: Store) -> None:
    first = store.add(
        "a", [MemoryDraft("one", content_key=b"k1"), MemoryDraft("one again", content_key=b"k1")]
    )
    assert first[0] == first[1]
    assert store.add("a", [MemoryDraft("two", content_key=b"k1")])[0].id == first[0].id
    assert store.add("b", [MemoryDraft("two", content_key=b"k1")])[0].text == "two"
    assert store.count("a") == 1


def test_namespaces_do_not_see_each_other(store: Store) -> None:
    mine = store.add("alice", [MemoryDraft("the harbour is quiet")])[0]
    store.add("bob", [MemoryDraft("the harbour is loud")])
    store.put_traces("alice", [TraceDraft(mine.id, "f", 1, b"k", b"r")])
    assert store.namespaces() == ["alice", "bob"]
    assert [record.text for record in store.list("bob")] == ["the harbour is loud"]
    assert [hit[0] for hit in store.lexical("alice", "harbour", 9)] == [mine.id]
    for call in (store.get, store.get_kv, store.get_route, store.used_in, store.set_flags):
        with pytest.raises(NotFoundError):
            call("bob", mine.id)
    assert store.get_routes("bob", [mine.id]) == {}
    with pytest.raises(NotFoundError):
        store.put_traces("bob", [TraceDraft(mine.id, "f", 1, b"k", b"r")])


@pytest.mark.parametrize("name", ["", "a b", "/a", "a/", "a//b", ".", "a/..", "ä", "a" * 129, "a\n", "a\\b"])
def test_a_bad_namespace_is_refused(store: Store, name: str) -> None:
    with pytest.raises(InvalidNamespaceError):
        store.ensure_namespace(name)
    with pytest.raises(InvalidNamespaceError):
        store.list(name)


@pytest.mark.parametrize("text", ["", " \n\t", "x" * ((1 << 20) + 1), "lone \ud800 surrogate"])
def test_a_text_that_is_no_text_is_refused_and_nothing_is_written(store: Store, text: str) -> None:
    with pytest.raises(InvalidTextError):
        store.add("a", [MemoryDraft("fine"), MemoryDraft(text)])
    assert store.namespaces() == []


def test_ids_go_by_prefix(store: Store) -> None:
    records = store.add("a", [MemoryDraft(str(index)) for index in range(5)])
    assert store.get("a", records[3].id[:12]).text == "3"
    assert store.get("a", records[3].id.upper()).text == "3"
    with pytest.raises(UsageError):
        store.get("a", records[0].id[:3])
    for absent in ("zzzz", "0189", "nothing-like-an-id", records[0].id + "a"):
        with pytest.raises(NotFoundError):
            store.get("a", absent)


def test_an_ambiguous_prefix_is_refused(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = iter(["aaaaaaaaaaaaaaaaaaaaaaaaaa", "aaaaaaaaaaaaaaaaaaaaaaaa4e"])
    store.ensure_namespace("a")
    monkeypatch.setattr("mnemos.store.writing.new_id", lambda: next(ids))
    store.add("a", [MemoryDraft("one"), MemoryDraft("two")])
    with pytest.raises(AmbiguousIdError):
        store.get("a", "aaaaa")
    assert store.get("a", "a" * 26).text == "one"


def test_list_filters(store: Store) -> None:
    day = datetime(2025, 1, 1, tzinfo=UTC)
    session = store.create_session("a", "s")
    store.add(
        "a",
        [
            MemoryDraft("apple", tags=["x", "y"], created_at=day, source="s1"),
            MemoryDraft(
                "PÊCHE",
                tags=["x"],
                created_at=day + timedelta(days=1),
                kind="exchange",
                session_id=session.id,
            ),
            MemoryDraft("plum", title="Straße", created_at=day + timedelta(days=2), reply="pears"),
            MemoryDraft("gone", expires_at=datetime(2025, 2, 1, tzinfo=UTC)),
        ],
    )

    def texts(**chosen: object) -> list[str]:
        return [record.text for record in store.list("a", **chosen)]  # type: ignore[arg-type]

    assert texts() == ["plum", "PÊCHE", "apple"]
    assert texts(newest_first=False, limit=1, offset=1) == ["PÊCHE"]
    assert texts(tags=["x"]) == ["PÊCHE", "apple"] and texts(tags=["x", "y"]) == ["apple"]
    assert texts(matching="pêche") == ["PÊCHE"] and texts(matching="STRASSE") == ["plum"]
    assert texts(matching="pear") == ["plum"] and texts(matching="%") == []
    assert texts(source="s1") == ["apple"] and texts(kinds=["exchange"]) == ["PÊCHE"]
    assert texts(session_id=session.id) == ["PÊCHE"]
    assert texts(since=day + timedelta(days=1), until=day + timedelta(days=2)) == ["PÊCHE"]
    assert texts(include_hidden=True) == ["gone", "plum", "PÊCHE", "apple"]
    assert store.count("a") == 4


def test_hidden_and_expired_are_left_out_and_come_back(store: Store) -> None:
    record = store.add("a", [MemoryDraft("the kettle whistles")])[0]
    assert store.set_flags("a", record.id, hidden=True, pinned=True).hidden
    assert store.list("a") == [] and store.lexical("a", "kettle", 5) == [] and store.recent_ids("a", 5) == []
    assert store.get("a", record.id).pinned
    store.set_flags("a", record.id, hidden=False)
    assert store.recent_ids("a", 5) == [record.id] and len(store.lexical("a", "kettle", 5)) == 1
    past = datetime(2020, 1, 1, tzinfo=UTC)
    store.add("a", [MemoryDraft("the kettle is old", expires_at=past)])
    assert [hit[0] for hit in store.lexical("a", "kettle", 5)] == [record.id]


def test_completing_an_exchange(bank: Path, either_store: Store) -> None:
    store = either_store
    fact = store.add("a", [MemoryDraft("Clara is a nurse")])[0]
    session = store.create_session("a")
    asked = store.add("a", [MemoryDraft("who?", kind="exchange", status="open", session_id=session.id)])[0]
    assert store.pending_traces("a", "f") == [("a", fact.id)]
    store.put_traces("a", [TraceDraft(asked.id, "f", 3, b"k" * 9, b"r")])
    use = UseRecord(fact.id, 1, 2.5, {"bm25": 2.0, "mass": 0.5}, 0.25, True)
    done = store.complete("a", asked.id, "Clara", "complete", [use])
    assert (done.reply, done.status, done.trace_fingerprint, done.tokens) == ("Clara", "complete", None, 0)
    assert store.uses_of("a", asked.id) == [use] and store.used_in("a", fact.id) == [asked.id]
    assert store.pending_traces(None, "f") == [("a", fact.id), ("a", asked.id)]
    with pytest.raises(NotFoundError):
        store.get_kv("a", asked.id)
    assert store.sessions("a")[0].turns == 1
    store.close()
    with Store.open(bank) as again:
        assert again.get("a", asked.id) == done and again.verify(deep=True).ok


def test_a_reply_made_with_an_erased_memory_is_not_kept(store: Store) -> None:
    asked = store.add("a", [MemoryDraft("who?", kind="exchange", status="open")])[0]
    with pytest.raises(NotFoundError, match="erased"):
        store.complete("a", asked.id, "words of it", "complete", [UseRecord("a" * 26, 0, 1.0)])
    assert store.get("a", asked.id).reply is None and store.verify(deep=True).ok


def test_traces_are_replaced_and_found_by_model(either_store: Store) -> None:
    store = either_store
    ids = [record.id for record in store.add("a", [MemoryDraft("one"), MemoryDraft("two")])]
    store.put_traces("a", [TraceDraft(ids[0], "m1", 5, b"old", b"old-route")])
    store.put_traces("a", [TraceDraft(i, "m2", 6, b"kv-" + i.encode(), b"r-" + i.encode()) for i in ids])
    assert store.get_kv("a", ids[0]) == b"kv-" + ids[0].encode()
    assert store.get_routes("a", [*ids, "a" * 26]) == {i: b"r-" + i.encode() for i in ids}
    assert store.get_kvs("a", ids) == {i: b"kv-" + i.encode() for i in ids}
    assert store.pending_traces("a", "m2") == [] and len(store.pending_traces("a", "m1")) == 2
    record = store.get("a", ids[0])
    assert (record.trace_fingerprint, record.tokens) == ("m2", 6) and record.trace_bytes > 100
    assert store.reclaim() > 0 and store.reclaim() == 0
    assert store.verify(deep=True).ok and store.get_kv("a", ids[1]).startswith(b"kv-")


def test_prefix_and_settings(bank: Path, either_store: Store) -> None:
    either_store.put_prefix("m", b"first")
    either_store.put_prefix("m", b"second" * 1000)
    either_store.set_setting("model", "m")
    either_store.set_setting("model", "n")
    either_store.close()
    with Store.open(bank) as again:
        assert again.get_prefix("m") == b"second" * 1000 and again.get_prefix("x") is None
        assert again.get_setting("model") == "n" and again.get_setting("absent") is None
        assert again.verify(deep=True).ok


def test_sessions(store: Store) -> None:
    first = store.create_session("a", "one")
    second = store.create_session("a")
    store.add("a", [MemoryDraft("hi", kind="exchange", session_id=first.id)])
    assert [session.id for session in store.sessions("a")] == [first.id, second.id]
    assert store.get_session("a", first.id[:8]).turns == 1
    assert store.rename_session("a", first.id, "renamed").title == "renamed"
    with pytest.raises(NotFoundError):
        store.get_session("a", "zzzzzz")


def test_an_unknown_namespace_is_empty_to_read(store: Store) -> None:
    assert store.list("none") == [] and store.count("none") == 0 and store.lexical("none", "x", 3) == []
    assert store.sessions("none") == [] and store.pending_traces("none", "f") == []
    with pytest.raises(NotFoundError):
        store.get("none", "aaaa")
    assert store.namespaces() == []


def test_stats(store: Store) -> None:
    records = store.add("a", [MemoryDraft("abc"), MemoryDraft("defg", reply="hi")])
    store.add("b", [MemoryDraft("z")])
    store.put_traces("a", [TraceDraft(records[0].id, "f", 11, b"k" * 100, b"r")])
    store.set_flags("a", records[1].id, hidden=True)
    whole, one = store.stats(), store.stats("a")
    assert (whole.memories, whole.namespaces, whole.text_bytes, whole.tokens) == (3, 2, 10, 11)
    assert (one.memories, one.hidden, one.pending_traces, one.namespaces) == (2, 1, 1, 1)
    assert whole.disk_bytes > one.disk_bytes > one.trace_bytes > 0


def test_threads_share_a_store(store: Store) -> None:
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for index in range(8):
                record = store.add("a", [MemoryDraft(f"thread {number} wrote {index}")])[0]
                store.put_traces("a", [TraceDraft(record.id, "f", 1, b"k%d" % number, b"r")])
                assert store.get_kv("a", record.id) == b"k%d" % number
                assert store.lexical("a", f"wrote {index}", 100)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures and store.count("a") == 32 and store.verify(deep=True).ok
    assert sorted(record.ordinal for record in store.list("a")) == list(range(1, 33))
