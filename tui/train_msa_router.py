"""`mnemos train router` on an MSA checkpoint: writes a checkpoint with its routers trained."""

from dataclasses import asdict
from pathlib import Path

from mnemos.errors import UsageError
from mnemos.tui import output
from mnemos.tui.console import progress, say


def train_msa_router(
    source: Path,
    *,
    data: list[Path],
    held_out: list[Path],
    out: Path | None,
    conversations: int,
    questions: int,
    tokens: int,
    epochs: int,
    rate: float,
    readers: bool,
    seed: int,
    force: bool,
    json: bool,
) -> None:
    """Trains the routers of the checkpoint in directory `source`, writes it to `out` and says what came."""
    if out is None:
        raise UsageError("a trained MSA checkpoint is a directory of its own; name one with --out")
    if not rate > 0:
        raise UsageError(f"--learning-rate must be above 0, not {rate}")
    from mnemos.attention.models import load_weights
    from mnemos.attention.tokenizer import Tokenizer
    from mnemos.attention.training.msa_fit import MsaOptions
    from mnemos.attention.training.msa_saving import require_new, save_trained
    from mnemos.memory.training_msa import MsaData, train_msa

    out = out.expanduser()
    require_new(out)
    config, weights, described, _ = load_weights(source)
    reader = MsaData(config, Tokenizer(described, vocab_size=config.vocab_size))
    with progress(f"training the routers of {config.name}") as on_progress:
        parts = reader.parts(
            data, held_out, conversations=conversations, questions=questions, tokens=tokens, seed=seed
        )
        found = train_msa(
            config,
            weights,
            reader,
            parts,
            options=MsaOptions(epochs=epochs, rate=rate, seed=seed),
            readers=readers,
            on_progress=on_progress,
        )
    is_written = force or not found.worse
    if is_written:
        save_trained(source, out, found.weights)
        say(f"wrote {out}; `mnemos bank reencode --model {out}` reads a bank's memories with it")
    else:
        say(
            f"not written: on {', '.join(found.worse)} it finds less than before; train on more "
            "conversations, or write it all the same with --force"
        )
    form: dict[str, object] = {
        "model": config.name,
        "path": str(out) if is_written else None,
        "layers": list(config.msa.router_layers) if config.msa is not None else [],
        "tensors": sorted(found.weights),
        "epochs": [asdict(each) for each in found.epochs],
        "best_epoch": found.best_epoch,
        "tokens": found.tokens,
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
