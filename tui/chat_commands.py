"""What a chat understands besides messages: the commands that start with a slash."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from mnemos.errors import NotFoundError, UsageError
from mnemos.tui import console, output, when
from mnemos.tui.forget import forget_matching
from mnemos.tui.recollections import show_memories, show_recalled

if TYPE_CHECKING:
    from mnemos.tui.chat import Conversation

LISTED = 20  # memories that /memories shows


def execute(chat: "Conversation", line: str) -> None:
    """Runs one slash command. Raises UsageError for one that doesn't exist."""
    name, _, rest = line[1:].partition(" ")
    if name not in COMMANDS:
        raise UsageError(f"there is no /{name}; /help lists the commands")
    COMMANDS[name](chat, rest.strip())


def show_help(_chat: "Conversation", _rest: str) -> None:
    for usage, what in HELP.items():
        print(f"{usage:<32} {what}")


def memories(chat: "Conversation", rest: str) -> None:
    if rest:
        show_recalled(chat.bank.search(rest, namespace=chat.namespace, router="lexical"))
    else:
        show_memories(chat.bank.list(chat.namespace, limit=LISTED))


def why(chat: "Conversation", _rest: str) -> None:
    if chat.last_reply is None:
        raise UsageError("there is no reply to explain yet")
    # Read from the bank, so that what was forgotten since is not shown.
    exchange_id = chat.last_reply.exchange_id
    if exchange_id is None:
        raise NotFoundError("the last turn was not kept")
    found = chat.bank.why(exchange_id, namespace=chat.namespace)
    if not found:
        gone = " that is still there" if chat.last_reply.memories else ""
        console.say(f"no memory was used{gone}")
    show_recalled(found)


def forget(chat: "Conversation", rest: str) -> None:
    first, _, others = rest.partition(" ")
    yes = first == "--yes"
    text = others.strip() if yes else rest
    if not text:
        raise UsageError("say what to forget: /forget TEXT")
    forget_matching(chat.bank, chat.namespace, text, yes=yes)


def remember(chat: "Conversation", rest: str) -> None:
    memory = chat.bank.remember(rest, namespace=chat.namespace)
    console.say(f"remembered as {memory.id[: output.SHORT_ID]}")


def pin(chat: "Conversation", rest: str) -> None:
    if not rest:
        raise UsageError("say which: /pin ID (/memories and /why show the ids)")
    memory = chat.bank.pin(rest, namespace=chat.namespace)
    console.say(f"pinned {memory.id[: output.SHORT_ID]}")


def model(chat: "Conversation", rest: str) -> None:
    if rest:
        raise UsageError("the plain chat keeps its model; `mnemos chat --model NAME` takes another")
    console.say(f"the model is {chat.agent().model.name}")


def session(chat: "Conversation", rest: str) -> None:
    action, _, argument = rest.partition(" ")
    match action:
        case "":
            console.say(f"session {chat.session_id[: output.SHORT_ID] if chat.session_id else '(not begun)'}")
        case "new":
            chat.switch(None)
            console.say("a new session")
        case "list":
            _list_sessions(chat)
        case "title":
            if not chat.session_id or not argument.strip():
                raise UsageError("say something first, then /session title TEXT names the session")
            chat.bank.rename_session(chat.session_id, argument.strip(), namespace=chat.namespace)
        case _:
            found = chat.bank.get_session(action, namespace=chat.namespace)
            chat.switch(found.id)
            console.say(f"session {found.id[: output.SHORT_ID]}")


def _list_sessions(chat: "Conversation") -> None:
    rows = [
        (output.short_id(each.id), when.age_of(each.updated_at), each.turns, each.title or "-")
        for each in chat.bank.sessions(chat.namespace)
    ]
    output.table(("id", "age", "turns", "title"), rows, right=("age", "turns"))


def leave(chat: "Conversation", _rest: str) -> None:
    chat.is_over = True


COMMANDS: Mapping[str, Callable[["Conversation", str], None]] = {
    "help": show_help,
    "memories": memories,
    "why": why,
    "forget": forget,
    "remember": remember,
    "pin": pin,
    "session": session,
    "model": model,
    "quit": leave,
}
HELP: Mapping[str, str] = {
    "/memories [WORDS]": "the latest memories, or those with these words",
    "/why": "the memories the last reply was made with",
    "/remember TEXT": "remember something without a reply",
    "/forget [--yes] TEXT": "forget, for good, all memories that contain the text",
    "/pin ID": "keep a memory in full",
    "/session [new|list|ID|title TEXT]": "show, begin, list, change or name the session",
    "/model": "show the model",
    "/quit": "leave (Ctrl+D does, too)",
    "//...": "a message that starts with a slash",
}
