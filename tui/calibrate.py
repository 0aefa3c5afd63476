"""`mnemos model calibrate`: finds a model's constants and keeps them where the model is loaded from."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from mnemos.errors import UsageError
from mnemos.tui import output
from mnemos.tui.console import progress, say
from mnemos.tui.models import ModelName
from mnemos.tui.options import HeldOut, Json, UnusedBank, UnusedNamespace


def calibrate(
    name: ModelName = None,
    data: Annotated[
        list[Path] | None,
        typer.Option(
            "--data",
            metavar="FILE",
            help="Conversations to choose by, JSON lines; repeatable.",
            show_default=False,
        ),
    ] = None,
    held_out: HeldOut = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="PATH", help="The file to write; beside the model without.", show_default=False
        ),
    ] = None,
    questions: Annotated[
        int, typer.Option("--questions", min=4, metavar="N", help="To choose by, at most.")
    ] = 160,
    conversations: Annotated[
        int, typer.Option("--conversations", min=2, metavar="N", help="Of all files, at most.")
    ] = 24,
    tokens: Annotated[
        int, typer.Option("--tokens", min=500, metavar="N", help="Of memories to read, at most.")
    ] = 20_000,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Which conversations are drawn.")] = 0,
    bank: UnusedBank = None,
    namespace: UnusedNamespace = "default",
    json: Json = False,
) -> None:
    """Find how a model's memories are best found and read, from conversations with questions."""
    if not data:
        raise UsageError("name a file of conversations with --data")
    from mnemos.agent import calibrating
    from mnemos.attention import registry
    from mnemos.attention.calibration_file import (
        CALIBRATION_ENV,
        UNCALIBRATED,
        calibration_beside,
        write_calibration,
    )
    from mnemos.tui.opening import load_model

    named = registry.resolve_name(name)
    model = load_model(named, calibration=UNCALIBRATED)
    weights = registry.weights_path(named)
    path = (out or calibration_beside(weights or Path(named))).expanduser()
    require_place(path)
    model, complaint = calibrating.with_current(model, weights)
    if complaint:
        say(f"the calibration there is now can't be used: {complaint}")
    with progress(f"calibrating {model.name}") as on_progress:
        found = calibrating.run(
            model,
            data,
            held_out=held_out or (),
            conversations=conversations,
            questions=questions,
            tokens=tokens,
            seed=seed,
            on_progress=on_progress,
        )
    write_calibration(path, found)
    say(f"wrote {path}")
    if found.measured is not None and (worse := finds_less(found.measured.recall)):
        say(worse)
    if found.reads_other_keys(model.calibration):
        say(
            f"banks that {model.name} has encoded need `mnemos bank reencode --model {named}` before it "
            "can read them"
        )
    if os.environ.get(CALIBRATION_ENV):
        say(f"{CALIBRATION_ENV} is set and goes before what lies beside the model")
    form = found.model_dump(mode="json", exclude={"hidden_centre", "notes", "calibrated"})
    if json:
        output.document({"model": model.name, "path": str(path), **form})
    else:
        output.fields({"model": model.name, "path": str(path), **form})


def finds_less(recall: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str | None:
    """What to say where the calibration before, or the words alone, found more on what was held out."""
    reached = recall["calibrated"]["mean"]["mrr"]
    names = {"before": "the calibration before", "lexical": "the words alone"}
    better = {name: recall[name]["mean"]["mrr"] for name in names if name in recall}
    best = max(better, key=lambda name: better[name], default=None)
    if best is None or better[best] <= reached:
        return None
    return (
        f"warning: on what was held out it finds less than {names[best]} (mrr {reached:.3f} against "
        f"{better[best]:.3f}); calibrate again with more --questions and --conversations, or remove the file"
    )


def require_place(path: Path) -> None:
    """Raises UsageError when no file can be made there: told before the work, not after it."""
    folder = path.absolute().parent
    if path.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        raise UsageError(f"no calibration can be written to {path}; name another file with --out")
