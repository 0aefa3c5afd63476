"""The slash commands of the app: their help, and how a line is read."""

from collections.abc import Iterator, Mapping

HELP: Mapping[str, tuple[str, str]] = {
    "help": ("/help", "keys and commands"),
    "memories": ("/memories [WORDS]", "look into the memory"),
    "why": ("/why", "the memories of the last reply"),
    "remember": ("/remember TEXT", "remember something without a reply"),
    "forget": ("/forget TEXT", "forget what contains the text, for good"),
    "pin": ("/pin ID", "keep a memory in full"),
    "regenerate": ("/regenerate", "make the last reply again, in a branch; both are kept"),
    "branch": ("/branch [ID]", "go on from here, or from an exchange, in a session of its own"),
    "incognito": ("/incognito", "store nothing of what is said, or all again"),
    "namespace": ("/namespace [NAME]", "go on with other memories, without a restart"),
    "session": ("/session [new|list|ID|title TEXT]", "begin, list, change or name sessions"),
    "export": ("/export [FILE]", "the session as a file: .md or .json, not encrypted"),
    "ingest": ("/ingest PATH", "remember a file or a folder of texts"),
    "model": ("/model [NAME|PATH]", "show or change the model"),
    "theme": ("/theme [NAME]", "light, dark, or another theme"),
    "quit": ("/quit", "leave"),
}


def read(line: str) -> tuple[str, str] | None:
    """A command's name and the rest of the line; None for a message (two slashes begin one, too)."""
    if not line.startswith("/") or line.startswith("//"):
        return None
    name, _, rest = line[1:].strip().partition(" ")
    return name, rest.strip()


def message(line: str) -> str:
    """The words of a message: the first of two slashes goes."""
    return line.removeprefix("/") if line.startswith("//") else line


def matching_commands(text: str) -> Iterator[str]:
    """Names that begin as the text does, while only the name is being written."""
    typed = text[1:]
    if " " in typed or "\n" in typed or typed.startswith("/"):
        return
    yield from (name for name in HELP if name.startswith(typed))
