"""`mnemos train router`: trains the projections that find memories, and keeps them in a model's
calibration.
"""

import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from mnemos.errors import UsageError
from mnemos.tui import output
from mnemos.tui.calibrate import require_place
from mnemos.tui.console import progress, say
from mnemos.tui.options import HeldOut, Json, UnusedBank, UnusedNamespace
from mnemos.tui.train_msa_router import train_msa_router


def router(
    data: Annotated[
        list[Path] | None,
        typer.Option(
            "--data",
            metavar="FILE",
            help="Conversations to train on, JSON lines; repeatable.",
            show_default=False,
        ),
    ] = None,
    held_out: HeldOut = None,
    filler: Annotated[
        list[Path] | None,
        typer.Option(
            "--filler",
            metavar="FILE",
            help="Plain texts to make further questions of; repeatable.",
            show_default=False,
        ),
    ] = None,
    model_name: Annotated[
        str | None,
        typer.Option(
            "--model",
            envvar="MNEMOS_MODEL",
            metavar="NAME|PATH",
            help="The model whose router it is.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="PATH",
            help="The calibration to write, beside the model without; of an MSA checkpoint, a new directory.",
            show_default=False,
        ),
    ] = None,
    conversations: Annotated[
        int, typer.Option("--conversations", min=2, metavar="N", help="Of all files, at most.")
    ] = 240,
    questions: Annotated[
        int, typer.Option("--questions", min=4, metavar="N", help="To train on, at most.")
    ] = 2400,
    tokens: Annotated[
        int, typer.Option("--tokens", min=500, metavar="N", help="Of memories to read, at most.")
    ] = 240_000,
    passages: Annotated[
        int, typer.Option("--passages", min=10, metavar="N", help="Made of each file of --filler, at most.")
    ] = 400,
    dims: Annotated[
        int, typer.Option("--dims", min=8, max=512, metavar="N", help="Bytes of a vector.")
    ] = 128,
    epochs: Annotated[int, typer.Option("--epochs", min=1, metavar="N", help="The most of them.")] = 4,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Of everything drawn.")] = 0,
    rate: Annotated[
        float, typer.Option("--learning-rate", metavar="X", help="Of an MSA checkpoint's routers.")
    ] = 3e-4,
    readers: Annotated[
        bool, typer.Option("--readers", help="Of an MSA checkpoint, train what reads documents too.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Write it though it finds less than before on a held-out file.")
    ] = False,
    bank: UnusedBank = None,
    namespace: UnusedNamespace = "default",
    json: Json = False,
) -> None:
    """Train a router: vectors that find memories that share no word with a question."""
    if not data:
        raise UsageError("name a file of conversations with --data")
    if dims % 8:
        raise UsageError("--dims is a multiple of 8")
    from mnemos.attention import registry
    from mnemos.attention.calibration_file import calibration_beside, write_calibration
    from mnemos.attention.contrastive import Options
    from mnemos.memory import training_router as training
    from mnemos.tui.opening import load_model

    named = registry.resolve_name(model_name)
    source = registry.weights_path(named)
    if source is not None and registry.read_mode_of(source) == "pooled":
        if filler:
            raise UsageError("an MSA checkpoint isn't trained on plain texts; leave --filler out")
        train_msa_router(
            source,
            data=data,
            held_out=held_out or [],
            out=out,
            conversations=conversations,
            questions=questions,
            tokens=tokens,
            epochs=epochs,
            rate=rate,
            readers=readers,
            seed=seed,
            force=force,
            json=json,
        )
        return
    if readers:
        raise UsageError(f"{named} is no MSA checkpoint; --readers is for those")
    model = load_model(named)
    training.require_trainable(model)
    path = (out or calibration_beside(registry.weights_path(named) or Path(named))).expanduser()
    require_place(path)
    options = Options(dims=dims, epochs=epochs, seed=seed)
    with progress(f"training a router for {model.name}") as on_progress:
        parts = training.take_data(
            model,
            data,
            held_out or (),
            conversations=conversations,
            questions=questions,
            tokens=tokens,
            seed=seed,
        )
        found = training.train(
            model, parts, filler=filler or (), passages=passages, options=options, on_progress=on_progress
        )
    is_written = force or not found.worse
    if is_written:
        write_calibration(path, found.calibration)
        say(f"wrote {path}")
        if os.environ.get("MNEMOS_CALIBRATION"):
            say("MNEMOS_CALIBRATION is set and goes before what lies beside the model")
        say(f"`mnemos bank reencode --model {named}` gives memories that are there already their vectors")
    else:
        say(
            f"not written: on {', '.join(found.worse)} it finds less than the router without it; train "
            "on more conversations, or write it all the same with --force"
        )
    trained = found.calibration.vectors
    assert trained is not None, "that is what was trained"
    form: Mapping[str, object] = {
        "model": model.name,
        "path": str(path) if is_written else None,
        "form": trained.form,
        "layer": trained.layer,
        "dims": trained.dims,
        "weights": found.calibration.weights,
        "epochs": [asdict(each) for each in found.epochs],
        "best_epoch": found.best_epoch,
        "tokens": found.tokens,
        "tokens_per_s": found.tokens_per_s,
        "train_s": found.train_s,
        "questions": found.questions,
        "memories": found.memories,
        "recall": found.recall,
        "worse": list(found.worse),
    }
    if json:
        output.document(form)
    else:
        output.fields(form)


def register(group: typer.Typer) -> None:
    """Adds the command to `mnemos train`."""
    group.command("router")(router)
