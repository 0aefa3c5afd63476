"""`mnemos ask`: one message, one reply, with the memories it was made with."""

from collections.abc import Collection, Generator
from typing import TYPE_CHECKING, Annotated

import typer

from mnemos.tui import console, forms, output
from mnemos.tui.options import Bank, Json, MaxTokens, Model, Namespace, Session

if TYPE_CHECKING:
    from mnemos.agent.agent import Agent
    from mnemos.agent.events import Reply
    from mnemos.attention.models import LanguageModel
    from mnemos.memory.bank import MemoryBank


def ask(
    text: Annotated[str, typer.Argument(metavar="TEXT|-", help="The message, or - to read standard input.")],
    session: Session = None,
    incognito: Annotated[
        bool, typer.Option("--incognito", help="Recall, but remember nothing of it.")
    ] = False,
    max_tokens: MaxTokens = None,
    model: Model = None,
    bank: Bank = None,
    namespace: Namespace = "default",
    json: Json = False,
) -> None:
    """Ask or tell one thing. The exchange is remembered, unless it is incognito."""
    from mnemos.tui.opening import catch_up, load_model, open_bank

    words = console.text_or_stdin(text)
    with open_bank(bank, namespace, create=True) as opened:
        session_id = opened.get_session(session, namespace=namespace).id if session else None
        loaded = load_model(model)
        agent = make_agent(opened, namespace, loaded, session_id, max_tokens)
        catch_up(opened, loaded, namespace)
        reply = stream_reply(agent, words, quietly=json, incognito=incognito)
    if json:
        output.document(forms.reply(reply))


def make_agent(
    bank: "MemoryBank", namespace: str, model: "LanguageModel", session: str | None, max_tokens: int | None
) -> "Agent":
    """An agent of one session, or of a new one, with replies of at most `max_tokens`."""
    from dataclasses import replace

    from mnemos.agent.agent import DEFAULT_SAMPLING, Agent

    sampling = replace(DEFAULT_SAMPLING, max_tokens=max_tokens) if max_tokens else DEFAULT_SAMPLING
    return Agent(
        bank,
        namespace=namespace,
        model=model,
        session=session,
        sampling=sampling,
        read_only=bank.read_only,
    )


def stream_reply(
    agent: "Agent",
    text: str,
    *,
    quietly: bool = False,
    incognito: bool = False,
    exclude: Collection[str] = (),
) -> "Reply":
    """One turn; its words go to stdout as they come, unless `quietly`. An interrupted one is kept as such."""
    from mnemos.agent.events import Reply, TokenDelta

    reply: Reply | None = None
    events = agent.stream_sync(text, incognito=incognito, exclude=exclude)
    try:
        for event in events:
            if isinstance(event, TokenDelta) and not quietly:
                output.text(event.text)
            elif isinstance(event, Reply):
                reply = event
    finally:
        if isinstance(events, Generator):
            events.close()  # an unfinished turn is marked as interrupted here
        if not quietly:
            output.text("", end="\n")
    assert reply is not None, "a turn ends with a reply"
    return reply
