"""A training run as a person asks for one: data, model and settings, from the beginning or from where it was."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from mnemos.attention.patterns.hybrid import HybridModel
from mnemos.attention.patterns.hybrid_config import HybridConfig
from mnemos.attention.patterns.mixer import MixerConfig
from mnemos.attention.patterns.registry import pattern
from mnemos.attention.training.batches import Source
from mnemos.attention.training.checkpoints import Checkpoint, has_checkpoint, latest
from mnemos.attention.training.distributed import Place, joined
from mnemos.attention.training.needle import NeedleSizes, NeedleTask
from mnemos.attention.training.objective import Sharing
from mnemos.attention.training.recall import needle_recall
from mnemos.attention.training.settings import TrainSettings
from mnemos.attention.training.text_data import BYTE_VOCAB, TextData, as_bytes
from mnemos.attention.training.trainer import StepRecord, Trainer
from mnemos.errors import BusyError, InvalidWeightsError, ModelError, UsageError

NEEDLE = "needle"
_LAST = 20  # steps whose mean loss is reported
_RECALL_SAMPLES = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class LmRequest:
    """What to train on what. Sizes are counts of elements, lengths are in tokens."""

    layers: tuple[str, ...]
    data: tuple[str, ...] = ()  # files of text; without any, the task
    task: str | None = None
    start_from: str | None = None  # a pretrained model's name or path
    dim: int = 128
    heads: int = 4
    kv_heads: int = 2
    document: int = 64
    pool: int = 16
    top_k: int = 4
    window: int = 64
    facts: int = 4
    sharing: Sharing = "rows"

    def __post_init__(self) -> None:
        """Raises UsageError for what can't be trained."""
        if bool(self.data) == (self.task is not None):
            raise UsageError(f"name either files with --data or a task with --task ({NEEDLE})")
        if self.task not in (None, NEEDLE):
            raise UsageError(f"there is no task '{self.task}'; use {NEEDLE}, or files with --data")
        if self.task and self.start_from:
            raise UsageError("a pretrained model goes on from text; give files with --data")
        if self.sharing not in ("rows", "documents"):
            raise UsageError(f"processes share rows or documents, not '{self.sharing}'")
        if not self.start_from and (self.dim % self.heads or self.heads % self.kv_heads):
            raise UsageError(
                f"{self.heads} heads of {self.kv_heads} KV heads can't share {self.dim} channels evenly; "
                "choose --dim and --heads that divide"
            )
        for name in self.layers:
            try:
                pattern(name)
            except ValueError as error:
                raise UsageError(str(error)) from None

    def sizes(self) -> dict[str, int]:
        """Fields of `MixerConfig` that are the patterns' own."""
        block = min(self.window, 64)
        return {
            "document": self.document,
            "pool": self.pool,
            "top_k": self.top_k,
            "window": self.window,
            "block": block,
            "bucket": block,
            "segment": self.window,
        }


@dataclass(frozen=True, slots=True)
class LmReport:
    """How a run went, JSON-able by `asdict`."""

    path: str  # of the newest checkpoint
    step: int
    steps: int
    finished: bool
    loss: float  # nats a token, mean of the last steps
    router: float | None
    recall: float | None  # share of needles, at the full length, in samples never trained on
    rewinds: int
    parameters: int
    layers: list[str]
    tokens: int  # read in this run
    tokens_per_s: float
    seconds: float
    processes: int


