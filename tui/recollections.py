"""`mnemos memory ...`: list, show, search, explain and mark memories. `forget` has a module of its own."""

from collections.abc import Iterable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mnemos.errors import UsageError
from mnemos.tui import completing, console, forms, output, when
from mnemos.tui.options import (
    Bank,
    Json,
    Jsonl,
    Limit,
    MemoryId,
    Model,
    Namespace,
    OverwritePicture,
    Session,
    Since,
    Source,
    Tags,
    Until,
    Where,
)

if TYPE_CHECKING:
    from mnemos.memory.records import Memory, RecalledMemory, TraceParts

TEXT_CHARS = 200  # of a memory's text in a table


class Sort(StrEnum):
    """What a list is ordered by."""

    CREATED = "created"
    SIZE = "size"
    USES = "uses"


class Router(StrEnum):
    """How memories are scored for a query."""

    FULL = "full"
    LEXICAL = "lexical"
    LATENT = "latent"


def list_memories(
    session: Session = None,
    match: Annotated[
        str | None,
        typer.Option(
            "--match", metavar="TEXT|-", help="Text that it contains, in any case.", show_default=False
        ),
    ] = None,
    tags: Tags = None,
    source: Source = None,
    since: Since = None,
    until: Until = None,
    where: Where = None,
    hidden: Annotated[bool, typer.Option("--hidden", help="Hidden ones too.")] = False,
    sort: Annotated[
        Sort, typer.Option("--sort", help="Newest first, largest first, or most used first.")
    ] = Sort.CREATED,
    oldest: Annotated[
        bool, typer.Option("--oldest", help="The other way round: oldest, smallest or least used first.")
    ] = False,
    limit: Limit = 50,
    model: Model = None,
    bank: Bank = None,
    namespace: Namespace = "default",
    json: Json = False,
    jsonl: Jsonl = False,
) -> None:
    """List memories, newest first."""
    from mnemos.tui import selecting
    from mnemos.tui.opening import open_bank

    condition = selecting.where(where)
    with open_bank(bank, namespace) as opened:
        found = opened.list(
            namespace,
            session_id=opened.get_session(session, namespace=namespace).id if session else None,
            matching=None if match is None else console.text_or_stdin(match),
            tags=tags or None,
            source=selecting.source_as_stored(source),
            since=when.since(since),
            until=when.until(until),
            where=condition,
            model=selecting.model_for(condition, opened, model, namespace),
            include_hidden=hidden,
            newest_first=not oldest,
            sort=sort.value,
            limit=limit,
        )
    if jsonl:
        output.lines(forms.memory(memory) for memory in found)
    elif json:
        output.document({"memories": [forms.memory(memory) for memory in found]})
    else:
        show_memories(found)


def show_memories(memories: "Iterable[Memory]") -> None:
    """A table: id, age, kind, session, tokens, bytes, fidelity, marks, text."""
    rows = [
        (
            output.short_id(memory.id),
            when.age_of(memory.created_at),
            memory.kind,
            output.short_id(memory.session_id) if memory.session_id else "-",
            memory.tokens,
            output.amount(memory.text_bytes + memory.trace_bytes),
            memory.fidelity,
            marks(memory),
            one_line(memory),
        )
        for memory in memories
    ]
    columns = ("id", "age", "kind", "session", "tokens", "bytes", "fidelity", "marks", "text")
    output.table(
        columns, rows, right=("age", "tokens", "bytes"), spare=("session", "bytes", "tokens", "kind")
    )


def one_line(memory: "Memory") -> str:
    """The start of a memory's words, on one line, behind the heading that a document's stand under."""
    heading = memory.title.rpartition(" > ")[2] + ": " if memory.title else ""
    words = " ".join(f"{heading}{memory.text[: 4 * TEXT_CHARS]}".split())
    return words if len(words) <= TEXT_CHARS else f"{words[:TEXT_CHARS]}…"


