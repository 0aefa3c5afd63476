"""The tools of an agent, and what is left of each one's retry budget in a turn."""

from collections.abc import Callable, Iterable
from typing import Any

from pydantic import ValidationError

from mnemos.agent.tools.tool import Tool, make_tool
from mnemos.errors import UsageError


class Toolbox:
    """Tools by name."""

    def __init__(self, tools: Iterable[Tool[..., Any] | Callable[..., Any]]) -> None:
        """Plain functions become tools as `@tool` makes them. Raises `UsageError` where two share a name."""
        made = [each if isinstance(each, Tool) else make_tool(each) for each in tools]
        self.tools = {each.name: each for each in made}
        if len(self.tools) < len(made):
            names = [each.name for each in made]
            twice = sorted({name for name in names if names.count(name) > 1})
            raise UsageError(f"two tools are called {', '.join(twice)}; give one of them another name=")

    def __bool__(self) -> bool:
        return bool(self.tools)


class Budget:
    """What may still be called in one turn: a tool that failed more often than its `retries` may not."""

    def __init__(self, toolbox: Toolbox) -> None:
        self._tools = toolbox.tools
        self._left = {name: tool.retries for name, tool in toolbox.tools.items()}
        self._unreadable = 1  # calls that name no tool, or are no JSON, after the first such call

    def available(self) -> list[Tool[..., Any]]:
        if self._unreadable < 0:
            return []
        return [tool for name, tool in self._tools.items() if self._left[name] >= 0]

    def find(self, name: str) -> Tool[..., Any] | None:
        return next((tool for tool in self.available() if tool.name == name), None)

    def failed(self, name: str) -> bool:
        """Counts a failure; whether the model may try again."""
        if name in self._left:
            self._left[name] -= 1
            return self._left[name] >= 0
        self._unreadable -= 1
        return self._unreadable >= 0


def validation_text(error: ValidationError) -> str:
    """What is wrong with arguments or an output, as a model reads it: each place and its problem."""
    told = [
        f"{'.'.join(str(part) for part in each['loc']) or 'the value'}: {each['msg']}"
        for each in error.errors(include_url=False, include_context=False, include_input=False)
    ]
    return "; ".join(told[:8])
