"""`@tool`: schemas from type hints and docstrings, and what is refused."""

import functools
import json
from collections.abc import Callable
from datetime import date
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from mnemos import ToolContext, tool
from mnemos.agent.tools.docstrings import describe
from mnemos.agent.tools.results import error_text, text_of
from mnemos.agent.tools.tool import make_tool
from mnemos.agent.tools.toolbox import Budget, Toolbox
from mnemos.errors import InvalidSchemaError, UsageError


class Address(BaseModel):
    street: str
    tags: set[str] = set()


class Node(BaseModel):
    name: str
    children: list["Node"] = []


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


@tool
def book(
    who: str,
    address: Address,
    when: date,
    colour: Colour = Colour.RED,
    seats: Annotated[int, Field(ge=1, le=9)] = 1,
    kind: Literal["bus", "train"] | None = None,
    *,
    schema: dict[str, float] | None = None,
) -> str:
    """Book a journey
    for one person.

    Args:
        who: The traveller's name,
            in full.
        seats (int): How many.

    Returns:
        A number.
    """
    return who


def test_the_schema_is_that_of_hints_and_docstring() -> None:
    assert book.name == "book"
    assert book.description == "Book a journey for one person."
    properties = book.schema["properties"]
    assert list(properties) == ["who", "address", "when", "colour", "seats", "kind", "schema"]
    assert properties["who"] == {"type": "string", "description": "The traveller's name, in full."}
    assert properties["seats"] == {
        "type": "integer", "minimum": 1, "maximum": 9, "default": 1, "description": "How many."
    }  # fmt: skip
    assert book.schema["required"] == ["who", "address", "when"]
    assert book.schema["additionalProperties"] is False
    assert "title" not in json.dumps(book.schema)
    assert book.to_openai()["function"]["name"] == "book"
    assert book("Ann", Address(street="x"), date(2026, 1, 2)) == "Ann", "it is still the function"


def test_arguments_reach_the_function_as_its_types() -> None:
    given_ = {
        "who": "Ann",
        "address": {"street": "x", "tags": ["a", "a"]},
        "when": "2026-01-02",
        "schema": {},
    }
    arguments = book.parameters.model_validate(given_).arguments()
    assert arguments == {
        "who": "Ann", "address": Address(street="x", tags={"a"}), "when": date(2026, 1, 2), "schema": {}
    }  # fmt: skip


def test_settings_of_the_decorator_and_a_context() -> None:
    @tool(name="look-up", description="Look.", timeout_s=1.5, retries=0, result_chars=10, remembered=False)
    async def look(context: ToolContext, what: str) -> str:
        """Not this."""
        return what

    assert (look.name, look.description, look.is_async, look.context) == ("look-up", "Look.", True, "context")
    assert list(look.schema["properties"]) == ["what"]


def test_what_can_be_called_can_be_a_tool() -> None:
    class Shop:
        def price(self, item: str) -> int:
            """The price."""
            return len(item)

        def __call__(self, item: str) -> int:
            return 0

    class Slow:
        async def __call__(self, item: str) -> int:
            return 0

    assert make_tool(Slow(), name="slow").is_async
    assert make_tool(Shop().price).schema["required"] == ["item"]
    assert make_tool(Shop(), name="shop").schema["required"] == ["item"]
    assert make_tool(functools.partial(Shop().price), name="price").schema["required"] == ["item"]

    def tree(node: Node) -> str:
        return node.name

    assert "$defs" in make_tool(tree).schema


def refused() -> dict[str, tuple[Callable[..., Any], str]]:
    class Plain:
        pass

    def untyped(a) -> None: ...  # type: ignore[no-untyped-def]
    def starred(*a: int) -> None: ...
    def keywords(**a: int) -> None: ...
    def positional(a: int, /) -> None: ...
    def plain(a: Plain) -> None: ...
    def called(a: Callable[[int], int]) -> None: ...
    def unresolved(a: "NoSuchName") -> None: ...  # type: ignore[name-defined]  # noqa: F821
    def ahead(a: Annotated[str, Field(json_schema_extra={"not": {"const": "x"}})]) -> None: ...
    def looks(a: Annotated[str, Field(json_schema_extra={"pattern": "^(?=a)b$"})]) -> None: ...
    def yields(a: int) -> Any:
        yield a

    class Held:
        def method(self, a: int) -> None: ...

    return {
        "untyped": (untyped, "parameter a has no type hint"),
        "starred": (starred, "name each parameter"),
        "keywords": (keywords, "name each parameter"),
        "positional": (positional, "remove the /"),
        "plain class": (plain, "tool plain: "),
        "callable": (called, "tool called: "),
        "unresolved": (unresolved, "can't be resolved"),
        "not": (ahead, "grammar"),
        "look-ahead": (looks, "grammar"),
        "generator": (yields, "it yields"),
        "lambda": (lambda: None, "pass name="),
        "method of a class": (Held.method, "parameter self has no type hint"),
    }


