"""Mnemos: a persistent-memory agent runtime.

The public names are loaded on first use, so that `import mnemos` costs nothing and
`from mnemos import MemoryBank` does not load torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mnemos.agent.agent import Agent
    from mnemos.agent.events import Recalled, Reply, Stored, TokenDelta, ToolCall, ToolResult
    from mnemos.agent.runtime import Runtime
    from mnemos.agent.tools.context import ToolContext
    from mnemos.agent.tools.memory_tools import memory_tools
    from mnemos.agent.tools.tool import tool
    from mnemos.errors import MnemosError
    from mnemos.memory.bank import MemoryBank
    from mnemos.memory.records import Memory, RecalledMemory

__version__ = "0.1.0"

_HOMES = {
    "Agent": "mnemos.agent.agent",
    "Memory": "mnemos.memory.records",
    "MemoryBank": "mnemos.memory.bank",
    "MnemosError": "mnemos.errors",
    "Recalled": "mnemos.agent.events",
    "RecalledMemory": "mnemos.memory.records",
    "Reply": "mnemos.agent.events",
    "Runtime": "mnemos.agent.runtime",
    "Stored": "mnemos.agent.events",
    "TokenDelta": "mnemos.agent.events",
    "ToolCall": "mnemos.agent.events",
    "ToolContext": "mnemos.agent.tools.context",
    "ToolResult": "mnemos.agent.events",
    "memory_tools": "mnemos.agent.tools.memory_tools",
    "tool": "mnemos.agent.tools.tool",
}

__all__ = [
    "Agent",
    "Memory",
    "MemoryBank",
    "MnemosError",
    "Recalled",
    "RecalledMemory",
    "Reply",
    "Runtime",
    "Stored",
    "TokenDelta",
    "ToolCall",
    "ToolContext",
    "ToolResult",
    "__version__",
    "memory_tools",
    "tool",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'mnemos' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
