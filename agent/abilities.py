"""What an agent can do besides talking, tools and an output type, and what that means for one model."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from mnemos.agent.output import RULE, OutputType
from mnemos.agent.prompt import SystemParts
from mnemos.agent.tools.prompting import ToolPrompt, tool_prompt
from mnemos.agent.tools.tool import Tool
from mnemos.agent.tools.toolbox import Toolbox
from mnemos.attention.grammar import Grammar, tag_rule
from mnemos.attention.logit_mask import LogitMask
from mnemos.attention.models import LanguageModel
from mnemos.attention.sampling import Sampling
from mnemos.errors import UsageError

ToolChoice = Literal["auto", "required"]
MAX_STEPS = 6
OUTPUT_RETRIES = 2
_FRAME_TOKENS = 128  # around the results of one step


@dataclass(frozen=True, slots=True)
class Abilities:
    """Tools and output type of an agent. `required` makes the first step of each turn a call."""

    toolbox: Toolbox
    output: OutputType | None = None
    max_steps: int = MAX_STEPS
    tool_choice: ToolChoice = "auto"
    output_retries: int = OUTPUT_RETRIES

    def __post_init__(self) -> None:
        least = 2 if self.toolbox else 1
        checks = {
            f"max_steps must be {least} or more, not {self.max_steps}: a call and the reply take one each": (
                self.max_steps >= least
            ),
            f"tool_choice must be auto or required, not {self.tool_choice!r}": (
                self.tool_choice in ("auto", "required")
            ),
            "tool_choice is required, and there are no tools; give tools=[...]": (
                self.tool_choice != "required" or bool(self.toolbox)
            ),
            f"output_retries must be 0 or more, not {self.output_retries}": self.output_retries >= 0,
        }
        for message, holds in checks.items():
            if not holds:
                raise UsageError(message)

    def __bool__(self) -> bool:
        return bool(self.toolbox) or self.output is not None


class Answerer:
    """An agent's abilities on one model: what the system turn says of them, and their grammars."""

    def __init__(self, model: LanguageModel, abilities: Abilities) -> None:
        """Raises `InvalidSchemaError` where a tool's description holds one of the model's control tokens."""
        self.model = model
        self.abilities = abilities
        tools = list(abilities.toolbox.tools.values())
        self.tools: ToolPrompt | None = tool_prompt(model, tools) if tools else None
        self._grammars: dict[tuple[str, ...], Grammar] = {}

    @property
    def system(self) -> SystemParts:
        """What the system turn says of tools and of the output type."""
        parts = SystemParts() if self.tools is None else self.tools.system
        if self.abilities.output is None:
            return parts
        words = "\n\n".join(each for each in (parts.words, self.abilities.output.instruction) if each)
        return SystemParts(words, parts.head, parts.behind_memories, parts.tail)

    def room(self, sampling: Sampling) -> int:
        """Most tokens that a reply with its calls and their results takes."""
        if not self.abilities:
            return sampling.max_tokens
        tools = self.abilities.toolbox.tools.values()
        result = max((tool.result_chars for tool in tools), default=0)
        calls = self.abilities.max_steps - 1 if tools else 0
        retries = self.abilities.output_retries if self.abilities.output else 0
        return (1 + calls + retries) * (sampling.max_tokens + _FRAME_TOKENS) + calls * result

    def mask(self, tools: Sequence[Tool[..., Any]], *, must_call: bool) -> LogitMask | None:
        """What a step may write: calls of some of `tools`, or the answer unless it must call."""
        if not self.abilities:
            return None
        key = (*(tool.name for tool in tools), "!" if must_call else "")
        if key not in self._grammars:
            self._grammars[key] = Grammar(
                self.model.tokenizer,
                self._rules(tools, must_call=must_call and bool(tools)),
                vocab_size=self.model.config.vocab_size,
            )
        return self._grammars[key].mask()

    def _rules(self, tools: Sequence[Tool[..., Any]], *, must_call: bool) -> str:
        output = self.abilities.output
        if self.tools is None:
            assert output is not None, "without tools there is a grammar for an output type only"
            return f"start: {RULE}\n{output.rules}"
        calls = self.tools.calls
        if must_call:
            return calls.grammar(tools, self._tag, None)
        answer, rules = ("words", calls.free_text(self._tag)) if output is None else (RULE, output.rules)
        return (calls.grammar(tools, self._tag, answer) if tools else f"start: {answer}\n") + rules

    def _tag(self, tag: str) -> str:
        return tag_rule(self.model.tokenizer, tag, vocab_size=self.model.config.vocab_size)
