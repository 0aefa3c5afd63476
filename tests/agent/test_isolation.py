"""Two namespaces of one bank, used in turns at random: nothing that either is given shows the other's words.

Whatever a call gives back or raises is put into text and looked through for the other's mark. Ids of the
other one are tried everywhere an id goes.
"""

import asyncio
import io
import json
import random
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from tests.memory.conftest import tiny_model

from mnemos import Agent, MemoryBank
from mnemos.agent.events import Reply
from mnemos.agent.generators import ChatMessage, Finish
from mnemos.agent.stopping import Stop
from mnemos.attention.models import LanguageModel
from mnemos.attention.sampling import Sampling
from mnemos.errors import InvalidNamespaceError, MnemosError, NotFoundError, QuotaExceededError
from mnemos.store.records import MemoryDraft

__all__ = ["tiny_model"]

MARKS = {"alice": "kestrel", "acme/bob": "heron"}
SHARED = ("lives in Leeds", "has a red bicycle", "likes apple pie", "works at the weir")


class Echo:
    """Says back all that it is given, so that whatever reaches a prompt reaches a reply."""

    name = "echo"

    def __init__(self) -> None:
        self.asked: list[str] = []

    def generate(
        self, messages: Sequence[ChatMessage], sampling: Sampling, stop: Stop
    ) -> Iterator[str | Finish]:
        said = "\n".join(message.content for message in messages)
        self.asked.append(said)
        yield said[-400:]
        yield Finish("eos")