def marks(memory: "Memory") -> str:
    """`pinned`, `hidden` and `interrupted` where they hold, else `-`."""
    held = [name for name in ("pinned", "hidden") if getattr(memory, name)]
    return ",".join([*held, *([] if memory.status == "complete" else [memory.status])]) or "-"


def show(
    memory_id: MemoryId,
    tokens: Annotated[
        bool, typer.Option("--tokens", help="How the model cut it, and what its trace takes.")
    ] = False,
    model: Model = None,
    bank: Bank = None,
    namespace: Namespace = "default",
    json: Json = False,
) -> None:
    """Show one memory, whole."""
    from mnemos.tui.opening import load_model, open_bank

    with open_bank(bank, namespace) as opened:
        memory = opened.get(memory_id, namespace=namespace)
        if tokens:
            parts = opened.trace_parts(memory.id, namespace=namespace, model=load_model(model))
            _show_parts(parts, json=json)
            return
    if json:
        output.document({"memory": forms.memory(memory)})
        return
    values = {name: value for name, value in forms.memory(memory).items() if value not in (None, [], "")}
    words = {name: values.pop(name) for name in ("text", "reply") if name in values}
    output.fields(values | words)


def _show_parts(parts: "TraceParts", *, json: bool) -> None:
    if json:
        output.document(parts.model_dump(mode="json"))
        return
    values = parts.model_dump(mode="json", exclude={"spans"})
    output.fields(values)
    rows = [(at, span.tokens, "·".join(span.pieces)) for at, span in enumerate(parts.spans, 1)]
    output.table(("span", "tokens", "pieces"), rows, right=("span", "tokens"))


def search(
    query: Annotated[
        str, typer.Argument(metavar="QUERY|-", help="What to look for, or - to read standard input.")
    ],
    limit: Limit = 10,
    router: Annotated[
        Router, typer.Option("--router", help="full and latent use the model, lexical needs none.")
    ] = Router.FULL,
    explain: Annotated[bool, typer.Option("--explain", help="A column for each signal.")] = False,
    model: Model = None,
    bank: Bank = None,
    namespace: Namespace = "default",
    json: Json = False,
    jsonl: Jsonl = False,
) -> None:
    """Find the memories that answer a query best, as a turn would."""
    from contextlib import suppress

    from mnemos.errors import BankLockedError, InvalidTextError
    from mnemos.tui.opening import catch_up, load_model, open_bank

    words = console.text_or_stdin(query)
    if not words.strip():
        raise InvalidTextError("there is nothing to look for: the query is blank")
    with open_bank(bank, namespace) as opened:
        loaded = None if router is Router.LEXICAL else load_model(model)
        if loaded is not None:
            with suppress(BankLockedError):  # somebody is writing: what is encoded already is searched
                catch_up(opened, loaded, namespace)
        found = opened.search(words, namespace=namespace, limit=limit, router=router.value, model=loaded)
    if jsonl:
        output.lines(forms.recalled(found))
    elif json:
        output.document({"results": forms.recalled(found)})
    else:
        show_recalled(found, explain=explain)


def show_recalled(found: "Sequence[RecalledMemory]", *, explain: bool = False) -> None:
    """A table: rank, score, attention share, with `explain` each signal, id, age, text."""
    signals = tuple(dict.fromkeys(name for each in found for name in each.signals)) if explain else ()
    rows = [
        (
            each.rank,
            f"{each.score:.3f}",
            "-" if each.attention is None else f"{each.attention:.1%}",
            *(f"{each.signals[name]:.3f}" if name in each.signals else "-" for name in signals),
            output.short_id(each.memory.id),
            when.age_of(each.memory.created_at),
            one_line(each.memory),
        )
        for each in found
    ]
    columns = ("rank", "score", "attention", *signals, "id", "age", "text")
    output.table(columns, rows, right=("rank", "score", "attention", *signals, "age"), spare=("age",))


