"""Chooses retrieval heads, fusion weights, the hidden layer and the recall threshold from what heads see.

Everything is judged by what a search shows: `quality` of the fused ranking, mean over files of the mean
over their questions, so that a file with many questions doesn't decide alone. A change is made only when it
gains enough.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mnemos.memory.calibrating_capture import Probe
from mnemos.memory.router import fuse, standardised

KS = (1, 5, 10, 20)
MOST_HEADS = 6
MOST_KV_HEADS = 2  # whose keys are kept for every token of every memory
START_WEIGHTS = {"lexical": 0.6, "mass": 1.0, "speaker": 0.5, "neighbours": 0.2}
DEFAULT_THRESHOLD = 3.3
_GRID = {
    "lexical": (0.0, 0.2, 0.4, 0.6, 0.8, 1.0, 1.3, 1.6),
    "mass": (0.0, 0.25, 0.5, 0.75, 1.0, 1.5),
    "speaker": (0.0, 0.25, 0.5, 0.75, 1.0),
    "neighbours": (0.0, 0.1, 0.2, 0.3),
    "vector": (0.0, 0.25, 0.5, 0.75, 1.0, 1.5),
}
_HIDDEN_WEIGHTS = (0.1, 0.2, 0.3, 0.5)
_HEADS_TRIED = 32  # best single heads that are joined
_STARTS = 4  # of those, that the search goes on from
_HEAD_GAIN = 0.001  # of quality, for one more head over keys that are read already
_KV_GAIN = 0.005  # for one that needs keys of its own for every token
_WEIGHT_GAIN = 0.002
_HIDDEN_GAIN = 0.004  # on conversations left out in turn: it costs layers at every search
_FOLDS = 3
_UNRELATED_SHARE = 0.1  # of unrelated messages that may still recall a memory without a word of theirs
_FEWEST_UNRELATED = 20
_THRESHOLDS = (2.0, 6.0)


@dataclass(frozen=True, slots=True)
class Ways:
    """How memories are scored: which heads, which weights, and which hidden layer about which centre."""

    heads: tuple[int, ...]  # indices into a probe's heads
    weights: dict[str, float]
    hidden: int | None = None  # index into a probe's hidden layers
    centre: Tensor | None = None  # [hidden]


def quality(scores: Tensor, gold: Tensor) -> Tensor:
    """How well rankings `[..., memories]` show the gold ones, `[...]`, from 0 to 1.

    The mean of the normalised discounted gain over the whole ranking, and of the share of gold in the first
    10.
    """
    ranks = gold_ranks(scores, gold)
    count = ranks.shape[-1]
    ideal = sum(1 / math.log2(1 + rank) for rank in range(1, count + 1))
    gain = (1 / torch.log2(1 + ranks)).sum(dim=-1) / ideal
    first = (ranks <= 10).sum(dim=-1).clamp_max(10)  # of equal ones with a middle rank there can be more
    return (gain + first / min(10, count)) / 2


def gold_ranks(scores: Tensor, gold: Tensor) -> Tensor:
    """The rank of each gold memory from 1, `[..., gold]`; those with equal scores share the middle one."""
    wanted = scores[..., gold][..., :, None]  # [..., gold, 1]
    every = scores[..., None, :]
    above, equal = (every > wanted).sum(dim=-1), (every == wanted).sum(dim=-1)
    return 1 + above + (equal - 1) / 2


def mean_by_file(probes: Sequence[Probe], values: Sequence[Tensor]) -> Tensor:
    """The mean over files of the mean over a file's questions, of tensors of one shape."""
    files = sorted({probe.file for probe in probes})
    parts = [
        torch.stack([value for probe, value in zip(probes, values, strict=True) if probe.file == name]).mean(
            dim=0
        )
        for name in files
    ]
    return torch.stack(parts).mean(dim=0)


def scores_of(probe: Probe, ways: Ways) -> Tensor:
    """Fused scores as the router would give them, `[memories]`."""
    extra = {}
    if ways.hidden is not None:
        extra["hidden"] = _cosine(probe, ways.hidden, ways.centre)
    mass = probe.mass[list(ways.heads)].mean(dim=0) if ways.heads else None
    return _fused(probe, mass, ways.weights, extra)


