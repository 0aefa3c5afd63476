"""`mnemos train router`: projections of hidden states that find what words and heads don't, from
conversations with questions whose evidence is known.

Whole conversations are held out twice: some to stop by and to choose the signal's weight, others to say what
the router finds. Hidden states are read once; training goes over what was read.
"""

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from mnemos.attention.calibration import FORMAT_VERSION, Calibration
from mnemos.attention.contrastive import Epoch, Haystack, Options, fit
from mnemos.attention.models import LanguageModel
from mnemos.attention.projection import (
    Side,
    Vectors,
    packed_array,
    packed_side,
    projected,
)
from mnemos.errors import ModelError, UsageError
from mnemos.memory.calibrating_data import Parts, Piece, make_parts
from mnemos.memory.cloze import cloze_pieces
from mnemos.memory.lists import centroids_of
from mnemos.memory.router_finder import Finder, haystack_of
from mnemos.memory.training_capture import Captured, StateCapturer

_STOPPED_BY = 5  # one training conversation of so many


class Learnt(NamedTuple):
    """A trained router as a calibration, and what it reaches."""

    calibration: Calibration
    recall: dict[
        str, dict[str, dict[str, float]]
    ]  # lexical, untrained, trained, vector -> file or mean -> measure
    epochs: tuple[Epoch, ...]
    best_epoch: int
    train_s: float


@dataclass(frozen=True, slots=True)
class Trained:
    """The same, and what was read for it."""

    calibration: Calibration
    recall: dict[str, dict[str, dict[str, float]]]
    epochs: tuple[Epoch, ...]
    best_epoch: int
    train_s: float
    tokens: int
    tokens_per_s: float
    questions: dict[str, int]  # by part: trained, stopped_by, held_out
    memories: dict[str, int]
    worse: tuple[str, ...]  # held-out files where it finds less than the untrained router


def require_trainable(model: LanguageModel) -> None:
    """Raises ModelError for a model whose router is not a projection of hidden states."""
    if model.config.msa is not None:
        raise ModelError(
            f"{model.name} reads memories pooled: its router is part of its layers, and training that needs "
            "the language loss through the whole model, which `mnemos train router` does not do"
        )


def take_data(
    model: LanguageModel,
    data: Sequence[Path],
    held_out: Sequence[Path],
    *,
    conversations: int,
    questions: int,
    tokens: int,
    seed: int,
) -> Parts:
    """As `make_parts`, sizes counted as the model reads memories."""
    size = StateCapturer(model, 0).size
    return make_parts(
        data, held_out, conversations=conversations, questions=questions, tokens=tokens, seed=seed, size=size
    )


def train(
    model: LanguageModel,
    parts: Parts,
    *,
    filler: Sequence[Path] = (),
    passages: int = 0,
    options: Options | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Trained:
    """Reads, trains, chooses the weight and measures. `on_progress` is told of every memory read and every
    epoch.
    """
    require_trainable(model)
    options = options or Options()
    layer = max(each for each, _ in model.calibration.key_heads)
    capturer = StateCapturer(model, layer)
    started = time.perf_counter()
    judging = [piece for at, piece in enumerate(parts.training) if at % _STOPPED_BY == 0]
    learning = [piece for at, piece in enumerate(parts.training) if at % _STOPPED_BY]
    learning += [piece for path in filler for piece in cloze_pieces(path, passages, options.seed)]
    if options.dims > model.config.hidden_size:
        raise UsageError(f"{model.name} is {model.config.hidden_size} wide; a vector takes no more --dims")
    if not learning:
        raise UsageError("one conversation is left to train on, and one more is needed to stop by; add data")
    groups = (_by_file(learning), judging, parts.held_out)
    memories = [sum(len(piece.conversation.memories) for piece in some) for some in groups]
    steps = itertools.count(1)

    def step() -> None:
        if on_progress is not None:
            on_progress(next(steps), sum(memories) + options.epochs)

    read = [capturer.captured(some, step) for some in groups]
    read_s = time.perf_counter() - started
    parts_named = ("trained", "stopped_by", "held_out")
    learnt = train_on(model, layer, capturer.chosen, read, options, step)
    return Trained(
        *learnt,
        tokens=capturer.tokens,
        tokens_per_s=round(capturer.tokens / read_s, 1),
        questions={
            name: sum(len(one.probes) for one in some) for name, some in zip(parts_named, read, strict=True)
        },
        memories=dict(zip(parts_named, memories, strict=True)),
        worse=_worse(learnt.recall["trained"], learnt.recall["untrained"]),
    )


def train_on(
    model: LanguageModel,
    layer: int,
    heads: Sequence[int],
    read: Sequence[Sequence[Captured]],
    options: Options,
    on_epoch: Callable[[], None] | None = None,
) -> Learnt:
    """As `train`, of what was read already: to learn from, to stop by, and held out. `heads` are those of the
    probes that the calibration names.
    """
    learning, judging, testing = read
    centres, spread = _moments(learning)
    weights = model.calibration.weights
    haystacks = [haystack_of(one, centres, spread, heads, weights) for one in learning]
    finder = Finder(judging, centres, spread, heads, weights)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    started = time.perf_counter()
    found = fit(haystacks, options, finder.quality, on_epoch, device)
    train_s = time.perf_counter() - started
    weight = finder.choose(found.query, found.memory)
    vectors = Vectors(
        layer=layer,
        dims=options.dims,
        heads=options.heads,
        query_centre=packed_array(centres[0].half()),
        memory_centre=packed_array(centres[1].half()),
        spread=packed_array(spread.half()),
        query=packed_side(found.query),
        memory=packed_side(found.memory),
        centroids=packed_array(centroids_of(_vectors(haystacks, found.memory), options.seed)),
    )
    calibration = model.calibration.model_copy(
        update={
            "version": FORMAT_VERSION,
            "fingerprint": model.fingerprint,
            "weights": {**weights, "vector": weight},
            "vectors": vectors,
            "embedder": "",  # one kind of vector at a time
        }
    )
    tester = Finder(testing, centres, spread, heads, weights)
    recall = tester.measured(found.query, found.memory, weight)
    return Learnt(calibration, recall, found.epochs, found.best, round(train_s, 1))


def _worse(
    now: Mapping[str, Mapping[str, float]], before: Mapping[str, Mapping[str, float]]
) -> tuple[str, ...]:
    """Files where the mean of recall at 10 and reciprocal rank fell."""
    reached = {name: now[name]["10"] + now[name]["mrr"] for name in now}
    return tuple(
        name for name in now if name != "mean" and reached[name] < before[name]["10"] + before[name]["mrr"]
    )


def _by_file(pieces: Sequence[Piece]) -> list[Piece]:
    """The pieces of a file beside each other: those are searched together."""
    order = list(dict.fromkeys(piece.file for piece in pieces))
    return sorted(pieces, key=lambda piece: order.index(piece.file))


def _moments(captured: Sequence[Captured]) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """Mean state of questions' tokens and of memories', and the deviation of memories', `[hidden]` each;
    rounded as they are kept.
    """
    questions = torch.cat([probe.query for one in captured for probe in one.probes]).float().mean(dim=0)
    memories = torch.cat([each for one in captured for each in one.memories]).float()
    spread = memories.std(dim=0).clamp_min(1e-4)
    return (questions.half().float(), memories.mean(dim=0).half().float()), spread.half().float()


def _vectors(haystacks: Sequence[Haystack], side: Side) -> Tensor:
    """Vectors of all memories, `[memories, dims]`."""
    return torch.stack([projected(states, side) for one in haystacks for states in one.memories])
