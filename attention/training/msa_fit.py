"""Trains the routers of an MSA checkpoint on questions whose documents are known (arXiv 2603.23516).

The first phase trains the routers alone by the supervised contrastive loss, questions with short documents
first. The second goes on from the best of it at a lower rate, with every document and the weights of the
losses turned round; the language loss of an answer reaches the layers that read documents, where those learn
too. Of each phase the epoch is kept that finds most on conversations that had no part.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional

from mnemos.attention.patterns.contrastive import route_loss
from mnemos.attention.training.msa_reading import Encoded, MsaReading
from mnemos.attention.training.settings import LM_WEIGHTS, ROUTE_WEIGHTS

_CLIP = 1.0
_LOWER = 0.1  # the second phase's rate, as a share of the first's
_PATIENCE = 2  # epochs of a phase without gain before it ends


@dataclass(frozen=True, slots=True)
class Asked:
    """A question over the first `visible` documents of its haystack."""

    question: tuple[int, ...]  # tokens that route
    answer: tuple[int, ...]  # tokens behind them; none where the answer isn't known
    told: int  # of those, at the beginning, that are not to be learnt
    gold: tuple[int, ...]  # indices of documents
    visible: int


@dataclass(frozen=True, slots=True)
class Haystack:
    """Documents that are searched together, each as segments that are read alone."""

    source: str
    documents: tuple[tuple[tuple[int, ...], ...], ...]
    questions: tuple[Asked, ...]


@dataclass(frozen=True, slots=True)
class MsaOptions:
    """How to train. Epochs are shared by the phases, the first having the odd one."""

    epochs: int = 4
    batch: int = 8
    hard: int = 12  # negatives of a question from its own haystack, those that mislead most
    rate: float = 3e-4
    decay: float = 0.01
    temperature: float = 0.1
    seed: int = 0


@dataclass(frozen=True, slots=True)
class MsaEpoch:
    """How an epoch ended."""

    phase: int  # 0 before any training
    loss: float  # contrastive, mean over questions
    answer_loss: float | None  # nats a token, where answers were read
    quality: float


@dataclass(slots=True)
class Shelf:
    """Encoded documents, kept as long as the weights that made them stay."""

    model: MsaReading
    _kept: dict[tuple[int, int], Encoded] = field(default_factory=dict)

    def document(self, haystack: Haystack, index: int) -> Encoded:
        """Without gradients."""
        key = (id(haystack), index)
        if key not in self._kept:
            with torch.no_grad():
                self._kept[key] = encoded(self.model, haystack, index)
        return self._kept[key]

    def clear(self) -> None:
        self._kept.clear()


def encoded(model: MsaReading, haystack: Haystack, index: int) -> Encoded:
    """A document, its segments behind each other."""
    parts = [model.document(segment) for segment in haystack.documents[index]]
    if len(parts) == 1:
        return parts[0]
    k, v = (torch.cat([getattr(part, name) for part in parts], dim=2) for name in ("k", "v"))
    return Encoded(k, v, torch.cat([part.states for part in parts], dim=1))


@torch.no_grad()
def ranked(
    model: MsaReading, template: Sequence[int], shelf: Shelf, haystack: Haystack, asked: Asked
) -> list[int]:
    """Documents as a search ranks them: by the mean over layers of standardised scores."""
    documents = [shelf.document(haystack, index) for index in range(asked.visible)]
    scores = model.read(template, asked.question, len(asked.question), documents).scores
    if scores.shape[1] < 2:
        return list(range(asked.visible))
    spread = scores.std(dim=1, keepdim=True)
    centred = scores - scores.mean(dim=1, keepdim=True)
    fused = torch.where(spread > 1e-6, centred / spread.clamp_min(1e-6), 0.0).mean(dim=0)
    found: list[int] = fused.argsort(descending=True, stable=True).tolist()
    return found


def measured(
    model: MsaReading, template: Sequence[int], shelf: Shelf, haystacks: Sequence[Haystack]
) -> dict[str, dict[str, float]]:
    """Recall at 1, 5 and 10 and mean reciprocal rank, by source, and `mean` over sources."""
    by_source: dict[str, list[tuple[float, ...]]] = {}
    for haystack in haystacks:
        for asked in haystack.questions:
            order = ranked(model, template, shelf, haystack, asked)
            places = sorted(order.index(index) for index in asked.gold)
            shares = [sum(place < k for place in places) / len(places) for k in (1, 5, 10)]
            by_source.setdefault(haystack.source, []).append((*shares, 1 / (places[0] + 1)))
    keys = ("1", "5", "10", "mrr")
    found = {
        name: {key: sum(row[at] for row in rows) / len(rows) for at, key in enumerate(keys)}
        for name, rows in by_source.items()
    }
    found["mean"] = {key: sum(each[key] for each in found.values()) / len(found) for key in keys}
    return found


def quality_of(recall: dict[str, dict[str, float]]) -> float:
    """What epochs are compared by."""
    return (recall["mean"]["10"] + recall["mean"]["mrr"]) / 2


class MsaFit:
    """One training run. The same arguments give the same weights on the same machine."""

    def __init__(
        self,
        model: MsaReading,
        template: Sequence[int],
        learning: Sequence[Haystack],
        judging: Sequence[Haystack],
        options: MsaOptions,
    ) -> None:
        self.model, self.options = model, options
        self.shelf = Shelf(model)
        self._template, self._judging = tuple(template), judging
        items = [(one, each) for one in learning for each in one.questions]
        self._items = [item for item in items if len(item[1].gold) < item[1].visible]
        self._draw = random.Random(options.seed)
        self.epochs: list[MsaEpoch] = []
        self.best = 0

    def run(self, on_epoch: Callable[[], None] | None = None) -> None:
        """Trains, and leaves the model with the weights of the best epoch."""
        self.epochs = [MsaEpoch(0, 0.0, None, self._quality())]
        best = self._state()
        first = (self.options.epochs + 1) // 2
        for phase, count in ((1, first), (2, self.options.epochs - first)):
            learns = [*self.model.routers(), *(self.model.readers() if phase == 2 else [])]
            rate = self.options.rate * (1.0 if phase == 1 else _LOWER)
            optimiser = torch.optim.AdamW(learns, lr=rate, weight_decay=self.options.decay)
            since = 0
            for number in range(count):
                share = 0.5 + 0.5 * number / max(1, count - 1) if phase == 1 else 1.0
                loss, answer_loss = self._epoch(phase, self._short_enough(share), optimiser, learns)
                self.epochs.append(MsaEpoch(phase, loss, answer_loss, self._quality()))
                since += 1
                if self.epochs[-1].quality > self.epochs[self.best].quality:
                    self.best, best, since = len(self.epochs) - 1, self._state(), 0
                if on_epoch is not None:
                    on_epoch()
                if since >= _PATIENCE:
                    break
            self._restore(best)

    def _epoch(
        self,
        phase: int,
        items: Sequence[tuple[Haystack, Asked]],
        optimiser: torch.optim.Optimizer,
        learns: Sequence[nn.Parameter],
    ) -> tuple[float, float | None]:
        model, options = self.model, self.options
        reads = phase == 2 and bool(model.readers())
        order = self._draw.sample(list(items), len(items))
        total, answers = 0.0, []
        for start in range(0, len(order), options.batch):
            batch = order[start : start + options.batch]
            if reads:
                self.shelf.clear()
            places = [self._candidates(batch, at) for at in range(len(batch))]
            optimiser.zero_grad(set_to_none=True)
            for (one, asked), of_question in zip(batch, places, strict=True):
                documents = [
                    encoded(model, *place) if reads else self.shelf.document(*place) for place in of_question
                ]
                gold = torch.tensor([place[0] is one and place[1] in asked.gold for place in of_question])
                is_read = reads and len(asked.answer) > asked.told
                tokens = (*asked.question, *asked.answer) if is_read else asked.question
                reading = model.read(self._template, tokens, len(asked.question), documents)
                evidence = gold.to(reading.scores.device).expand_as(reading.scores)
                routed = route_loss(reading.scores, evidence, options.temperature)
                total += float(routed.detach())
                loss = ROUTE_WEIGHTS[phase - 1] * routed
                if is_read:
                    told = self._answer_loss(reading.hidden, asked)
                    answers.append(float(told.detach()))
                    loss = loss + LM_WEIGHTS[phase - 1] * told
                (loss / len(batch)).backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(learns, _CLIP)
            optimiser.step()
        if reads:
            self.shelf.clear()
        return total / max(1, len(order)), sum(answers) / len(answers) if answers else None

    def _answer_loss(self, hidden: Tensor, asked: Asked) -> Tensor:
        """Nats a token of the answer."""
        start = len(asked.question) + asked.told
        wanted = torch.tensor(asked.answer[asked.told :], device=hidden.device)
        return functional.cross_entropy(self.model.logits(hidden[start - 1 : -1]), wanted)

    def _candidates(self, batch: Sequence[tuple[Haystack, Asked]], at: int) -> list[tuple[Haystack, int]]:
        """What answers a question, what misleads it most, and what answers the others of its batch."""
        one, asked = batch[at]
        order = ranked(self.model, self._template, self.shelf, one, asked)
        hard = [index for index in order if index not in asked.gold][: self.options.hard]
        places = [(one, index) for index in (*asked.gold, *hard)]
        for other, others in batch:
            if other is not one:
                places += [(other, index) for index in others.gold]
        return list({(id(each), index): (each, index) for each, index in places}.values())

    def _short_enough(self, share: float) -> list[tuple[Haystack, Asked]]:
        """The questions with the shortest answering documents."""
        lengths = sorted(_tokens(*item) for item in self._items)
        longest = lengths[max(0, min(len(lengths), round(share * len(lengths))) - 1)] if lengths else 0
        return [item for item in self._items if _tokens(*item) <= longest]

    def _quality(self) -> float:
        return quality_of(measured(self.model, self._template, self.shelf, self._judging))

    def _state(self) -> list[Tensor]:
        return [each.detach().clone() for each in (*self.model.routers(), *self.model.readers())]

    @torch.no_grad()
    def _restore(self, state: Sequence[Tensor]) -> None:
        for each, kept in zip((*self.model.routers(), *self.model.readers()), state, strict=True):
            each.copy_(kept)
        if self.model.readers():
            self.shelf.clear()


def _tokens(haystack: Haystack, asked: Asked) -> int:
    return max(sum(map(len, haystack.documents[index])) for index in asked.gold)
