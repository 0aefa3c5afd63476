"""Replies that are values of a type: from random weights, and from the default model."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field, TypeAdapter, ValidationError, field_validator
from typing_extensions import TypedDict

from mnemos import Agent, MemoryBank, TokenDelta, tool
from mnemos.agent.abilities import Abilities, Answerer
from mnemos.agent.output import OutputType
from mnemos.agent.tools.toolbox import Toolbox
from mnemos.attention.generate import StopReason, generate
from mnemos.attention.models import LanguageModel
from mnemos.attention.sampling import Sampling
from mnemos.errors import InvalidOutputError, InvalidSchemaError, ModelError

Short = Annotated[str, Field(max_length=8)]


class Person(BaseModel):
    name: str
    age: int


class Point(TypedDict):
    x: Annotated[int, Field(ge=-9, le=9)]
    on: bool


class Leaf(BaseModel):
    kind: Literal["leaf"]
    mark: Annotated[str, Field(pattern="^[a-c]{1,3}$")]


class Pair(BaseModel):
    kind: Literal["pair"]
    items: tuple[Leaf, Leaf]


TYPES: list[Any] = [
    Literal["yes", "no", 3],
    bool,
    Point,
    Leaf,
    Annotated[Leaf | Pair, Field(discriminator="kind")],
    Annotated[list[Literal["a", "b"]], Field(max_length=4)],
    Annotated[set[Annotated[int, Field(ge=0, le=99)]], Field(max_length=3)],
    dict[Literal["q", "r"], Short] | None,
    tuple[Short, bool],
]


@pytest.fixture
def bank(tmp_path: Path) -> Iterator[MemoryBank]:
    with MemoryBank.open(tmp_path / "bank") as opened:
        yield opened


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(which=st.sampled_from(TYPES), seed=st.integers(0, 2**31))
def test_random_weights_write_what_fits(random_model: LanguageModel, which: Any, seed: int) -> None:
    answerer = Answerer(random_model, Abilities(Toolbox([]), OutputType(which)))
    cache = random_model.decoder.new_cache(400)
    logits = random_model.decoder.forward([1, 2, 3], cache)
    generation = generate(
        random_model.decoder,
        cache,
        logits,
        Sampling(temperature=1.0, seed=seed, max_tokens=300),
        eos_ids=random_model.tokenizer.eos_ids,
        mask=answerer.mask([], must_call=False),
    )
    text = random_model.tokenizer.decode(list(generation))
    assert generation.stop_reason is StopReason.EOS, "bounded types come to an end"
    TypeAdapter(which).validate_json(text)


@pytest.mark.parametrize("which", [Callable[[int], int], object(), Annotated[str, Field(pattern="(?=a)")]])
def test_types_that_can_not_be_expressed_are_refused(bank: MemoryBank, which: Any) -> None:
    with pytest.raises(InvalidSchemaError, match="output type"):
        Agent(bank, output_type=which)


def test_a_value_that_never_ends_is_a_typed_error_and_the_exchange_is_kept(
    bank: MemoryBank, random_model: LanguageModel
) -> None:
    agent = Agent(
        bank,
        model=random_model,
        output_type=Annotated[str, Field(min_length=500)],
        sampling=Sampling(max_tokens=20),
    )
    with pytest.raises(InvalidOutputError, match="max_tokens") as caught:
        agent.run_sync("Who is Alice?")
    assert isinstance(caught.value, ModelError)
    (kept,) = bank.list()
    assert (kept.status, kept.text) == ("interrupted", "Who is Alice?")
    assert kept.reply
    assert kept.reply not in str(caught.value)


class Never(BaseModel):
    pick: Literal["a", "b"]

    @field_validator("pick")
    @classmethod
    def refuse(cls, value: str) -> str:
        raise ValueError("not that one")


def test_a_value_that_never_passes_validation_is_asked_for_again_and_given_up(
    bank: MemoryBank, random_model: LanguageModel
) -> None:
    agent = Agent(bank, model=random_model, output_type=Never, output_retries=1)
    with pytest.raises(InvalidOutputError, match="in 2 tries"):
        agent.run_sync("Which?")
    (kept,) = bank.list()
    assert kept.status == "interrupted"
    assert Agent(bank, model=random_model, output_type=bool).run_sync("And now?").output in (True, False)


def test_a_value_that_passes_when_asked_again_is_sent_once(
    bank: MemoryBank, random_model: LanguageModel
) -> None:
    class Second(BaseModel):
        pick: Literal["a", "b"]

        @field_validator("pick")
        @classmethod
        def refuse_once(cls, value: str) -> str:
            tries.append(value)
            if len(tries) == 1:
                raise ValueError("another one")
            return value

    tries: list[str] = []
    events = list(Agent(bank, model=random_model, output_type=Second).stream_sync("Which?"))
    (delta,) = (event for event in events if isinstance(event, TokenDelta))
    reply = events[-2]
    assert reply.type == "reply"
    assert reply.text == delta.text
    assert reply.output == Second.model_construct(pick=json.loads(reply.text)["pick"])
    assert len(tries) >= 2
    assert bank.get(reply.exchange_id).reply == reply.text


@pytest.mark.model
@pytest.mark.parametrize(
    ("which", "question", "expected"),
    [
        (Person, "Alice is 31 years old. Describe her.", Person(name="Alice", age=31)),
        (Literal["yes", "no"], "Is water wet?", "yes"),
        (list[str], "Name two colours.", None),
        (Point, "Give a point.", None),
    ],
)
def test_the_default_model_writes_valid_json(
    bank: MemoryBank, language_model: LanguageModel, which: Any, question: str, expected: Any
) -> None:
    sampling = Sampling(max_tokens=60, repetition_penalty=1.1)
    reply = Agent(bank, model=language_model, output_type=which, sampling=sampling, k=0).run_sync(question)
    assert reply.output == TypeAdapter(which).validate_json(reply.text)
    assert expected is None or reply.output == expected
    assert (reply.status, reply.stop_reason) == ("complete", "eos")


@pytest.mark.model
def test_the_default_model_calls_a_tool_and_answers_with_its_result(
    bank: MemoryBank, language_model: LanguageModel
) -> None:
    @tool
    def get_weather(city: str) -> str:
        """The weather of a city."""
        return "17 degrees and raining"

    sampling = Sampling(max_tokens=40, repetition_penalty=1.1)
    agent = Agent(
        bank, model=language_model, tools=[get_weather], tool_choice="required", sampling=sampling, k=0
    )
    events = list(agent.stream_sync("What is the weather in Porto?"))
    calls = [event for event in events if event.type == "tool_call"]
    assert [(call.name, dict(call.arguments)) for call in calls] == [("get_weather", {"city": "Porto"})]
    (reply,) = (event for event in events if event.type == "reply")
    assert "17 degrees" in reply.text
    with pytest.raises(ValidationError):
        get_weather.parameters.model_validate({"city": 3})