def _fused(
    probe: Probe, mass: Tensor | None, weights: Mapping[str, float | Tensor], extra: dict[str, Tensor]
) -> Tensor:
    signals = {"lexical": probe.lexical, "speaker": probe.speaker, **extra}
    if probe.vector is not None:
        signals["vector"] = probe.vector
    if mass is not None:
        signals["mass"] = mass.clamp_min(1e-12).log()
    return fuse(signals, weights, probe.before, probe.after, worded=probe.worded)[0]


def _cosine(probe: Probe, hidden: int, centre: Tensor | None) -> Tensor:
    means, query = probe.means[hidden, probe.visible], probe.query[hidden]
    if centre is not None:
        means, query = means - centre, query - centre
    return torch.nn.functional.cosine_similarity(means, query[None], dim=-1)


def score(probes: Sequence[Probe], ways: Ways) -> float:
    """Mean quality of a way of scoring."""
    return float(mean_by_file(probes, [quality(scores_of(probe, ways), probe.gold) for probe in probes]))


def choose_heads(
    probes: Sequence[Probe], owners: Sequence[int], weights: dict[str, float]
) -> tuple[int, ...]:
    """A small set of heads that rank the gold memories best, fused with the other signals.

    Forward selection among the best single heads, from each of the first few; `owners` tell the KV head of
    each head, of which at most two are read. A head is added where it gains, and a new KV head where it
    gains more.
    """
    single = _with_each(probes, (), range(len(owners)), weights)
    ranked = single.argsort(descending=True, stable=True)[:_HEADS_TRIED].tolist()
    best: tuple[float, tuple[int, ...]] | None = None
    for start in ranked[:_STARTS]:
        chosen: tuple[int, ...] = (start,)
        reached = float(single[start])
        while len(chosen) < MOST_HEADS:
            read = {owners[head] for head in chosen}
            left = [
                head
                for head in ranked
                if head not in chosen and (owners[head] in read or len(read) < MOST_KV_HEADS)
            ]
            if not left:
                break
            needed = torch.tensor([_HEAD_GAIN if owners[head] in read else _KV_GAIN for head in left])
            gained = _with_each(probes, chosen, left, weights) - reached - needed
            at = int(gained.argmax())
            if float(gained[at]) < 0:
                break
            chosen, reached = (*chosen, left[at]), reached + float(gained[at] + needed[at])
        if best is None or reached > best[0] + 1e-6:
            best = (reached, chosen)
    assert best is not None, "a model has heads"
    return best[1]


def _with_each(
    probes: Sequence[Probe], chosen: tuple[int, ...], heads: Sequence[int], weights: dict[str, float]
) -> Tensor:
    """Mean quality with each of `heads` added to the chosen ones, `[heads]`."""
    values = []
    for probe in probes:
        mass = probe.mass[list(heads)]
        if chosen:
            mass = (mass + probe.mass[list(chosen)].sum(dim=0)) / (len(chosen) + 1)
        values.append(quality(_fused(probe, mass, weights, {}), probe.gold))
    return mean_by_file(probes, values)


def choose_weights(probes: Sequence[Probe], ways: Ways) -> dict[str, float]:
    """Weights by going through one signal after the other until none gains; the larger of the two main ones
    is 1.
    """
    weights, reached = dict(ways.weights), score(probes, ways)
    changed = True
    while changed:
        changed = False
        for name, grid in _GRID.items():
            if name == "vector" and probes[0].vector is None:
                continue
            gained = _with_weights(probes, ways, weights, name, grid)
            best = int(gained.argmax())
            if float(gained[best]) >= reached + _WEIGHT_GAIN:
                reached, changed = float(gained[best]), True
                weights[name] = grid[best]
    # The ranking doesn't change with the scale.
    scale = max(weights["lexical"], weights["mass"]) or 1.0
    return {
        name: round(value / scale, 4) if name != "neighbours" else value for name, value in weights.items()
    }


def _with_weights(
    probes: Sequence[Probe], ways: Ways, weights: Mapping[str, float], name: str, grid: Sequence[float]
) -> Tensor:
    """Mean quality with each value of one weight, `[values]`."""
    tried: dict[str, float | Tensor] = {**weights, name: torch.tensor(grid)[:, None]}
    values = []
    for probe in probes:
        mass = probe.mass[list(ways.heads)].mean(dim=0)
        values.append(quality(_fused(probe, mass, tried, {}), probe.gold))
    return mean_by_file(probes, values)


def centre_of(probes: Sequence[Probe], hidden: int) -> Tensor:
    """The mean over questions of the mean input of a layer over their memories, `[hidden]`."""
    mean = (
        torch.stack([probe.means[hidden, probe.visible].mean(dim=0) for probe in probes]).double().mean(dim=0)
    )
    return torch.tensor([float(f"{value:.4g}") for value in mean.tolist()])


