"""How a model's memories are best found: heads, weights, hidden layer and threshold, from conversations with
questions whose evidence is known.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mnemos.attention.models import LanguageModel
from mnemos.errors import ModelError
from mnemos.memory.calibrating_capture import Capturer, Probe, hidden_layers_of
from mnemos.memory.calibrating_data import Parts, make_parts
from mnemos.memory.calibrating_fit import (
    START_WEIGHTS,
    Ways,
    choose_heads,
    choose_hidden,
    choose_threshold,
    choose_weights,
    measured,
    score,
)

_LEXICAL = Ways((), {"lexical": 1.0})


@dataclass(frozen=True, slots=True)
class Routing:
    """The constants of finding memories, and what they reach."""

    key_heads: tuple[tuple[int, int], ...]
    hidden_layer: int | None
    hidden_centre: tuple[float, ...]
    embedder: str  # the sentence encoder, where its vectors add
    weights: dict[str, float]
    recall_threshold: float
    unrelated: dict[str, float]
    recall: dict[str, dict[str, dict[str, float]]]  # router -> file or mean -> measure


def require_calibratable(model: LanguageModel) -> None:
    """Raises ModelError for a model that brings a trained router."""
    if model.config.msa is not None:
        raise ModelError(
            f"{model.name} reads memories pooled, with the router it was trained with; there is nothing to "
            "calibrate"
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
    size = Capturer(model).size
    return make_parts(
        data, held_out, conversations=conversations, questions=questions, tokens=tokens, seed=seed, size=size
    )


def calibrate_routing(
    model: LanguageModel, parts: Parts, on_memory: Callable[[], None] | None = None
) -> Routing:
    """Chooses on the training part, measures on the held-out one. `on_memory` is called at every memory
    read.
    """
    capturer = Capturer(model)
    training = capturer.probes(parts.training, on_memory)
    group = model.config.heads // model.config.kv_heads
    ways = choose_ways(training, [(layer, head // group) for layer, head in capturer.heads])
    threshold, unrelated = choose_threshold(training, ways.heads)
    # Let go of, before the held-out part is read.
    training.clear()
    held_out = capturer.probes(parts.held_out, on_memory)
    layers = hidden_layers_of(model)
    return Routing(
        key_heads=tuple(capturer.heads[head] for head in ways.heads),
        hidden_layer=None if ways.hidden is None else layers[ways.hidden],
        hidden_centre=()
        if ways.centre is None
        else tuple(float(f"{value:.4g}") for value in ways.centre.tolist()),
        embedder=""
        if capturer.embedder is None or not ways.weights.get("vector")
        else capturer.embedder.name,
        weights=ways.weights,
        recall_threshold=threshold,
        unrelated=unrelated,
        recall={
            "lexical": measured(held_out, _LEXICAL),
            "before": measured(held_out, ways_of(model, capturer.heads)),
            "calibrated": measured(held_out, ways),
        },
    )


def choose_ways(probes: Sequence[Probe], owners: Sequence[tuple[int, int]]) -> Ways:
    """Heads, then weights, then both again with what was found; then the hidden layer, if it adds.

    `owners` are the (layer, KV head) that each head reads.
    """
    numbers = {owner: number for number, owner in enumerate(dict.fromkeys(owners))}
    read = [numbers[owner] for owner in owners]
    best: tuple[float, Ways] | None = None
    weights = START_WEIGHTS
    for _ in range(2):
        ways = Ways(choose_heads(probes, read, weights), weights)
        weights = choose_weights(probes, ways)
        ways = Ways(ways.heads, weights)
        reached = score(probes, ways)
        if best is None or reached > best[0]:
            best = (reached, ways)
    assert best is not None
    return choose_hidden(probes, best[1])


def ways_of(model: LanguageModel, heads: Sequence[tuple[int, int]]) -> Ways:
    """How the model scores with the calibration it has now; a hidden layer that isn't tried is left out."""
    calibration = model.calibration
    weights = {name: value for name, value in calibration.weights.items() if name != "hidden"}
    if calibration.vectors is not None:  # a trained router's, which isn't tried either
        weights.pop("vector", None)
    return Ways(tuple(heads.index(head) for head in calibration.key_heads), weights)