@pytest.mark.parametrize("case", refused())
def test_what_can_not_be_expressed_is_refused_where_it_is_written(case: str) -> None:
    function, message = refused()[case]
    with pytest.raises(InvalidSchemaError) as caught:
        tool(function)
    assert message in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    "options", [{"timeout_s": 0}, {"retries": -1}, {"result_chars": 0}, {"result_chars": 1 << 20}]
)
def test_settings_that_make_no_sense_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        tool(**options)(lambda: None)
    with pytest.raises(UsageError):
        tool("not a function")  # type: ignore[call-overload]


def test_two_tools_of_one_name_are_refused() -> None:
    with pytest.raises(UsageError, match="two tools are called book"):
        Toolbox([book, book])


def test_a_budget_ends() -> None:
    toolbox = Toolbox([tool(retries=1)(_named("a")), tool(retries=0)(_named("b"))])
    budget = Budget(toolbox)
    assert budget.failed("a") is True
    assert budget.failed("a") is False
    assert [each.name for each in budget.available()] == ["b"]
    assert budget.find("a") is None
    assert budget.failed("nobody") is True
    assert budget.failed("") is False
    assert budget.available() == []


def _named(name: str) -> Callable[[], str]:
    def function() -> str:
        return name

    function.__name__ = name
    return function


@pytest.mark.parametrize(
    ("docstring", "summary", "parameters"),
    [
        (None, "", {}),
        ("One line.", "One line.", {}),
        ("Do.\n\n:param int a: First\n    of all.\n:param b: Second.\n:returns: c", "Do.",
         {"a": "First of all.", "b": "Second."}),
        ("Do.\n\nArguments:\n    a: First: and best.\n\n    b (str, optional): Second.\n\nRaises:\n    X: y",
         "Do.", {"a": "First: and best.", "b": "Second."}),
    ],
)  # fmt: skip
def test_docstrings_are_read(docstring: str | None, summary: str, parameters: dict[str, str]) -> None:
    found = describe(docstring)
    assert (found.summary, found.parameters) == (summary, parameters)


@settings(max_examples=40, deadline=None)
@given(st.text())
def test_any_docstring_is_read(docstring: str) -> None:
    describe(docstring)


def test_results_become_text() -> None:
    assert text_of("plain", 100) == "plain"
    assert text_of(None, 100) == ""
    assert (
        text_of({"at": date(2026, 1, 2), "b": [b"x", b"\xff"]}, 100) == '{"at":"2026-01-02","b":["x","/w=="]}'
    )
    assert text_of(Address(street="x"), 100) == '{"street":"x","tags":[]}'
    assert text_of(Path("a"), 100) == '"a"'
    assert text_of(float("nan"), 100) == "NaN"
    assert text_of(b"caf\xc3\xa9 \xff\xfe", 100) == "café \N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}"
    assert text_of("\ud800x", 100) == "?x"


@pytest.mark.parametrize("value", ["x" * (10 << 20), b"\xe2\x82" * (5 << 20), ["x" * 1000] * 10_000])
def test_ten_megabytes_are_cut_and_it_says_so(value: Any) -> None:
    text = text_of(value, 4000)
    assert len(text) < 4100
    assert "[cut: " in text
    assert text.encode("utf-8")


def test_an_error_whose_own_code_fails_still_has_a_name() -> None:
    class BadError(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no")

    assert error_text(BadError()) == "BadError"
    assert error_text(ValueError("x" * 9000)).startswith("ValueError: xxx")
    assert len(error_text(ValueError("x" * 9000))) < 600