def choose_hidden(probes: Sequence[Probe], ways: Ways) -> Ways:
    """With the hidden layer and weight that add most, if any does on conversations left out in turn."""
    layers = probes[0].query.shape[0]
    options = [(layer, at) for layer in range(layers) for at in range(len(_HIDDEN_WEIGHTS))]
    centres = [centre_of(probes, layer) for layer in range(layers)]
    weights: dict[str, float | Tensor] = {**ways.weights, "hidden": torch.tensor(_HIDDEN_WEIGHTS)[:, None]}
    before = torch.stack([quality(scores_of(probe, ways), probe.gold) for probe in probes])
    by_probe = []
    for probe in probes:
        mass = probe.mass[list(ways.heads)].mean(dim=0)
        cosines = [_cosine(probe, layer, centre) for layer, centre in enumerate(centres)]
        fused = [_fused(probe, mass, weights, {"hidden": cosine}) for cosine in cosines]
        by_probe.append(quality(torch.cat(fused), probe.gold))  # [layers * weights]
    gains = [column - before for column in torch.stack(by_probe).unbind(dim=1)]
    folds = sorted({probe.fold for probe in probes})
    left_out = []
    for fold in range(min(_FOLDS, len(folds))):
        away = {each for index, each in enumerate(folds) if index % _FOLDS == fold}
        inside = [at for at, probe in enumerate(probes) if probe.fold not in away]
        outside = [at for at, probe in enumerate(probes) if probe.fold in away]
        if not inside or not outside:
            continue
        best = max(gains, key=lambda gain: _mean(probes, gain, inside))
        left_out.append(_mean(probes, best, outside))
    if not left_out or sum(left_out) / len(left_out) < _HIDDEN_GAIN:
        return ways
    best_of_all = max(range(len(options)), key=lambda index: _mean(probes, gains[index], range(len(probes))))
    layer, at = options[best_of_all]
    return replace(
        ways, hidden=layer, centre=centres[layer], weights=ways.weights | {"hidden": _HIDDEN_WEIGHTS[at]}
    )


def _mean(probes: Sequence[Probe], values: Tensor, rows: Sequence[int]) -> float:
    return float(mean_by_file([probes[at] for at in rows], [values[at] for at in rows]))


def choose_threshold(probes: Sequence[Probe], heads: tuple[int, ...]) -> tuple[float, dict[str, float]]:
    """The z-score of the mass that all but few unrelated messages stay under, and what it was found with.

    An unrelated message is a question put to the memories of other conversations. The default stays where
    there are too few.
    """
    top = sorted(_standing(probe.unrelated, heads) for probe in probes if probe.unrelated is not None)
    threshold = DEFAULT_THRESHOLD
    if len(top) >= _FEWEST_UNRELATED:
        place = min(len(top) - 1, math.ceil(len(top) * (1 - _UNRELATED_SHARE)))
        low, high = _THRESHOLDS
        threshold = min(high, max(low, math.ceil(top[place] * 10) / 10))
    over = sum(value >= threshold for value in top) / len(top) if top else 0.0
    return threshold, {"messages": len(top), "over": round(over, 4)}


def _standing(mass: Tensor, heads: tuple[int, ...]) -> float:
    """How far the memory with the most mass stands out, in deviations of the log mass."""
    return float(standardised(mass[list(heads)].mean(dim=0).clamp_min(1e-12).log()).max())


def measured(probes: Sequence[Probe], ways: Ways) -> dict[str, dict[str, float]]:
    """Recall at `KS` and mean reciprocal rank by file, and their mean as `mean`, of a way of scoring."""
    ranks = [gold_ranks(scores_of(probe, ways), probe.gold) for probe in probes]
    values = [torch.stack([*((rank <= k).float().mean() for k in KS), 1 / rank.min()]) for rank in ranks]
    names = (*(str(k) for k in KS), "mrr")
    files = sorted({probe.file for probe in probes})
    found = {}
    for name in files:
        own = torch.stack([value for probe, value in zip(probes, values, strict=True) if probe.file == name])
        found[name] = own.mean(dim=0)
    found["mean"] = torch.stack(list(found.values())).mean(dim=0)
    return {
        name: {key: round(float(value), 4) for key, value in zip(names, row, strict=True)}
        for name, row in found.items()
    }
