"""What a training run is asked for, and the data and the model that follow from it."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from mnemos.attention.patterns.hybrid import HybridModel
from mnemos.attention.patterns.hybrid_config import HybridConfig
from mnemos.attention.patterns.mixer import MixerConfig
from mnemos.attention.patterns.registry import pattern
from mnemos.attention.training.batches import Source
from mnemos.attention.training.checkpoints import Checkpoint
from mnemos.attention.training.needle import NeedleSizes, NeedleTask
from mnemos.attention.training.objective import Sharing
from mnemos.attention.training.settings import TrainSettings
from mnemos.attention.training.text_data import BYTE_VOCAB, TextData, as_bytes
from mnemos.errors import InvalidWeightsError, ModelError, UsageError

NEEDLE = "needle"


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

    def sizes(self) -> dict[str, Any]:
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


def needle_sizes(request: LmRequest) -> NeedleSizes:
    return NeedleSizes(document=request.document, facts=request.facts)


def source_of(request: LmRequest, seed: int) -> Source:
    if request.task == NEEDLE:
        return NeedleTask(needle_sizes(request), seed=seed)
    return text_of(request, seed, as_bytes, BYTE_VOCAB)


def text_of(request: LmRequest, seed: int, encode: Callable[[str], list[int]], vocab: int) -> TextData:
    paths = [Path(path) for path in request.data]
    return TextData(paths, document=request.document, seed=seed, encode=encode, vocab=vocab)


def fresh_model(request: LmRequest, source: Source, seed: int) -> HybridModel:
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


def pretrained(request: LmRequest, seed: int) -> tuple[HybridModel, TextData]:
    from mnemos.attention.models import load_weights
    from mnemos.attention.patterns.pretrained import hybrid_from
    from mnemos.attention.tokenizer import Tokenizer

    config, weights, source, _ = load_weights(request.start_from)
    layers = stretched(request.layers, config.layers)
    model = hybrid_from(config, weights, layers, seed=seed, **request.sizes()).model
    tokenizer = Tokenizer(source, vocab_size=config.vocab_size)
    return model, text_of(request, seed, tokenizer.encode, config.vocab_size)


def tokens_of(name: str) -> tuple[Callable[[str], list[int]], int]:
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


def read_notes(checkpoint: Checkpoint) -> tuple[LmRequest, TrainSettings]:
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


def digests(paths: Sequence[str]) -> list[str]:
    return [hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in paths]