class Person:
    """One namespace: what it does at random, and all that it gets to see."""

    def __init__(self, bank: MemoryBank, name: str, model: LanguageModel, rng: random.Random) -> None:
        self.bank, self.name, self.mark, self.rng = bank, name, MARKS[name], rng
        self.model = model
        self.echo = Echo()
        settings = {"namespace": name, "model": model, "sampling": Sampling(max_tokens=2), "k": 4}
        self.remote = Agent(bank, generator=self.echo, **settings)  # type: ignore[arg-type]
        self.own = Agent(bank, **settings)  # type: ignore[arg-type]
        self.other: Person | None = None
        self.count = 0

    def words(self) -> str:
        self.count += 1
        return f"The {self.mark} number {self.count} {self.rng.choice(SHARED)}."

    def any_id(self) -> str:
        """One of its own memories, or of the other's; whole or a prefix."""
        assert self.other is not None
        who = self.rng.choice([self, self.other])
        ids = [each.id for each in self.bank.list(who.name, include_hidden=True)] or ["aaaaaaaa"]
        chosen = self.rng.choice(ids)
        return chosen if self.rng.random() < 0.7 else chosen[:8]

    def any_session(self) -> str:
        assert self.other is not None
        who = self.rng.choice([self, self.other])
        ids = [each.id for each in self.bank.sessions(who.name)] or ["aaaaaaaa"]
        return self.rng.choice(ids)

    def question(self) -> str:
        assert self.other is not None
        return f"What about the {self.rng.choice([self.mark, 'weir'])} that {self.rng.choice(SHARED)}?"

    def actions(self) -> dict[str, Callable[[], Any]]:
        bank, name = self.bank, self.name
        return {
            "remember": lambda: bank.remember(
                self.words(), namespace=name, tags=["pie"], title=f"{self.mark} title", source="a.txt"
            ),
            "group": lambda: bank.remember_many(
                [MemoryDraft(self.words()) for _ in range(3)], namespace=name
            ),
            "list": lambda: bank.list(name, include_hidden=True),
            "matching": lambda: bank.list(name, matching="number", tags=["pie"]),
            "get": lambda: bank.get(self.any_id(), namespace=name),
            "words": lambda: bank.search(self.question(), namespace=name, router="lexical"),
            "search": lambda: bank.search(self.question(), namespace=name, model=self.model),
            "like": lambda: bank.list(name, where='like:"red bicycle"@-9', model=self.model),
            "why": lambda: bank.why(self.any_id(), namespace=name),
            "used in": lambda: bank.used_in(self.any_id(), namespace=name),
            "plan": lambda: bank.plan_forget(namespace=name, ids=[self.any_id()]),
            "plan by words": lambda: bank.plan_forget(namespace=name, matching="weir"),
            "forget": lambda: bank.forget(bank.plan_forget(namespace=name, ids=[self.any_id()])),
            "edit": lambda: bank.edit(self.any_id(), self.words(), namespace=name),
            "hide": lambda: bank.hide(self.any_id(), namespace=name),
            "pin": lambda: bank.pin(self.any_id(), namespace=name),
            "session": lambda: bank.create_session(name, title=f"{self.mark} session"),
            "sessions": lambda: bank.sessions(name),
            "rename": lambda: bank.rename_session(self.any_session(), f"{self.mark} again", namespace=name),
            "branch": lambda: bank.branch_session(self.any_session(), namespace=name),
            "branch at": lambda: bank.branch_session(self.any_session(), at=self.any_id(), namespace=name),
            "history": lambda: bank.history(self.any_session(), namespace=name, include_hidden=True),
            "delete": lambda: bank.delete_session(
                self.any_session(), with_memories=self.rng.random() < 0.5, namespace=name
            ),
            "resume": self.resume,
            "export": self.export,
            "stats": lambda: bank.stats(name),
            "quota": self.quota,
            "sweep": lambda: bank.plan_sweep(name),
            "turn": lambda: list(self.own.stream_sync(self.question())),
            "text turn": lambda: list(self.remote.stream_sync(self.question())),
            "incognito": lambda: self.remote.run_sync(self.question(), incognito=True),
            "awaited": lambda: asyncio.run(self.remote.run(self.words())),
        }

    def resume(self) -> Reply:
        session = self.any_session()
        agent = Agent(self.bank, namespace=self.name, model=self.model, generator=self.echo, session=session)
        return agent.run_sync(self.question())

    def export(self) -> bytes:
        out = io.BytesIO()
        self.bank.export(out, namespaces=[self.name])
        import zstandard

        return zstandard.ZstdDecompressor().stream_reader(out.getvalue(), read_across_frames=True).read()

    def quota(self) -> None:
        self.bank.set_quota(self.name, memories=0)
        try:
            self.bank.remember(self.words(), namespace=self.name)
        except QuotaExceededError as error:
            raise NotFoundError(str(error)) from error
        finally:
            self.bank.set_quota(self.name)

    def act(self, action: str) -> str:
        """All that doing it shows."""
        try:
            shown = text_of(self.actions()[action]())
        except MnemosError as error:
            shown = "".join(traceback.format_exception(error))
        asked, self.echo.asked = self.echo.asked, []
        return "\n".join([shown, *asked])


def text_of(value: Any) -> str:
    if isinstance(value, BaseModel):
        return value.model_dump_json()
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, list | tuple):
        return "\n".join(map(text_of, value))
    return repr(value)


@pytest.mark.parametrize("seed", range(3))
def test_no_call_shows_the_others_words(tmp_path: Path, tiny_model: LanguageModel, seed: int) -> None:
    rng = random.Random(seed)
    with MemoryBank.open(tmp_path / "bank") as bank:
        people = [Person(bank, name, tiny_model, rng) for name in MARKS]
        people[0].other, people[1].other = people[1], people[0]
        for person in people:
            for _ in range(4):
                person.act("remember")
        names = list(people[0].actions())
        plan = [*names, *names, *rng.choices(names, k=20)]
        rng.shuffle(plan)
        seen: dict[str, set[str]] = {person.name: set() for person in people}
        for action in plan:
            person = rng.choice(people)
            assert person.other is not None
            shown = person.act(action).casefold()
            assert person.other.mark not in shown, f"{action} of {person.name} shows the other's words"
            if person.mark in shown:
                seen[person.name].add(action)
        assert all(len(actions) >= 5 for actions in seen.values()), (
            "its own words do show, so the look is real"
        )
        for person in people:
            assert person.other is not None
            held = text_of(bank.list(person.name, include_hidden=True)).casefold()
            assert person.mark in held and person.other.mark not in held


