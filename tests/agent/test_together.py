"""Several agents at once over one bank and one model: real turns in tasks and in threads."""

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mnemos import Agent, MemoryBank
from mnemos.agent.events import Reply, TokenDelta
from mnemos.agent.runtime import Runtime
from mnemos.attention.models import LanguageModel, load_shared
from mnemos.attention.sampling import Sampling
from mnemos.attention.shared_decoder import SharedDecoder
from mnemos.errors import BankFullError, BusyError

pytestmark = pytest.mark.model

LONG = Sampling(max_tokens=12, repetition_penalty=1.1)
ASKED = "Tell me about house number {}."


@pytest.fixture
def bank(tmp_path: Path) -> Iterator[MemoryBank]:
    with MemoryBank.open(tmp_path / "bank") as opened:
        yield opened


def agents_of(bank: MemoryBank, model: LanguageModel, count: int, **settings: Any) -> list[Agent]:
    return [
        Agent(bank, namespace=f"person-{index}", model=model, **{"sampling": LONG, **settings})
        for index in range(count)
    ]


def scheduler_of(model: LanguageModel) -> Any:
    assert isinstance(model.decoder, SharedDecoder)
    return model.decoder.scheduler


def check_whole(bank: MemoryBank, namespaces: list[str]) -> None:
    """Nothing is half done: every exchange is closed and has its trace, and the bank verifies."""
    for namespace in namespaces:
        for memory in bank.list(namespace):
            assert memory.status in ("complete", "interrupted"), memory.status
    assert bank.verify(deep=True).ok


def test_tasks_answer_together_as_each_would_alone(bank: MemoryBank, language_model: LanguageModel) -> None:
    alone = [
        Agent(bank, namespace=f"alone-{index}", model=language_model, sampling=LONG).run_sync(
            ASKED.format(index)
        )
        for index in range(2)
    ]
    scheduler = scheduler_of(language_model)
    before = scheduler.steps - scheduler.batches
    agents = agents_of(bank, language_model, 4)

    async def all_of_them() -> list[Reply]:
        return await asyncio.gather(*(agent.run(ASKED.format(i)) for i, agent in enumerate(agents)))

    replies = asyncio.run(all_of_them())
    assert scheduler.steps - scheduler.batches > before, "some steps went together"
    assert [reply.status for reply in replies] == ["complete"] * 4
    for index, reply in enumerate(replies):
        (kept,) = bank.list(f"person-{index}")
        assert (kept.text, kept.reply) == (ASKED.format(index), reply.text)
        assert kept.fidelity == "vivid"
    if language_model.decoder.compiled is not None:  # its rows don't depend on their company at all
        prompts = [reply.usage.prefill_tokens for reply in replies[:2]]
        assert prompts == [reply.usage.prefill_tokens for reply in alone]
        assert [reply.text for reply in replies[:2]] == [reply.text for reply in alone]
    check_whole(bank, [f"person-{index}" for index in range(4)])


