"""What an agent's memory takes in and gives out, by policy, filter, quota and mode; on a small model."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from tests.memory.conftest import tiny_model

from mnemos import Agent, MemoryBank
from mnemos.agent.events import Recalled, RecallStarted, Reply, Stored, TokenDelta
from mnemos.agent.policies import AddTags, Draft, ExpireAfter, decide
from mnemos.agent.redaction import CARD, PASSWORD, Redactor
from mnemos.attention.models import LanguageModel
from mnemos.attention.sampling import Sampling
from mnemos.errors import (
    BankReadOnlyError,
    InvalidSelectorError,
    PolicyError,
    QuotaExceededError,
    UsageError,
)
from mnemos.store.selectors import Tag

__all__ = ["tiny_model"]

SHORT = Sampling(max_tokens=8)
FACT = "My sister Clara works as a nurse in Leeds."
QUESTION = "What does my sister Clara do for a living?"


@pytest.fixture
def language_model(tiny_model: LanguageModel) -> LanguageModel:
    """What is tested here is the same for every model."""
    return tiny_model


@pytest.fixture
def bank(tmp_path: Path) -> Iterator[MemoryBank]:
    with MemoryBank.open(tmp_path / "bank") as opened:
        yield opened


def agent_of(bank: MemoryBank, model: LanguageModel, **settings: object) -> Agent:
    return Agent(bank, model=model, **{"sampling": SHORT, **settings})  # type: ignore[arg-type]


@dataclass
class Dropping:
    """Drops drafts of one part, and notes all that it saw."""

    part: str

    def __post_init__(self) -> None:
        self.seen: list[Draft] = []

    def before_write(self, draft: Draft) -> Draft | None:
        self.seen.append(draft)
        return None if draft.part == self.part else draft


class Failing:
    def __init__(self, part: str) -> None:
        self.part = part

    def before_write(self, draft: Draft) -> Draft | None:
        if draft.part == self.part:
            raise ValueError(f"can't take {draft.text}")
        return draft


class Upper:
    def before_write(self, draft: Draft) -> Draft:
        return replace(draft, text=draft.text.upper(), kind="note", namespace="elsewhere")


# what is written


def test_policies_come_one_after_another_and_are_named() -> None:
    decided = decide([Redactor(), AddTags(("work",)), AddTags(())], Draft("password=abc1", tags=("a",)))
    assert decided.draft == Draft(f"password={PASSWORD}", tags=("a", "work"))
    assert decided.changed_by == ("Redactor", "AddTags")


def test_a_policy_can_not_move_words_to_somebody_else() -> None:
    draft = decide([Upper()], Draft("hi", namespace="alice", kind="exchange")).draft
    assert draft == Draft("HI", namespace="alice", kind="exchange")


def test_an_earlier_expiry_stays() -> None:
    soon = datetime.now(UTC) + timedelta(seconds=5)
    assert ExpireAfter(60).before_write(Draft("x", expires_at=soon)).expires_at == soon
    later = ExpireAfter(60).before_write(Draft("x")).expires_at
    assert later is not None and timedelta(seconds=50) < later - datetime.now(UTC) <= timedelta(seconds=60)


@pytest.mark.parametrize("bad", [lambda draft: "text", lambda draft: replace(draft, tags="ab")])
def test_what_is_no_draft_is_refused(bad: object) -> None:
    class Bad:
        def before_write(self, draft: Draft) -> Draft | None:
            return bad(draft)  # type: ignore[operator, no-any-return]

    with pytest.raises(PolicyError, match="Bad returned"):
        decide([Bad()], Draft("x"))


def test_a_failing_policy_says_where_and_not_what(bank: MemoryBank) -> None:
    with pytest.raises(
        PolicyError, match=r"Failing raised ValueError \(test_policies.py, line \d+\)"
    ) as caught:
        decide([Failing("text")], Draft("swordfish"))
    assert "swordfish" not in str(caught.value) and caught.value.__suppress_context__


def test_secrets_never_reach_the_bank(bank: MemoryBank, language_model: LanguageModel) -> None:
    agent = agent_of(bank, language_model, policies=[Redactor(tag="redacted")])
    reply = agent.run_sync("My card is 4111 1111 1111 1111.")
    (kept,) = bank.list()
    assert kept.text == f"My card is {CARD}." and kept.tags == ("redacted",)
    assert "4111 1111" not in (kept.reply or "")
    (stored,) = reply.stored
    assert (stored.memory_id, stored.kind, stored.changed_by) == (kept.id, "exchange", ("Redactor",))
    assert stored.tags == ("redacted",)
    working = agent._working
    assert working is not None and working._cache is None and working._answer is None
    assert agent.run_sync("Hello.").status == "complete"


def test_without_policies_nothing_is_changed(bank: MemoryBank, language_model: LanguageModel) -> None:
    reply = agent_of(bank, language_model).run_sync("My card is 4111 1111 1111 1111.")
    (kept,) = bank.list()
    assert kept.text == "My card is 4111 1111 1111 1111."
    assert [each.changed_by for each in reply.stored] == [()]


def test_a_dropped_message_leaves_nothing(bank: MemoryBank, language_model: LanguageModel) -> None:
    agent = agent_of(bank, language_model, policies=[Dropping("text")])
    events = list(agent.stream_sync("Hello there."))
    (reply,) = [event for event in events if isinstance(event, Reply)]
    assert reply.text and reply.exchange_id is None and reply.stored == ()
    assert not any(isinstance(event, Stored) for event in events)
    assert not bank.list(include_hidden=True) and not bank.sessions()


def test_a_dropped_reply_leaves_the_message(bank: MemoryBank, language_model: LanguageModel) -> None:
    policy = Dropping("reply")
    reply = agent_of(bank, language_model, policies=[policy]).run_sync("Hello there.")
    (kept,) = bank.list()
    assert (kept.text, kept.reply, kept.status) == ("Hello there.", None, "complete")
    assert reply.text and reply.stored[0].changed_by == ("Dropping",)
    assert [(draft.part, draft.text) for draft in policy.seen] == [
        ("text", "Hello there."),
        ("reply", reply.text),
    ]


def test_a_policy_that_fails_keeps_its_words_out(bank: MemoryBank, language_model: LanguageModel) -> None:
    with pytest.raises(PolicyError):
        agent_of(bank, language_model, policies=[Failing("text")]).run_sync("Hello there.")
    assert not bank.list()
    with pytest.raises(PolicyError):
        agent_of(bank, language_model, policies=[Failing("reply")]).run_sync("Hello there.")
    (kept,) = bank.list()
    assert (kept.text, kept.reply, kept.status) == ("Hello there.", None, "interrupted")


def test_an_expiry_of_a_policy_counts(bank: MemoryBank, language_model: LanguageModel) -> None:
    agent = agent_of(bank, language_model, policies=[ExpireAfter(3600)])
    kept = bank.get(str(agent.run_sync("Hello.").exchange_id))
    assert kept.expires_at is not None
    noted = agent.remember("The gate code is 7711.", tags=["home"])
    assert noted is not None and noted.expires_at is not None and noted.tags == ("home",)
    assert agent_of(bank, language_model, policies=[Dropping("text")]).remember("Nothing of this.") is None


# what is recalled


def test_the_filter_comes_before_the_best_are_taken(bank: MemoryBank, language_model: LanguageModel) -> None:
    """Of many better ones that are not allowed, none takes the place of the one that is."""
    for index in range(12):
        bank.remember(f"{FACT} (copy {index})", tags=["private"])
    allowed = bank.remember("Clara, my sister, has a job at the clinic.", tags=["work"])
    seen = agent_of(bank, language_model, recall="tag:work", k=4, incognito=True).run_sync(QUESTION)
    assert [each.memory.id for each in seen.memories] == [allowed.id]
    others = agent_of(bank, language_model, recall=~Tag("work"), k=4, incognito=True).run_sync(QUESTION)
    assert others.memories and allowed.id not in [each.memory.id for each in others.memories]
    nothing = agent_of(bank, language_model, recall="kind:document", incognito=True).run_sync(QUESTION)
    assert nothing.memories == ()


@pytest.mark.parametrize(
    ("where", "texts"),
    [
        ("source:a.txt", {"apple pie one"}),
        ("since:2026-02-01", {"apple pie two", "apple pie three"}),
        ("kind:document and before:2026-02-15", {"apple pie one"}),
        ("not source:a.txt and not tag:x", {"apple pie three"}),
    ],
)
def test_search_takes_the_same_filter(
    bank: MemoryBank, language_model: LanguageModel, where: str, texts: set[str]
) -> None:
    first, second = datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 3, 1, tzinfo=UTC)
    bank.remember("apple pie one", source="a.txt", kind="document", created_at=first)
    bank.remember("apple pie two", tags=["x"], created_at=second)
    bank.remember("apple pie three", created_at=second)
    for router in ("lexical", "full"):
        found = bank.search("apple pie", where=where, router=router, model=language_model)  # type: ignore[arg-type]
        assert {each.memory.text for each in found} == texts


def test_a_filter_that_can_not_be_read_is_refused_at_once(bank: MemoryBank) -> None:
    for where in ("tag:", "nonsense", 'like:"cake"'):
        with pytest.raises(InvalidSelectorError):
            Agent(bank, recall=where)


# modes


def test_an_incognito_turn_recalls_and_leaves_nothing(
    bank: MemoryBank, language_model: LanguageModel
) -> None:
    fact = bank.remember(FACT)
    agent = agent_of(bank, language_model)
    agent.run_sync("Good morning.")
    before = bank.list(), [(each.id, each.turns) for each in bank.sessions()]
    digest = bank.store.content_digest("default")
    kept = agent._working
    assert kept is not None
    tokens = list(kept._tokens)
    events = list(agent.stream_sync(QUESTION, incognito=True))
    assert [type(event) for event in events if not isinstance(event, TokenDelta)] == [
        RecallStarted,
        Recalled,
        Reply,
    ]
    reply = events[-1]
    assert isinstance(reply, Reply) and reply.stored == () and reply.exchange_id is None
    assert fact.id in [each.memory.id for each in reply.memories]
    assert (bank.list(), [(each.id, each.turns) for each in bank.sessions()]) == before
    assert bank.store.content_digest("default") == digest
    assert agent._working is kept and kept._tokens == tokens, "the conversation's own goes on"
    later = agent.run_sync("What did I ask you before?")
    assert len(bank.list()) == len(before[0]) + 1 and later.exchange_id is not None


def test_the_caches_of_an_incognito_turn_are_zeroed(
    bank: MemoryBank, language_model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mnemos.attention.decoder import Decoder
    from mnemos.attention.kv import KVCache

    made: list[KVCache] = []
    new_cache = Decoder.new_cache
    bank.remember(FACT)
    agent = agent_of(bank, language_model, incognito=True)
    bank.search("warm up", model=language_model)

    def noted(self: Decoder, capacity: int) -> KVCache:
        cache = new_cache(self, capacity)
        cache.k.zero_(), cache.v.zero_()
        made.append(cache)
        return cache

    monkeypatch.setattr(Decoder, "new_cache", noted)
    assert agent.run_sync(QUESTION).memories
    assert agent.run_sync("Thanks a lot.").status == "complete"
    assert len(made) >= 3
    assert not any(bool(cache.k.any()) or bool(cache.v.any()) for cache in made)
    with pytest.raises(BankReadOnlyError):
        agent.remember("Something.")
    assert not bank.sessions()


def test_a_stopped_incognito_turn_leaves_nothing(bank: MemoryBank, language_model: LanguageModel) -> None:
    stream = agent_of(bank, language_model, incognito=True, sampling=Sampling(max_tokens=50)).stream_sync(
        "Go on."
    )
    for event in stream:
        if isinstance(event, TokenDelta):
            break
    stream.close()
    assert not bank.list() and not bank.sessions()


def test_read_only_recalls_and_writes_nothing(tmp_path: Path, language_model: LanguageModel) -> None:
    with MemoryBank.open(tmp_path / "bank") as bank:
        bank.remember(FACT)
        bank.encode_pending(language_model)
        unencoded = bank.remember("The heron nests by the weir.")

    def files() -> dict[str, bytes]:
        paths = [path for path in (tmp_path / "bank").rglob("*") if path.is_file()]
        held = {str(path): path.read_bytes() for path in paths if not path.name.endswith("-shm")}
        return {name: data for name, data in held.items() if data}  # readers leave empty logs

    for is_bank_read_only in (True, False):
        with MemoryBank.open(tmp_path / "bank", read_only=is_bank_read_only) as bank:
            before = files()
            agent = agent_of(bank, language_model, read_only=True)
            reply = agent.run_sync(QUESTION)
            assert [each.memory.text for each in reply.memories] == [FACT]
            assert (reply.stored, reply.exchange_id, reply.session_id) == ((), None, None)
            assert files() == before
            assert bank.get(unencoded.id).fidelity == "pending"
            with pytest.raises(BankReadOnlyError):
                agent.remember("Something.")


# quotas


def test_memories_and_bytes_are_limited(bank: MemoryBank) -> None:
    bank.set_quota("alice", memories=2)
    assert bank.quota("alice").memories == 2 and not bank.quota("bob").is_set
    first = bank.remember("one", namespace="alice")
    bank.remember("two", namespace="alice")
    with pytest.raises(QuotaExceededError, match="2 memories"):
        bank.remember("three", namespace="alice")
    bank.remember("three", namespace="bob")
    assert len(bank.list("alice")) == 2
    bank.forget(bank.plan_forget(namespace="alice", ids=[first.id]))
    bank.remember("three", namespace="alice")
    bank.set_quota("alice", text_bytes=12)
    with pytest.raises(QuotaExceededError, match="12 bytes"):
        bank.remember("fives", namespace="alice")
    bank.remember("four", namespace="alice")
    bank.set_quota("alice")
    bank.remember("as much as one likes", namespace="alice")


def test_a_group_goes_in_whole_or_not_at_all(bank: MemoryBank) -> None:
    from mnemos.store.records import MemoryDraft

    bank.set_quota(memories=2)
    with pytest.raises(QuotaExceededError):
        bank.remember_many([MemoryDraft(each) for each in ("a", "b", "c")])
    assert bank.list() == []


def test_a_quota_lasts(tmp_path: Path) -> None:
    with MemoryBank.open(tmp_path / "bank") as bank:
        bank.set_quota(memories=0, turns_per_day=7)
    with MemoryBank.open(tmp_path / "bank") as bank:
        assert (bank.quota().memories, bank.quota().turns_per_day) == (0, 7)
        with pytest.raises(QuotaExceededError):
            bank.remember("x")


@pytest.mark.parametrize("bad", [-1, 1.5, "3", 1 << 62])
def test_a_limit_is_a_number(bank: MemoryBank, bad: object) -> None:
    with pytest.raises(UsageError):
        bank.set_quota(memories=bad)  # type: ignore[arg-type]


def test_turns_are_limited_by_the_day(bank: MemoryBank, language_model: LanguageModel) -> None:
    bank.set_quota(turns_per_day=1)
    agent = agent_of(bank, language_model)
    agent.run_sync("Hello.")
    with pytest.raises(QuotaExceededError, match="1 turns a day"):
        agent.run_sync("Hello again.")
    assert [memory.text for memory in bank.list()] == ["Hello."]
    assert agent.run_sync("Hello again.", incognito=True).status == "complete"
