"""How memories and turns are laid out as text for the model. Everything a trace depends on besides its own
words.
"""

from datetime import datetime

from mnemos.memory.records import Memory

LAYOUT_VERSION = 1  # part of every trace's fingerprint; raise it when a line below changes
_MONTHS: tuple[str, ...] = ("January", "February", "March", "April", "May", "June", "July")
_MONTHS += ("August", "September", "October", "November", "December")
MEMORY_HEADER = "Use the following memories of the user to answer.\n"


def format_date(moment: datetime) -> str:
    """`3 March 2026`, in UTC and in English wherever this runs: the words are part of the trace."""
    return f"{moment.day} {_MONTHS[moment.month - 1]} {moment.year}"


def render_memory(memory: Memory) -> list[str]:
    """The lines that the model reads for one memory, each encoded alone and ending in a line break.

    The reply of an exchange is a line of its own, so that the user's words can be read without the model's.
    """
    head = f"[{format_date(memory.created_at)}] "
    if memory.kind == "document":
        name = memory.title or memory.source
        return [f"{head}{name}: {memory.text.strip()}\n" if name else f"{head}{memory.text.strip()}\n"]
    lines = [f"{head}{memory.speaker or 'User'}: {memory.text.strip()}\n"]
    if memory.reply and memory.reply.strip():
        lines.append(f"{head}Assistant: {memory.reply.strip()}\n")
    return lines


def said_in(memory: Memory) -> str:
    """The words of a memory that its sentence vectors are made of: who said what."""
    said = f"{memory.text}\n{memory.reply}" if memory.reply else memory.text
    return f"{memory.speaker}: {said}" if memory.speaker else said
