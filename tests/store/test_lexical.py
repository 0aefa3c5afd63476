import itertools

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mnemos.store.records import MemoryDraft
from mnemos.store.store import Store


def test_stems_accents_case_and_rank(store: Store) -> None:
    texts = [
        "Clara was nursing at the clinic",
        "the café serves résumé printing",
        "nurses and more nurses, said the nurse",
        "nothing here",
        "Москва весной",
    ]
    ids = [record.id for record in store.add("a", [MemoryDraft(text) for text in texts])]
    hits = store.lexical("a", "NURSE?", 9)
    assert [hit[0] for hit in hits][:1] == [ids[2]] and {hit[0] for hit in hits} == {ids[0], ids[2]}
    assert all(first[1] >= second[1] > 0 for first, second in itertools.pairwise(hits))
    assert [hit[0] for hit in store.lexical("a", "resume CAFE", 9)] == [ids[1]]
    assert [hit[0] for hit in store.lexical("a", "Москва".upper(), 9)] == [ids[4]]
    assert store.lexical("a", "nurse", 1) == hits[:1] and store.lexical("a", "nurse", 0) == []


def test_replies_titles_tags_and_sources_are_found(store: Store) -> None:
    draft = MemoryDraft("plain", reply="answer42", title="heading", tags=["labelled"], source="dir/file.md")
    memory_id = store.add("a", [draft])[0].id
    for query in ("answer42", "heading", "labelled", "file"):
        assert [hit[0] for hit in store.lexical("a", query, 3)] == [memory_id], query


def test_stop_words_count_only_when_there_is_nothing_else(store: Store) -> None:
    ids = [record.id for record in store.add("a", [MemoryDraft("who are you"), MemoryDraft("the boat")])]
    assert [hit[0] for hit in store.lexical("a", "what is the boat", 9)] == [ids[1]]
    assert [hit[0] for hit in store.lexical("a", "who are you", 9)] == [ids[0]]


def test_common_words_of_a_larger_bank_are_left_out(store: Store) -> None:
    store.add("a", [MemoryDraft(f"shared entry {index}") for index in range(600)])
    rare = store.add("a", [MemoryDraft("a lighthouse")])[0].id
    assert [hit[0] for hit in store.lexical("a", "shared lighthouse", 9)] == [rare]
    assert len(store.lexical("a", "shared", 9)) == 9


def test_words_that_few_memories_hold_count_in_a_small_bank(store: Store) -> None:
    """Forty of four hundred is a tenth, and yet the topic of a conversation."""
    store.add("a", [MemoryDraft(f"plain entry {index}") for index in range(360)])
    about = [r.id for r in store.add("a", [MemoryDraft(f"the boat of {index}") for index in range(40)])]
    assert {hit[0] for hit in store.lexical("a", "which boat", 99)} == set(about)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(query=st.text(max_size=60))
def test_any_query_is_answered(store: Store, query: str) -> None:
    if not store.count("a"):
        store.add("a", [MemoryDraft('AND OR NOT NEAR( "quoted" * ^ : {a} -b')])
    assert isinstance(store.lexical("a", query, 3), list)


@pytest.mark.parametrize(
    "query", ['"', "NEAR(", "a AND", "text:x", "*", "^", "-", "{", "a\0b", "((((", "'; DROP"]
)
def test_query_syntax_is_only_words(store: Store, query: str) -> None:
    store.add("a", [MemoryDraft("and or near text drop")])
    store.lexical("a", query, 3)
    assert store.verify().ok


def test_a_word_that_no_memory_holds_does_not_hide_what_the_common_ones_find(store: Store) -> None:
    store.add("a", [MemoryDraft("the heron by the weir")] * 600 + [MemoryDraft("a ladder")])
    assert len(store.lexical("a", "zeppelin heron", 10)) == 10
    assert len(store.lexical("a", "zeppelin ladder", 10)) == 1
    assert store.lexical("a", "zeppelin", 10) == []
