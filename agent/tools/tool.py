"""`@tool`: a function that a model can call, with a schema from its type hints and its docstring."""

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, ParamSpec, TypeVar, overload

from mnemos.agent.tools.docstrings import describe
from mnemos.agent.tools.schemas import Parameters, grammar_schema, parameters_of, schema_of
from mnemos.attention.grammar import check_grammar
from mnemos.errors import InvalidSchemaError, UsageError

P = ParamSpec("P")
R = TypeVar("R")

TIMEOUT_S = 30.0
RETRIES = 2
RESULT_CHARS = 4000
MOST_RESULT_CHARS = 12_000  # what fits one memory whatever its letters
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,63}")


@dataclass(frozen=True, slots=True)
class Tool(Generic[P, R]):
    """A function and what a model is told of it. Called itself, it is the function."""

    function: Callable[P, R]
    name: str
    description: str
    schema: Mapping[str, Any]  # JSON schema of the arguments
    parameters: type[Parameters]
    context: str | None  # parameter that gets the ToolContext
    timeout_s: float | None
    retries: int
    result_chars: int
    is_remembered: bool
    grammar: str  # the schema as a grammar takes it

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        return self.function(*args, **kwargs)

    @property
    def is_async(self) -> bool:
        called = getattr(self.function, "__call__", None)  # noqa: B004 - of an object, its own
        return inspect.iscoroutinefunction(self.function) or inspect.iscoroutinefunction(called)

    def to_openai(self) -> dict[str, Any]:
        """Name, description and parameters in the form that chat templates take tools in."""
        told = {"name": self.name, "description": self.description, "parameters": dict(self.schema)}
        return {"type": "function", "function": told}


@overload
def tool(function: Callable[P, R], /) -> Tool[P, R]: ...


@overload
def tool(
    *,
    name: str | None = None,
    description: str | None = None,
    timeout_s: float | None = TIMEOUT_S,
    retries: int = RETRIES,
    result_chars: int = RESULT_CHARS,
    remembered: bool = True,
) -> Callable[[Callable[P, R]], Tool[P, R]]: ...


def tool(
    function: Callable[..., Any] | None = None,
    /,
    *,
    name: str | None = None,
    description: str | None = None,
    timeout_s: float | None = TIMEOUT_S,
    retries: int = RETRIES,
    result_chars: int = RESULT_CHARS,
    remembered: bool = True,
) -> Any:
    """Makes a function, sync or async, a tool.

    The model is told its name, the docstring's words and those of each parameter. A parameter of type
    `ToolContext` is filled in by the agent. `timeout_s` is the longest a call may take; None runs a sync
    function in the turn's own thread for as long as it takes. `retries` is how many failed calls of one turn
    the model may try again after. Longer results are cut to `result_chars`. What it returns becomes a memory
    unless `remembered` is off. Raises `InvalidSchemaError` when the parameters can't be expressed as a JSON
    schema and decoded by it, `UsageError` on settings that make no sense.
    """

    def make(of: Callable[..., Any]) -> Tool[..., Any]:
        return make_tool(of, name, description, timeout_s, retries, result_chars, remembered)

    return make if function is None else make(function)


def make_tool(
    function: Callable[..., Any],
    name: str | None = None,
    description: str | None = None,
    timeout_s: float | None = TIMEOUT_S,
    retries: int = RETRIES,
    result_chars: int = RESULT_CHARS,
    is_remembered: bool = True,
) -> Tool[..., Any]:
    """As `tool`."""
    if not callable(function):
        raise UsageError(f"a tool is a function, not {type(function).__name__}")
    if name is None:
        name = getattr(function, "__name__", type(function).__name__)
    what = f"tool {name}"
    if not _NAME.fullmatch(name):
        raise InvalidSchemaError(
            f"{what}: a tool's name has letters, digits, _ and -, 64 at most; pass name="
        )
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise InvalidSchemaError(f"{what}: it yields; return the whole result instead")
    checks = {
        f"timeout_s must be above 0, or None, not {timeout_s}": timeout_s is None or timeout_s > 0,
        f"retries must be 0 or more, not {retries}": retries >= 0,
        f"result_chars must be 1 to {MOST_RESULT_CHARS}, not {result_chars}": (
            1 <= result_chars <= MOST_RESULT_CHARS
        ),
    }
    for message, holds in checks.items():
        if not holds:
            raise UsageError(f"{what}: {message}")
    told = describe(function.__doc__)
    parameters, context = parameters_of(function, told, what)
    schema = schema_of(parameters, what)
    schema.pop("description", None)
    grammar = grammar_schema(schema)
    check_grammar(f"start: %json {grammar}", what)
    return Tool(
        function=function,
        name=name,
        description=told.summary if description is None else description,
        schema=schema,
        parameters=parameters,
        context=context,
        timeout_s=timeout_s,
        retries=retries,
        result_chars=result_chars,
        is_remembered=is_remembered,
        grammar=grammar,
    )
