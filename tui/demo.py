"""`mnemos demo`: three processes over one bank, which are told, asked, made to forget, and asked again."""

from dataclasses import asdict
from pathlib import Path

import typer

from mnemos.tui import console, output
from mnemos.tui.options import Bank, Json, Model, Namespace


def demo(
    bank: Bank = None, namespace: Namespace = "default", model: Model = None, json: Json = False
) -> None:
    """Show an agent that remembers across processes and forgets on demand."""
    from tempfile import mkdtemp

    from mnemos.agent.demo import run_demo
    from mnemos.tui.opening import load_model

    load_model(model)  # fetched here, where its progress can be shown
    place = bank or Path(mkdtemp(prefix="mnemos-demo-")) / "bank"
    say = console.say if json else _print
    report = run_demo(place, namespace=namespace, model=model, say=say)
    if json:
        output.document(asdict(report))
    else:
        _print("")
        for check, held in report.checks.items():
            _print(f"   {'yes' if held else 'NO '}  {check}")
        _print(f"\n   the bank is kept in {report.bank}")
    if not report.ok:
        raise typer.Exit(1)


def _print(line: str) -> None:
    output.text(line, end="\n")
