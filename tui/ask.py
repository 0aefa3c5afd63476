"""`mnemos ask`: one message, one reply, with the memories it was made with."""

from collections.abc import Generator
from typing import TYPE_CHECKING, Annotated

import typer

from mnemos.tui import console, forms, output
from mnemos.tui.options import Bank, Json, Model, Namespace, Session

if TYPE_CHECKING:
    from mnemos.agent.agent import Agent
    from mnemos.agent.events import Reply


def ask(
    text: Annotated[str, typer.Argument(metavar="TEXT|-", help="The message, or - to read standard input.")],
    session: Session = None,
    model: Model = None,
    bank: Bank = None,
    namespace: Namespace = "default",
    json: Json = False,
) -> None:
    """Ask or tell one thing. The exchange is remembered."""
    from mnemos.tui.opening import load_model, open_bank

    words = console.text_or_stdin(text)
    with open_bank(bank, namespace, create=True) as opened:
        session_id = opened.get_session(session, namespace=namespace).id if session else None
        from mnemos.agent.agent import Agent

        agent = Agent(opened, namespace=namespace, model=load_model(model), session=session_id)
        reply = stream_reply(agent, words, quietly=json)
    if json:
        output.document(forms.reply(reply))


def stream_reply(agent: "Agent", text: str, *, quietly: bool = False) -> "Reply":
    """One turn; its words go to stdout as they come, unless `quietly`. An interrupted one is kept as such."""
    from mnemos.agent.events import Reply, TokenDelta

    reply: Reply | None = None
    events = agent.stream_sync(text)
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
