"""How the next token is chosen from logits: greedy, or drawn after the usual filters."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mnemos.errors import ModelError, UsageError


@dataclass(frozen=True, slots=True)
class Sampling:
    """What to draw and when to stop. `temperature` 0 is greedy; 0 or 1 switches the other filters off."""

    temperature: float = 0.0
    top_k: int = 0  # keep the k most likely tokens
    top_p: float = 1.0  # keep the fewest tokens whose probabilities reach p (arXiv 1904.09751)
    min_p: float = 0.0  # keep tokens of at least this share of the likeliest one's (arXiv 2407.01082)
    repetition_penalty: float = 1.0  # divides the logits of tokens seen before (arXiv 1909.05858)
    seed: int | None = None  # None draws differently each time
    max_tokens: int = 512
    stop: tuple[str, ...] = ()  # texts that end the reply and are not part of it

    def __post_init__(self) -> None:
        checks = {
            f"temperature must be 0 or more, not {self.temperature}": self.temperature >= 0,
            f"top_k must be 0 (off) or more, not {self.top_k}": self.top_k >= 0,
            f"top_p must be above 0 and at most 1, not {self.top_p}": 0 < self.top_p <= 1,
            f"min_p must be at least 0 and below 1, not {self.min_p}": 0 <= self.min_p < 1,
            f"repetition_penalty must be above 0, not {self.repetition_penalty}": self.repetition_penalty > 0,
            f"max_tokens must be at least 1, not {self.max_tokens}": self.max_tokens >= 1,
            "a stop text must not be empty": all(self.stop),
            "sampling settings must be finite": all(
                map(math.isfinite, (self.temperature, self.repetition_penalty))
            ),
        }
        for message, holds in checks.items():
            if not holds:
                raise UsageError(message)

    @property
    def is_greedy(self) -> bool:
        return self.temperature == 0


class Sampler:
    """Draws tokens by one `Sampling`; equal seeds draw equal tokens from equal logits."""

    def __init__(self, sampling: Sampling) -> None:
        self.sampling = sampling
        self._random = torch.Generator()
        if sampling.seed is None:
            self._random.seed()
        else:
            self._random.manual_seed(sampling.seed % (1 << 63))

    def __call__(self, logits: Tensor, history: Sequence[int] = (), allowed: Tensor | None = None) -> int:
        """The next token's id, from `logits [vocab]`; `history` is what the repetition penalty looks at.

        `allowed [vocab]` are the tokens to draw from, all of them when absent. Raises ModelError when none of
        their logits is finite or one is NaN.
        """
        if logits.is_cuda and allowed is None and self.sampling.is_greedy:
            penalty = self.sampling.repetition_penalty
            if penalty == 1.0 or not history:
                return best_token(logits)
        # In numpy: PyTorch takes all its threads for as little as this, which then spin beside the step's.
        scores = self._penalised(logits.float().cpu().numpy(), history)
        if allowed is not None:
            scores = np.where(allowed.cpu().numpy(), scores, -math.inf)
        best = int(scores.argmax())  # NaN counts as the largest
        _check_finite(float(scores[best]))
        if self.sampling.is_greedy:
            return best
        kept, ids = self._kept(torch.from_numpy(scores) / self.sampling.temperature)
        return int(ids[torch.multinomial(torch.softmax(kept, dim=-1), 1, generator=self._random)])

    def _penalised(self, logits: NDArray[np.float32], history: Sequence[int]) -> NDArray[np.float32]:
        penalty = self.sampling.repetition_penalty
        if penalty == 1.0 or not history:
            return logits
        seen = list(set(history))
        scores = logits.copy()
        scores[seen] = np.where(scores[seen] < 0, scores[seen] * penalty, scores[seen] / penalty)
        return scores

    def _kept(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Scores (descending) and ids of the tokens that pass top-k, top-p and min-p; at least one does."""
        sampling = self.sampling
        count = min(sampling.top_k or scores.numel(), scores.numel())
        kept, ids = scores.topk(count) if count < scores.numel() else scores.sort(descending=True)
        if sampling.top_p < 1:
            share = torch.softmax(kept, dim=-1)
            before = share.cumsum(dim=-1) - share
            kept = kept[: int((before < sampling.top_p).sum())]
        if sampling.min_p > 0:
            kept = kept[: int((kept >= kept[0] + math.log(sampling.min_p)).sum())]
        return kept, ids[: kept.numel()]


def best_token(logits: Tensor) -> int:
    """The id of the largest of `logits [vocab]`, found where they are: two numbers come to the host.

    Raises ModelError when it is not finite.
    """
    value, index = logits.max(dim=-1)  # NaN counts as the largest
    found = torch.stack([value.double(), index.double()]).tolist()
    _check_finite(found[0])
    return int(found[1])


def _check_finite(best: float) -> None:
    if not math.isfinite(best):
        raise ModelError(
            "the model's logits are not finite; its weights are damaged, or bf16/fp16 overflowed"
        )
