"""JSON schemas: of a function's parameters, as a model reads them, and as a grammar takes them.

A grammar says less than a schema can: what it can't say, pydantic checks afterwards. What neither of them
could make sense of is refused.
"""

import functools
import inspect
import json
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, create_model
from pydantic.errors import PydanticUserError
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaWarningKind
from pydantic_core import SchemaError

from mnemos.agent.tools.context import ToolContext
from mnemos.agent.tools.docstrings import Described
from mnemos.errors import InvalidSchemaError

_FORMATS = frozenset(
    {"date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"}
)
_NOT_IN_A_GRAMMAR = frozenset(  # words for people, and what only narrows values that pydantic checks again
    {"title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly", "discriminator",
     "uniqueItems", "propertyNames", "contentMediaType", "contentEncoding"}
)  # fmt: skip
_MAPS = ("properties", "patternProperties", "$defs")  # names chosen by people -> schemas
_LISTS = ("anyOf", "allOf", "prefixItems")
_ONE = ("items", "additionalProperties")
_COMPACT = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


class _Schemas(GenerateJsonSchema):
    """Without warnings: a default that JSON can't write is left out."""

    ignored_warning_kinds: set[JsonSchemaWarningKind] = {  # noqa: RUF012 - declared so by pydantic
        "skipped-choice",
        "non-serializable-default",
    }


class Parameters(BaseModel):
    """Base of the models that calls' arguments are checked with; its fields go by their aliases."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=(), hide_input_in_errors=True)

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of the function: those that were given."""
        fields = type(self).model_fields
        return {str(fields[name].alias): getattr(self, name) for name in self.model_fields_set}


def parameters_of(
    function: Callable[..., Any], described: Described, what: str
) -> tuple[type[Parameters], str | None]:
    """The model of a function's parameters, and the name of the one that takes the `ToolContext`.

    Raises `InvalidSchemaError`, naming `what`.
    """
    try:
        hints = typing.get_type_hints(_hinted(function), include_extras=True)
    except (NameError, TypeError, SyntaxError) as error:
        raise InvalidSchemaError(f"{what}: a type hint can't be resolved ({error})") from error
    fields: dict[str, Any] = {}
    context: str | None = None
    for index, (name, parameter) in enumerate(_signature(function, what).parameters.items()):
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise InvalidSchemaError(f"{what}: *{name} can't be expressed; name each parameter")
        if parameter.kind is parameter.POSITIONAL_ONLY:
            raise InvalidSchemaError(f"{what}: {name} can't be given by name; remove the / behind it")
        if name not in hints:
            raise InvalidSchemaError(f"{what}: parameter {name} has no type hint; add one")
        if hints[name] is ToolContext:
            context = name
            continue
        told = described.parameters.get(name)
        default = ... if parameter.default is parameter.empty else parameter.default
        field = Field(default, alias=name, description=told) if told else Field(default, alias=name)
        # A name of the function's may be one of pydantic's own, so fields are numbered.
        fields[f"argument_{index}"] = (hints[name], field)
    try:
        return create_model("Parameters", __base__=Parameters, **fields), context
    except (PydanticUserError, SchemaError, TypeError, ValueError, RecursionError) as error:
        raise InvalidSchemaError(f"{what}: {_first_line(error)}") from error


def schema_of(type_: Any, what: str) -> dict[str, Any]:
    """The JSON schema of a type, without the titles that pydantic makes up. Raises `InvalidSchemaError`."""
    try:
        made = TypeAdapter(type_).json_schema(schema_generator=_Schemas)
    except (PydanticUserError, SchemaError, TypeError, ValueError, RecursionError) as error:
        raise InvalidSchemaError(f"{what}: {_first_line(error)}") from error
    return _walk(made, lambda node: {key: value for key, value in node.items() if key != "title"})


def grammar_schema(schema: Mapping[str, Any]) -> str:
    """The schema as a grammar takes it, as JSON: objects hold what is named and nothing else, no free space
    between values.
    """
    return json.dumps(_walk(schema, _for_grammar) | {"x-guidance": _COMPACT})


def _for_grammar(node: Mapping[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in node.items() if key not in _NOT_IN_A_GRAMMAR}
    if kept.get("format") not in _FORMATS:
        kept.pop("format", None)
    names = node.get("propertyNames", {})
    named = [names["const"]] if "const" in names else names.get("enum")
    if named and "properties" not in kept:
        kept["properties"] = {name: kept.get("additionalProperties", {}) for name in named}
        kept["additionalProperties"] = False
    if "oneOf" in kept:
        kept["anyOf"] = kept.pop("oneOf")
    if "properties" in kept:
        kept.setdefault("additionalProperties", False)
    return kept


def _walk(schema: Mapping[str, Any], change: Callable[[Mapping[str, Any]], dict[str, Any]]) -> dict[str, Any]:
    """`change` applied to a schema and to every schema in it; never to values or to names."""
    changed = change(schema)
    for key in _MAPS:
        if isinstance(inner := changed.get(key), Mapping):
            changed[key] = {name: _walked(value, change) for name, value in inner.items()}
    for key in (*_LISTS, "oneOf"):
        if isinstance(inner := changed.get(key), Sequence):
            changed[key] = [_walked(value, change) for value in inner]
    for key in _ONE:
        if key in changed:
            changed[key] = _walked(changed[key], change)
    return changed


def _walked(value: Any, change: Callable[[Mapping[str, Any]], dict[str, Any]]) -> Any:
    return _walk(value, change) if isinstance(value, Mapping) else value


def _hinted(function: Callable[..., Any]) -> Callable[..., Any]:
    """Where the type hints of something callable are."""
    if isinstance(function, functools.partial):
        return _hinted(function.func)
    return function if inspect.isroutine(function) else type(function).__call__


def _signature(function: Callable[..., Any], what: str) -> inspect.Signature:
    try:
        return inspect.signature(function)
    except (ValueError, TypeError) as error:
        raise InvalidSchemaError(f"{what}: it has no signature to make a schema from") from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
