"""`mnemos memory whatif`: an earlier reply, made again without some of its memories."""

from typing import Annotated

import typer

from mnemos.tui import completing, console, forms, output
from mnemos.tui.options import Bank, Json, MaxTokens, MemoryId, Model, Namespace


def whatif(
    memory_id: MemoryId,
    without: Annotated[
        list[str],
        typer.Option(
            "--without",
            metavar="ID",
            help="A memory that is left out; repeatable.",
            autocompletion=completing.memory_ids,
        ),
    ],
    max_tokens: MaxTokens = None,
    model: Model = None,
    bank: Bank = None,
    namespace: Namespace = "default",
    json: Json = False,
) -> None:
    """Answer an earlier exchange again as if some memories had not been there. Nothing is stored."""
    from mnemos.agent.events import Reply, TokenDelta
    from mnemos.tui.ask import make_agent
    from mnemos.tui.opening import load_model, open_bank

    with open_bank(bank, namespace) as opened:
        exchange = opened.get(memory_id, namespace=namespace)
        left_out = [opened.get(each, namespace=namespace).id for each in without]
        agent = make_agent(opened, namespace, load_model(model), None, max_tokens)
        reply: Reply | None = None
        for event in agent.what_if_sync(exchange.id, without=left_out):
            if isinstance(event, TokenDelta) and not json:
                output.text(event.text)
            elif isinstance(event, Reply):
                reply = event
        assert reply is not None, "a turn ends with a reply"
    if json:
        document = {"id": exchange.id, "without": left_out, "was": exchange.reply}
        output.document(document | {"reply": reply.text, "memories": forms.recalled(reply.memories)})
        return
    output.text("", end="\n")
    count = len(reply.memories)
    console.say(f"made with {count} {'memory' if count == 1 else 'memories'}; nothing was stored")