def test_two_people_at_once_in_threads(tmp_path: Path, tiny_model: LanguageModel) -> None:
    async def talk(person: Person) -> list[str]:
        shown = []
        for _ in range(6):
            reply = await person.remote.run(person.words())
            shown.append(text_of(reply) + "\n".join(person.echo.asked))
            shown.append(await asyncio.to_thread(person.act, "search"))
        return shown

    async def both(people: list[Person]) -> list[list[str]]:
        return list(await asyncio.gather(*map(talk, people)))

    with MemoryBank.open(tmp_path / "bank") as bank:
        people = [Person(bank, name, tiny_model, random.Random(5)) for name in MARKS]
        people[0].other, people[1].other = people[1], people[0]
        for person, shown in zip(people, asyncio.run(both(people)), strict=True):
            assert person.other is not None
            assert all(person.other.mark not in each.casefold() for each in shown)
            assert any(person.mark in each.casefold() for each in shown)


def test_ids_of_another_namespace_lead_nowhere(tmp_path: Path) -> None:
    with MemoryBank.open(tmp_path / "bank") as bank:
        secret = bank.remember("The heron nests by the weir.", namespace="acme/bob")
        session = bank.create_session("acme/bob", title="heron talk")
        bank.remember("mine", namespace="alice")
        for call in (
            lambda: bank.get(secret.id, namespace="alice"),
            lambda: bank.hide(secret.id, namespace="alice"),
            lambda: bank.edit(secret.id, "mine now", namespace="alice"),
            lambda: bank.plan_forget(namespace="alice", ids=[secret.id]),
            lambda: bank.why(secret.id, namespace="alice"),
            lambda: bank.get_session(session.id, namespace="alice"),
            lambda: bank.branch_session(session.id, namespace="alice"),
            lambda: bank.delete_session(session.id, with_memories=True, namespace="alice"),
            lambda: Agent(bank, namespace="alice", session=session.id),
        ):
            with pytest.raises(NotFoundError) as caught:
                call()
            assert "heron" not in str(caught.value)
        assert bank.history(session.id, namespace="alice") == []
        assert bank.get(secret.id, namespace="acme/bob").text == secret.text


TRICKS = [
    "../x",
    "a/../../b",
    "..",
    ".",
    "a/./b",
    "/etc/passwd",
    "a//b",
    "a/",
    "/a",
    "",
    " ",
    "a\x00b",
    "a\nb",
    "a\\..\\b",
    "C:x",
    "a b",
    "n" * 129,
    "x" * 100_000,
    "é",
    "a\u202eb",
    "\ud800",
    "%2e%2e/x",
    "~root",
]


@pytest.mark.parametrize("name", TRICKS, ids=lambda name: json.dumps(name[:20]))
def test_names_with_tricks_are_refused_clearly(tmp_path: Path, name: str) -> None:
    before = sorted(tmp_path.rglob("*"))
    with MemoryBank.open(tmp_path / "bank") as bank:
        bank.remember("mine", namespace="alice")
        inside = sorted(path for path in (tmp_path / "bank").rglob("*") if path.suffix == ".db")
        for call in (
            lambda: bank.remember("x", namespace=name),
            lambda: bank.list(name),
            lambda: bank.create_session(name),
            lambda: bank.set_quota(name, memories=1),
            lambda: bank.search("x", namespace=name, router="lexical"),
            lambda: Agent(bank, namespace=name).run_sync("hello"),
            lambda: bank.plan_forget(namespace=name, everything=True),
        ):
            with pytest.raises(InvalidNamespaceError) as caught:
                call()
            assert len(str(caught.value)) < 300
        assert bank.namespaces() == ["alice"]
        assert sorted(path for path in (tmp_path / "bank").rglob("*") if path.suffix == ".db") == inside
    assert {path.name for path in tmp_path.iterdir()} - {path.name for path in before} == {"bank"}
