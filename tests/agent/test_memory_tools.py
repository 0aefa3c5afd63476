"""`remember`, `recall` and `forget` as tools: bound to one namespace, and nothing is erased unconfirmed."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from mnemos import Agent, MemoryBank, ToolContext, memory_tools, tool
from mnemos.agent.recording import TurnRecord
from mnemos.agent.tools.context import TurnMemories
from mnemos.agent.tools.memory_tools import Confirm
from mnemos.attention.models import LanguageModel
from mnemos.attention.sampling import Sampling
from mnemos.errors import NotFoundError, UsageError
from mnemos.memory.records import ForgetPlan, Memory
from mnemos.store.records import UseRecord

Scripted = Callable[..., LanguageModel]
FACT = "My sister Clara works as a nurse in Leeds."


@pytest.fixture
def bank(tmp_path: Path) -> Iterator[MemoryBank]:
    with MemoryBank.open(tmp_path / "bank") as opened:
        yield opened


def reach(bank: MemoryBank, namespace: str = "alice", uses: Sequence[Memory] = ()) -> ToolContext:
    """What a tool gets in a turn of a namespace, whose message is 'Forget Clara.'"""
    session = bank.create_session(namespace)
    record = TurnRecord(bank, namespace=namespace, session=lambda: session.id)
    exchange = record.begin("Forget Clara.")
    used = [UseRecord(each.id, 1, 1.0) for each in (exchange, *uses)]
    memories = TurnMemories(bank, record, exchange_id=exchange.id, made_with=lambda: used)
    return ToolContext("call00001", memories)


def call(name: str, context: ToolContext, confirm: Confirm | None = None, **arguments: object) -> str:
    (found,) = (each for each in memory_tools(confirm) if each.name == name)
    assert not {"namespace", "context"} & set(found.schema["properties"])
    checked = found.parameters.model_validate(arguments).arguments()
    return str(found.function(**checked, context=context))


def test_remember_writes_a_note_that_depends_on_the_turn(bank: MemoryBank) -> None:
    fact = bank.remember(FACT, namespace="alice")
    context = reach(bank, uses=[fact])
    told = call("remember", context, text="Clara is a nurse.")
    (note,) = bank.list("alice", matching="is a nurse.")
    assert note.id.startswith(told.removeprefix("Remembered as ").removesuffix("."))
    assert (note.kind, note.source, note.speaker) == ("note", "tool:remember", "Assistant")
    plan = bank.plan_forget(namespace="alice", ids=[fact.id])
    assert [memory.id for memory in plan.dependants] == [note.id]
    bank.forget(plan)
    with pytest.raises(NotFoundError):
        bank.get(note.id, namespace="alice")


def test_forget_refuses_unless_confirmed(bank: MemoryBank) -> None:
    fact = bank.remember(FACT, namespace="alice")
    shown: list[ForgetPlan] = []

    def refuse(plan: ForgetPlan) -> bool:
        shown.append(plan)
        return False

    for confirm in (None, refuse):
        assert "not confirmed" in call("forget", reach(bank), confirm, what="Clara")
        assert bank.get(fact.id, namespace="alice").text == FACT
    assert [[memory.id for memory in plan.selected if memory.text == FACT] for plan in shown] == [[fact.id]]


@pytest.mark.parametrize("by_id", [True, False])
def test_forget_erases_what_was_confirmed_and_says_no_word_of_it(bank: MemoryBank, by_id: bool) -> None:
    fact = bank.remember(FACT, namespace="alice")
    context = reach(bank, uses=[fact])
    told = call("forget", context, lambda plan: True, what=fact.id[:8] if by_id else "cLARA works")
    assert told.startswith("Erased 1 memories.")
    assert "Clara" not in told
    assert not bank.list("alice", matching="works as")
    assert bank.list("alice", matching="Forget Clara."), "the message of the turn itself stays"
    assert context.memories.has_forgotten
    with pytest.raises(UsageError, match="forgot"):
        context.memories.remember("Clara is a nurse.")
    assert context.memories.keep_result("x", {}, "Clara") is None


def test_no_argument_reaches_another_namespace(bank: MemoryBank) -> None:
    theirs = bank.remember(FACT, namespace="bob")
    context = reach(bank, "alice")
    for what in (theirs.id, theirs.id[:8], "Clara works", "bob", "../bob", "%", "bob/Clara"):
        assert "nothing was erased" in _forgotten(context, what)
    assert bank.get(theirs.id, namespace="bob").text == FACT
    with pytest.raises(NotFoundError):
        TurnMemories(
            bank,
            TurnRecord(bank, namespace="alice", session=lambda: context.session_id or ""),
            exchange_id="x",
            made_with=lambda: [UseRecord(theirs.id, 1, 1.0)],
        ).remember("from another's memory")


def _forgotten(context: ToolContext, what: str) -> str:
    try:
        return call("forget", context, lambda plan: True, what=what)
    except ValueError:  # too short for the tool's schema
        return "nothing was erased"


def test_a_tool_of_one_namespace_finds_nothing_of_another(
    bank: MemoryBank, random_model: LanguageModel
) -> None:
    bank.recaller(random_model)
    bank.remember(FACT, namespace="bob")
    mine = bank.remember("Ann keeps two goats.", namespace="alice")
    context = reach(bank, "alice")
    told = call("recall", context, query="Clara nurse Leeds goats", limit=10)
    assert told.splitlines() == [f"[{mine.id[:8]}] {mine.created_at:%Y-%m-%d} Ann keeps two goats."]
    assert list(context.memories.recalled) == [mine.id]
    assert call("recall", reach(bank, "carol"), query="Clara") == "Nothing was found."


def test_what_a_tool_found_is_part_of_the_provenance(bank: MemoryBank, scripted: Scripted) -> None:
    fact = bank.remember(FACT)
    (recall,) = (each for each in memory_tools() if each.name == "recall")
    model = scripted("hermes", {'"': "C", "C": "l", "l": "a", "a": '"'})
    agent = Agent(bank, model=model, tools=[recall], k=0, max_steps=2, sampling=Sampling(max_tokens=150))
    reply = agent.run_sync("Who is Clara?")
    assert [each.memory.id for each in reply.memories] == [fact.id]
    assert reply.memories[0].signals["tool"] == 1.0
    assert [each.memory.id for each in bank.why(reply.exchange_id)] == [fact.id]
    assert [memory.kind for memory in bank.list()].count("tool") == 0, (
        "what it returned is remembered already"
    )


def test_a_turn_that_forgets_what_it_was_made_from_keeps_its_message_only(
    bank: MemoryBank, scripted: Scripted
) -> None:
    bank.remember(FACT)

    @tool(timeout_s=None, remembered=False)
    def purge(context: ToolContext) -> str:
        """Erase all that is known of Clara."""
        context.memories.recall("Clara", 3)
        plan = context.memories.plan_forget("Clara works")
        assert plan is not None
        return context.memories.forget(plan).id[:8]

    model = scripted("hermes", {"</tool_response>": "o"})
    agent = Agent(bank, model=model, tools=[purge], k=0, max_steps=2, sampling=Sampling(max_tokens=60))
    reply = agent.run_sync("Please purge it.")
    assert reply.status == "complete"
    (kept,) = bank.list()
    assert (kept.text, kept.reply, kept.status) == ("Please purge it.", None, "complete")
    assert bank.verify(deep=True).ok
