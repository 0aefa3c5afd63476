"""Tools for the agent's own memory: `remember`, `recall`, `forget`.

They reach the namespace of the turn they are called in and no other: no argument names one.
"""

from collections.abc import Callable
from typing import Annotated, Any

from pydantic import Field

from mnemos.agent.tools.context import ToolContext
from mnemos.agent.tools.tool import Tool, make_tool
from mnemos.memory.records import ForgetPlan

Confirm = Callable[[ForgetPlan], bool]
_ID_CHARS = 8


def memory_tools(confirm: Confirm | None = None) -> list[Tool[..., Any]]:
    """`remember`, `recall` and `forget`, for `Agent(tools=...)`.

    `confirm(plan)` decides whether something is forgotten; without it nothing ever is.
    """
    # Their results are memories already, and the bank keeps its own time.
    made = (remember, recall, forget_tool(confirm))
    return [make_tool(each, timeout_s=None, is_remembered=False) for each in made]


def remember(text: Annotated[str, Field(min_length=1, max_length=2000)], context: ToolContext) -> str:
    """Keep something in long-term memory.

    Args:
        text: One fact in one sentence, which can be understood on its own.
    """
    note = context.memories.remember(text)
    return "Nothing is kept of this." if note is None else f"Remembered as {note.id[:_ID_CHARS]}."


def recall(
    query: Annotated[str, Field(min_length=1, max_length=500)],
    context: ToolContext,
    limit: Annotated[int, Field(ge=1, le=10)] = 5,
) -> str:
    """Search long-term memory.

    Args:
        query: What to look for, in a few words.
        limit: The most memories to return.
    """
    found = context.memories.recall(query, limit)
    if not found:
        return "Nothing was found."
    lines = []
    for recalled in found:
        memory = recalled.memory
        reply = f" / {memory.reply}" if memory.reply else ""
        lines.append(f"[{memory.id[:_ID_CHARS]}] {memory.created_at:%Y-%m-%d} {memory.text}{reply}")
    return "\n".join(lines)


def forget_tool(confirm: Confirm | None) -> Callable[..., str]:
    """The function of `forget` under a confirmation policy."""

    def forget(what: Annotated[str, Field(min_length=3, max_length=200)], context: ToolContext) -> str:
        """Erase memories for good. Use it only when the user asks for it.

        Args:
            what: The id of one memory, or words that every memory to be erased contains.
        """
        plan = context.memories.plan_forget(what)
        if plan is None:
            return "No memory matches, so nothing was erased."
        if confirm is None or not confirm(plan):
            return "This was not confirmed, so nothing was erased. Tell the user so."
        receipt = context.memories.forget(plan)
        replies = f" and {len(receipt.rewritten)} replies made with them" if receipt.rewritten else ""
        return f"Erased {len(receipt.forgotten)} memories{replies}. Receipt {receipt.id[:_ID_CHARS]}."

    return forget
