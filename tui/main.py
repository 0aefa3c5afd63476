"""The `mnemos` command: the tree of its commands. Each body imports what it needs when it runs."""

import sys

import typer

from mnemos.tui import (
    archive,
    ask,
    audit,
    banks,
    bench_attention,
    bench_scale,
    benches,
    browse,
    calibrate,
    config,
    demo,
    edits,
    evals,
    fading,
    forget,
    help,
    keeping,
    models,
    needle,
    notes,
    quotas,
    receipts,
    recollections,
    rekey,
    sessions,
    train,
    train_router,
    whatif,
)
from mnemos.tui.console import run
from mnemos.tui.root import new_app

app = new_app()


def _group(name: str, text: str, parent: typer.Typer = app) -> typer.Typer:
    group = typer.Typer(name=name, help=text, no_args_is_help=True, rich_markup_mode=None)
    parent.add_typer(group)
    return group


app.command("ask")(ask.ask)
app.command("remember")(notes.remember)
app.command("ingest")(notes.ingest)
app.command("demo")(demo.demo)
app.command("help")(help.help_)

memory = _group("memory", "Look into the memory, and take things out of it.")
memory.command("list")(recollections.list_memories)
memory.command("show")(recollections.show)
memory.command("search")(recollections.search)
memory.command("why")(recollections.why)
memory.command("whatif")(whatif.whatif)
memory.command("forget")(forget.forget)
memory.command("edit")(edits.edit)
memory.command("expire")(edits.expire)
memory.command("retention")(keeping.retention)
memory.command("sweep")(keeping.sweep)
memory.command("quota")(quotas.quota)
memory.command("fade")(fading.fade)
memory.command("hide")(recollections.hide)
memory.command("unhide")(recollections.unhide)
memory.command("pin")(recollections.pin)
memory.command("unpin")(recollections.unpin)
memory.command("browse")(browse.browse)
memory.command("stats")(recollections.stats)
memory.command("export")(archive.export)
memory.command("import")(archive.import_)

session = _group("session", "Conversations: list, name, branch and delete them.")
session.command("list")(sessions.list_sessions)
session.command("rename")(sessions.rename)
session.command("branch")(sessions.branch)
session.command("delete")(sessions.delete)

receipt = _group("receipt", "Proofs of what was forgotten.", memory)
receipt.command("list")(receipts.list_receipts)
receipt.command("show")(receipts.show)
receipt.command("verify")(receipts.verify)

bank = _group("bank", "The bank as a whole.")
bank.command("info")(banks.info)
bank.command("verify")(banks.verify)
bank.command("compact")(banks.compact)
bank.command("reencode")(banks.reencode)
bank.command("rekey")(rekey.rekey)
bank.command("audit")(audit.audit)

model = _group("model", "The language models.")
model.command("list")(models.list_models)
model.command("pull")(models.pull)
model.command("show")(models.show)
model.command("calibrate")(calibrate.calibrate)


settings = _group("config", "Settings that stand for options and variables that are not given.")
settings.command("show")(config.show)
settings.command("set")(config.set_)
settings.command("unset")(config.unset)
settings.command("path")(config.path)

app.add_typer(train.train)
train_router.register(train.train)

bench = _group("bench", "Measure this machine.")
bench.command("decode")(benches.decode)
bench.command("paging")(benches.paging)
bench.command("agent")(benches.agent)
bench.command("attention")(bench_attention.attention)
bench.command("erase")(benches.erase)
bench.command("ingest")(benches.ingest)
bench.command("soak")(benches.soak)
bench.command("tui")(benches.tui)
bench.command("scale")(bench_scale.scale)

evaluation = _group("eval", "Measure how well a model recalls and reads.")
evaluation.command("recall")(evals.recall)
evaluation.command("read")(evals.read)
evaluation.command("facts")(evals.facts)
evaluation.command("needle")(needle.needle)


def main() -> None:
    """The entry point of the `mnemos` script."""
    sys.exit(run(app, sys.argv[1:]))
