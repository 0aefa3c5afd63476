"""`mnemos demo`: three processes over one bank, which are told, asked, made to forget, and asked again."""

from tempfile import mkdtemp

import typer

from mnemos.tui import console, output
from mnemos.tui.options import Bank, Json, Model, Namespace


def demo(
    bank: Bank = None, namespace: Namespace = "default", model: Model = None, json: Json = False
) -> None:
    """Show an agent that remembers across processes and forgets on demand. It makes a bank of its own."""
    from dataclasses import asdict
    from pathlib import Path

    from mnemos.store.ids import check_namespace
    from mnemos.tui.opening import load_model

    check_namespace(namespace)
    place = bank or Path(mkdtemp(prefix="mnemos-demo-")) / "bank"
    load_model(model)  # fetched here, with a progress bar; each process of the demonstration loads it again
    from mnemos.agent.demo import run_demo

    report = run_demo(place, namespace=namespace, model=model, say=console.say if json else _print)
    if json:
        output.document(asdict(report))
    else:
        _print("\n== what held")
        for check, held in report.checks.items():
            _print(f"   {'yes' if held else 'NO '}  {check}")
        _print(f"   the bank is in {report.bank}")
    if not report.ok:
        raise typer.Exit(1)


def _print(line: str) -> None:
    output.text(line, end="\n")
