"""`output_type`: a reply that is a value of a type. The schema, its grammar, and what the model is told."""

import json
from typing import Any

from pydantic import TypeAdapter, ValidationError

from mnemos.agent.tools.schemas import grammar_schema, schema_of
from mnemos.agent.tools.toolbox import validation_text
from mnemos.attention.grammar import check_grammar

_TOLD = "Reply with nothing but JSON that fits this JSON schema:\n"
RULE = "output"  # the grammar's rule


class OutputType:
    """What a reply has to be: any type that pydantic can validate and JSON can write."""

    def __init__(self, type_: Any) -> None:
        """Raises `InvalidSchemaError` when the type can't be expressed as a JSON schema."""
        what = f"output type {getattr(type_, '__name__', type_)}"
        self.schema = schema_of(type_, what)
        self.adapter: TypeAdapter[Any] = TypeAdapter(type_)
        self.instruction = _TOLD + json.dumps(self.schema, ensure_ascii=False)
        self.rules = f"{RULE}: %json {grammar_schema(self.schema)}\n"
        check_grammar(f"start: {RULE}\n{self.rules}", what)

    def parse(self, text: str) -> tuple[Any, str | None]:
        """The value, or None and what is wrong with the text."""
        try:
            return self.adapter.validate_json(text), None
        except ValidationError as error:
            return None, validation_text(error)