def test_threads_and_one_namespace_make_each_trace_once(
    bank: MemoryBank, language_model: LanguageModel
) -> None:
    for index in range(6):
        bank.remember(f"My locker number {index} is near the door.")
    made: list[str] = []
    recaller = bank.recaller(language_model)
    encode = recaller.encoder.encode

    def counted(memories: Any) -> Any:
        made.extend(memory.id for memory in memories)
        return encode(memories)

    recaller.encoder.encode = counted  # type: ignore[method-assign]
    agents = [Agent(bank, model=language_model, sampling=Sampling(max_tokens=4)) for _ in range(4)]
    replies: list[Reply] = []
    threads = [
        threading.Thread(target=lambda agent=agent: replies.append(agent.run_sync("Where is my locker?")))
        for agent in agents
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert len(replies) == 4
    assert sorted(made) == sorted(set(made)), "no trace is made twice"
    assert len(made) == 10
    check_whole(bank, ["default"])


def test_one_that_is_cancelled_mid_token_leaves_the_others_alone(
    bank: MemoryBank, language_model: LanguageModel
) -> None:
    agents = agents_of(bank, language_model, 3, sampling=Sampling(max_tokens=24, repetition_penalty=1.1))

    async def run() -> list[Reply | BaseException]:
        talking = asyncio.Event()

        async def stopped() -> None:
            async for event in agents[0].stream(ASKED.format(0)):
                if isinstance(event, TokenDelta):
                    talking.set()

        task = asyncio.create_task(stopped())
        others = [asyncio.create_task(agents[i].run(ASKED.format(i))) for i in (1, 2)]
        await talking.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return await asyncio.gather(*others)

    replies = asyncio.run(run())
    assert all(isinstance(reply, Reply) and reply.status == "complete" for reply in replies)
    (cut,) = bank.list("person-0")
    assert (cut.status, cut.text) == ("interrupted", ASKED.format(0))
    assert agents[0].runtime.running == 0
    assert agents[0].run_sync("And now?").status == "complete"
    check_whole(bank, ["person-0", "person-1", "person-2"])


def test_one_that_is_cancelled_while_it_stores_is_stored_whole(
    bank: MemoryBank, language_model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cancel comes while the reply is being written: it is all there, and so are the others'."""
    agents = agents_of(bank, language_model, 3, sampling=Sampling(max_tokens=6))
    writing, go_on = threading.Event(), threading.Event()
    complete = bank.store.complete

    def slow(namespace: str, *rest: Any, **more: Any) -> Any:
        if namespace == "person-0":
            writing.set()
            go_on.wait(20)
        return complete(namespace, *rest, **more)

    monkeypatch.setattr(bank.store, "complete", slow)

    async def run() -> list[Reply]:
        task = asyncio.create_task(agents[0].run(ASKED.format(0)))
        others = [asyncio.create_task(agents[i].run(ASKED.format(i))) for i in (1, 2)]
        await asyncio.to_thread(writing.wait, 60)
        task.cancel()
        asyncio.get_running_loop().call_later(0.05, go_on.set)
        with pytest.raises(asyncio.CancelledError):
            await task
        return await asyncio.gather(*others)

    assert [reply.status for reply in asyncio.run(run())] == ["complete"] * 2
    (kept,) = bank.list("person-0")
    assert kept.status in ("complete", "interrupted")
    assert kept.reply
    check_whole(bank, ["person-0", "person-1", "person-2"])
    bank.encode_pending(language_model)
    (kept,) = bank.list("person-0")
    assert kept.fidelity == "vivid", "what the cancel left without a trace gets one at the next turn"


def test_a_turn_that_fails_is_its_own_matter(
    bank: MemoryBank, language_model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    agents = agents_of(bank, language_model, 3, sampling=Sampling(max_tokens=6))
    complete = bank.store.complete

    def failing(namespace: str, *rest: Any, **more: Any) -> Any:
        if namespace == "person-1":
            raise BankFullError("the disk has no room")
        return complete(namespace, *rest, **more)

    monkeypatch.setattr(bank.store, "complete", failing)

    async def run() -> list[Reply | BaseException]:
        works = (agent.run(ASKED.format(index)) for index, agent in enumerate(agents))
        return await asyncio.gather(*works, return_exceptions=True)

    replies = asyncio.run(run())
    assert isinstance(replies[1], BankFullError)
    assert [getattr(replies[i], "status", None) for i in (0, 2)] == ["complete"] * 2
    (kept,) = bank.list("person-1")
    assert (kept.status, kept.text) == ("open", ASKED.format(1)), "the message is safe"
    assert agents[1].runtime.running == 0


def test_too_many_at_once_are_told_before_anything_is_stored(
    bank: MemoryBank, language_model: LanguageModel
) -> None:
    runtime = Runtime(max_turns=1, max_waiting=1, wait_s=60)
    agents = agents_of(bank, language_model, 3, runtime=runtime, sampling=Sampling(max_tokens=8))

    async def run() -> list[Reply | BaseException]:
        works = (agent.run(ASKED.format(index)) for index, agent in enumerate(agents))
        return await asyncio.gather(*works, return_exceptions=True)

    replies = asyncio.run(run())
    assert sorted(type(reply).__name__ for reply in replies) == ["BusyError", "Reply", "Reply"]
    refused = next(index for index, reply in enumerate(replies) if isinstance(reply, BusyError))
    assert bank.namespaces() == sorted(f"person-{index}" for index in range(3) if index != refused)
    assert agents[refused].run_sync("Now?").status == "complete"


def test_agents_that_name_a_model_share_one(tmp_path: Path, language_model: LanguageModel) -> None:
    with MemoryBank.open(tmp_path / "a") as one, MemoryBank.open(tmp_path / "b") as other:
        agents = [Agent(one), Agent(other, model="smollm2-135m"), Agent(one, namespace="c")]
        assert len({id(agent.model) for agent in agents}) == 1
        assert len({id(agent.runtime) for agent in agents}) == 1
        assert load_shared("smollm2-135m") is agents[0].model