def train_lm(
    request: LmRequest,
    settings: TrainSettings,
    folder: Path,
    *,
    on_step: Callable[[StepRecord], None] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> LmReport | None:
    """A new run that keeps its checkpoints in `folder`; None in every process but the first.

    Raises:
        UsageError: the folder holds a run already, or what is asked for can't be.
        BusyError: another process trains there.
        ModelError: training went wrong again and again, or a pretrained model can't be used.
    """
    if has_checkpoint(folder):
        raise UsageError(f"{folder} holds a training run already; go on with --resume, or name another place")
    with joined() as place, _locked(folder, place):
        if request.start_from is None:
            source = _source(request, settings.seed)
            model = _fresh_model(request, source, settings.seed)
        else:
            model, source = _pretrained(request, settings.seed)
        notes = {"request": asdict(request), "digests": _digests(request.data)}
        trainer = _trainer(request, settings, folder, place, model, source, notes)
        return _train(trainer, request, on_step, should_stop)


def resume_lm(
    folder: Path,
    *,
    on_step: Callable[[StepRecord], None] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> LmReport | None:
    """Goes on with the run in `folder`, as if it had never stopped.

    Raises:
        NotFoundError: there is none.
        UsageError: its data is not what it was.
        InvalidWeightsError: its newest checkpoint can't be read.
    """
    checkpoint = latest(folder)
    request, settings = _read_notes(checkpoint)
    notes = checkpoint.progress["notes"]
    if notes["digests"] != _digests(request.data):
        raise UsageError("the files that this run reads are not what they were; put them back, or train anew")
    with joined() as place, _locked(folder, place):
        model = checkpoint.model()
        source = (
            _source(request, settings.seed)
            if request.start_from is None
            else _text(request, settings.seed, *_tokens_of(request.start_from))
        )
        trainer = _trainer(request, settings, folder, place, model, source, notes)
        trainer.restore(checkpoint)
        return _train(trainer, request, on_step, should_stop)


def _train(
    trainer: Trainer,
    request: LmRequest,
    on_step: Callable[[StepRecord], None] | None,
    should_stop: Callable[[], bool],
) -> LmReport | None:
    before, settings, model = len(trainer.records), trainer.settings, trainer.model
    finished = trainer.run(on_step=on_step, should_stop=should_stop)
    if not trainer.place.is_first:
        return None
    records = [record for record in trainer.records if record.went_back is None]
    made = trainer.records[before:]
    seconds = sum(record.seconds for record in made)
    recall = None
    if request.task == NEEDLE and finished:
        unseen = NeedleTask(_needle_sizes(request), seed=settings.seed, stream=1)
        recall = needle_recall(model, unseen, length=settings.length, samples=_RECALL_SAMPLES)
    routers = [record.router for record in records[-_LAST:] if record.router is not None]
    assert trainer.folder is not None
    return LmReport(
        path=str(latest(trainer.folder).path),
        step=trainer.step,
        steps=settings.steps,
        finished=finished,
        loss=_mean([record.loss for record in records[-_LAST:]]),
        router=_mean(routers) if routers else None,
        recall=recall,
        rewinds=trainer.rewinds,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        layers=list(model.config.layers),
        tokens=sum(record.tokens for record in made),
        tokens_per_s=sum(record.tokens for record in made) / seconds if seconds else 0.0,
        seconds=seconds,
        processes=trainer.place.world,
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else float("nan")


def _trainer(
    request: LmRequest,
    settings: TrainSettings,
    folder: Path,
    place: Place,
    model: HybridModel,
    source: Source,
    notes: dict[str, Any],
) -> Trainer:
    return Trainer(model, source, settings, folder=folder, place=place, sharing=request.sharing, notes=notes)


def _needle_sizes(request: LmRequest) -> NeedleSizes:
    return NeedleSizes(document=request.document, facts=request.facts)


def _source(request: LmRequest, seed: int) -> Source:
    if request.task == NEEDLE:
        return NeedleTask(_needle_sizes(request), seed=seed)
    return _text(request, seed, as_bytes, BYTE_VOCAB)


def _text(request: LmRequest, seed: int, encode: Callable[[str], list[int]], vocab: int) -> TextData:
    paths = [Path(path) for path in request.data]
    return TextData(paths, document=request.document, seed=seed, encode=encode, vocab=vocab)


def _fresh_model(request: LmRequest, source: Source, seed: int) -> HybridModel:
    mixer = MixerConfig(
        dim=request.dim,
        heads=request.heads,
        kv_heads=request.kv_heads,
        head_dim=request.dim // request.heads,
        seed=seed,
        **request.sizes(),
    )
    width = 8 * request.dim // 3
    return HybridModel(HybridConfig(vocab=source.vocab, layers=request.layers, mixer=mixer, mlp_width=width))


def _pretrained(request: LmRequest, seed: int) -> tuple[HybridModel, TextData]:
    from mnemos.attention.models import load_weights
    from mnemos.attention.patterns.pretrained import hybrid_from
    from mnemos.attention.tokenizer import Tokenizer

    config, weights, source, _ = load_weights(request.start_from)
    layers = stretched(request.layers, config.layers)
    model = hybrid_from(config, weights, layers, seed=seed, **request.sizes()).model
    tokenizer = Tokenizer(source, vocab_size=config.vocab_size)
    return model, _text(request, seed, tokenizer.encode, config.vocab_size)


def _tokens_of(name: str) -> tuple[Callable[[str], list[int]], int]:
    from mnemos.attention.models import load_weights
    from mnemos.attention.tokenizer import Tokenizer

    config, _, source, _ = load_weights(name)
    return Tokenizer(source, vocab_size=config.vocab_size).encode, config.vocab_size


def stretched(layers: Sequence[str], count: int) -> tuple[str, ...]:
    """Patterns for `count` layers, each named one for a run of as many: `dense,msa` is one half each.

    Raises UsageError for more patterns than layers.
    """
    if len(layers) > count:
        raise UsageError(f"{len(layers)} patterns are named and the model has {count} layers")
    return tuple(layers[index * len(layers) // count] for index in range(count))


def _read_notes(checkpoint: Checkpoint) -> tuple[LmRequest, TrainSettings]:
    try:
        given: Mapping[str, Any] = checkpoint.progress["notes"]["request"]
        known = {field.name for field in fields(LmRequest)}
        if set(given) != known:
            raise ModelError(f"checkpoint {checkpoint.path} is of another Mnemos; train anew")
        listed = {name: tuple(given[name]) for name in ("layers", "data")}
        return LmRequest(**{**given, **listed}), TrainSettings.from_json(checkpoint.progress["settings"])
    except (KeyError, TypeError) as error:
        raise InvalidWeightsError(
            f"checkpoint {checkpoint.path} is not of `mnemos train lm` ({error}); name one that is"
        ) from error


def _digests(paths: Sequence[str]) -> list[str]:
    return [hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in paths]


class _locked:
    """Holds a folder for one run."""

    def __init__(self, folder: Path, place: Place) -> None:
        self._lock = FileLock(folder / ".lock") if place.is_first else None
        self._folder = folder

    def __enter__(self) -> None:
        if self._lock is not None:
            self._folder.mkdir(parents=True, exist_ok=True)
            try:
                self._lock.acquire(timeout=0)
            except Timeout:
                raise BusyError(f"another process trains in {self._folder}; wait, or name another") from None

    def __exit__(self, *_: object) -> None:
        if self._lock is not None:
            self._lock.release()
