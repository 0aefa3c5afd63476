from datetime import UTC, datetime

from mnemos.agent.citing import cite
from mnemos.memory.records import Memory, RecalledMemory


def recalled(text: str, reply: str | None = None) -> RecalledMemory:
    memory = Memory(
        id="a" * 26,
        namespace="default",
        kind="note",
        text=text,
        reply=reply,
        created_at=datetime(2026, 3, 3, tzinfo=UTC),
    )
    return RecalledMemory(memory=memory, rank=1, score=1.0)


def cited(message: str, reply: str, *texts: str) -> list[bool]:
    return [memory.cited for memory in cite([recalled(text) for text in texts], message, reply)]


def test_a_memory_is_cited_when_its_words_come_back() -> None:
    texts = ("My sister Clara is a nurse.", "The bus was late.")
    assert cited("What does Clara do?", "She works as a NURSE.", *texts) == [True, False]


def test_words_of_the_question_cite_nothing() -> None:
    assert cited("What does Clara do?", "Clara does things.", "My sister Clara is a nurse.") == [False]


def test_numbers_count_at_any_length() -> None:
    assert cited("How old is my cat?", "It is 9.", "My cat is 9 years old.") == [True]


def test_the_words_of_an_earlier_reply_count_too() -> None:
    (memory,) = cite([recalled("Tell me about Porto", "It lies on the Douro.")], "Which river?", "The Douro.")
    assert memory.cited