def why(
    memory_id: Annotated[
        str | None,
        typer.Argument(
            metavar="[ID]",
            help="An exchange's id; the latest exchange without it.",
            show_default=False,
            autocompletion=completing.memory_ids,
        ),
    ] = None,
    bank: Bank = None,
    namespace: Namespace = "default",
    json: Json = False,
    jsonl: Jsonl = False,
) -> None:
    """Show which memories a reply was made with, and the scores that led to each."""
    from mnemos.errors import NotFoundError
    from mnemos.tui.opening import open_bank

    with open_bank(bank, namespace) as opened:
        if memory_id:
            exchange = opened.get(memory_id, namespace=namespace)
        else:
            latest = (memory for memory in opened.list(namespace, limit=200) if memory.kind == "exchange")
            exchange = next(latest, None)  # type: ignore[assignment]
            if exchange is None:
                raise NotFoundError(f"there is no exchange in '{namespace}' yet; ask something first")
        found = opened.why(exchange.id, namespace=namespace)
    if jsonl:
        output.lines(forms.recalled(found))
    elif json:
        output.document({"id": exchange.id, "memories": forms.recalled(found)})
    else:
        show_recalled(found)


def hide(
    memory_id: MemoryId, bank: Bank = None, namespace: Namespace = "default", json: Json = False
) -> None:
    """Keep a memory out of every recall and search, reversibly. It stays in the bank."""
    _flag("hide", memory_id, bank, namespace, json)


def unhide(
    memory_id: MemoryId, bank: Bank = None, namespace: Namespace = "default", json: Json = False
) -> None:
    """Let a hidden memory be recalled again."""
    _flag("unhide", memory_id, bank, namespace, json)


def pin(memory_id: MemoryId, bank: Bank = None, namespace: Namespace = "default", json: Json = False) -> None:
    """Keep a memory in full, whatever else fades."""
    _flag("pin", memory_id, bank, namespace, json)


def unpin(
    memory_id: MemoryId, bank: Bank = None, namespace: Namespace = "default", json: Json = False
) -> None:
    """Take a pin off."""
    _flag("unpin", memory_id, bank, namespace, json)


def _flag(action: str, memory_id: str, bank: Bank, namespace: str, json: bool) -> None:
    from mnemos.tui.opening import open_bank

    with open_bank(bank, namespace) as opened:
        memory = getattr(opened, action)(memory_id, namespace=namespace)
    if json:
        output.document({"memory": forms.memory(memory)})
    else:
        print(memory.id)


def stats(
    everything: Annotated[
        bool, typer.Option("--all", help="Of the whole bank, not of one namespace.")
    ] = False,
    plot: Annotated[
        Path | None,
        typer.Option(
            "--plot",
            metavar="FILE.png",
            help="Draw the namespace's growth, and its bytes by kind and fidelity.",
            show_default=False,
        ),
    ] = None,
    overwrite: OverwritePicture = False,
    bank: Bank = None,
    namespace: Namespace = "default",
    json: Json = False,
) -> None:
    """Count memories, tokens and bytes."""
    from mnemos.tui.opening import open_bank

    if plot is not None:
        from mnemos.tui import plotting

        plot = plot.expanduser()
        if everything:
            raise UsageError("a plot is of one namespace; leave --all out, or name one with --namespace")
        plotting.check(plot, overwrite=overwrite)
    with open_bank(bank, namespace) as opened:
        found = opened.stats(None if everything else namespace).model_dump(mode="json")
        if plot is not None:
            from mnemos.memory.survey import Survey

            plotting.plot(Survey(opened, namespace).finish(), namespace, plot)
            console.say(f"drawn to {plot}")
    if json:
        output.document(found)
    else:
        del found["last_recalls"]  # of a process that has recalled nothing yet
        output.fields({name: output.amount(n) if name.endswith("_bytes") else n for name, n in found.items()})
