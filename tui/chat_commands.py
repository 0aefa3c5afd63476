"""What a chat understands besides messages: the commands that start with a slash."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from mnemos.errors import NotFoundError, UsageError
from mnemos.tui import console, output, transcripts, when
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
        chat.change_model(rest)
    console.say(f"the model is {chat.agent().model.name}")


def regenerate(chat: "Conversation", _rest: str) -> None:
    if not chat.last_text:
        raise UsageError("there is no reply to make again yet")
    replaced = chat.last_reply.exchange_id if chat.last_reply else None
    text = chat.last_text
    if replaced is None or chat.session_id is None:  # nothing of it is stored, so nothing is branched
        chat.send(text)
        return
    made = chat.bank.branch_session(chat.session_id, before=replaced, namespace=chat.namespace)
    chat.switch(made.id)
    console.say("a branch; the earlier reply is kept where it was")
    chat.send(text, exclude=[replaced])


def branch(chat: "Conversation", rest: str) -> None:
    if chat.session_id is None:
        raise UsageError("there is nothing to branch from yet")
    made = chat.bank.branch_session(chat.session_id, at=rest or None, namespace=chat.namespace)
    chat.switch(made.id)
    console.say(f"a branch: session {made.id[: output.SHORT_ID]}, with {made.turns} turns before it")


def incognito(chat: "Conversation", _rest: str) -> None:
    chat.incognito = not chat.incognito
    if chat.incognito:
        console.say("incognito: nothing of what you say now is stored; /incognito ends it")
    else:
        console.say("incognito is over: what you say now is remembered again")


def namespace(chat: "Conversation", rest: str) -> None:
    if rest:
        chat.enter_namespace(rest)
        console.say(f"namespace {rest}")
        return
    names = sorted({*chat.bank.namespaces(), chat.namespace})
    rows = [("*" if name == chat.namespace else "", name, chat.bank.count(name)) for name in names]
    output.table(("", "namespace", "memories"), rows, right=("memories",))


def export(chat: "Conversation", rest: str) -> None:
    if chat.session_id is None:
        raise UsageError("there is no session to export yet; say something first")
    first, _, others = rest.partition(" ")
    yes = first == "--yes"
    path = transcripts.path_of(others.strip() if yes else rest, chat.session_id)
    if path.exists() and not yes:
        console.require_person("add --yes to overwrite the file: /export --yes FILE")
        if not console.confirm(f"Overwrite {path}?"):
            raise NotFoundError("nothing was written")
    try:
        turns = transcripts.write(chat.bank, chat.namespace, chat.session_id, path, replace=path.exists())
    except OSError as error:
        raise UsageError(f"{path} can't be written ({error.strerror or error}); name another file") from error
    console.say(f"{turns} turns written to {path}, readable by you alone and not encrypted")


def ingest(chat: "Conversation", rest: str) -> None:
    from mnemos.memory import ingest as ingesting

    if not rest:
        raise UsageError("say what: /ingest FILE, or a folder")
    with console.progress("ingesting", in_bytes=True) as on_progress:
        report = ingesting.ingest(chat.bank, rest, namespace=chat.namespace, on_progress=on_progress)
    for problem in report.problems:
        console.say(f"left out: {problem.reason}")
    console.say(f"{report.added} memories added, {report.skipped} known already, from {report.files} files")


def no_theme(_chat: "Conversation", _rest: str) -> None:
    console.say("the plain chat has no colours of its own; your terminal's settings hold")


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
    "regenerate": regenerate,
    "branch": branch,
    "incognito": incognito,
    "namespace": namespace,
    "session": session,
    "export": export,
    "ingest": ingest,
    "theme": no_theme,
    "model": model,
    "quit": leave,
}
HELP: Mapping[str, str] = {
    "/memories [WORDS]": "the latest memories, or those with these words",
    "/why": "the memories the last reply was made with",
    "/remember TEXT": "remember something without a reply",
    "/forget [--yes] TEXT": "forget, for good, all memories that contain the text",
    "/pin ID": "keep a memory in full",
    "/regenerate": "make the last reply again, in a branch; both are kept",
    "/branch [ID]": "go on from here, or from an exchange, in a session of its own",
    "/incognito": "store nothing of what is said, or all again",
    "/namespace [NAME]": "the namespaces there are, or go on with another's memories",
    "/session [new|list|ID|title TEXT]": "show, begin, list, change or name the session",
    "/export [--yes] [FILE]": "the session as a file, .md or .json, not encrypted",
    "/ingest PATH": "remember a file or a folder of texts",
    "/model [NAME|PATH]": "show or change the model",
    "/quit": "leave (Ctrl+D does, too)",
    "//...": "a message that starts with a slash",
}
