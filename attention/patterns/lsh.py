"""Locality-sensitive hashing attention (Reformer, arXiv 2001.04451).

A round hashes queries by random rotations, so that similar ones fall into one bucket; a token attends to the
last `bucket` tokens of its own, in each of `hash_rounds`. As in the paper, keys are queries of length one,
and there are about n / bucket buckets; n is the tokens so far, not those of the whole sequence, which a
causal pattern doesn't know. A code has digits of four buckets each, and a token of rank i goes by the first
log4(i / bucket) of them, rounded up. That sorts 4/3 n tokens in all: O(n log n) to sort, O(n) to attend.

A key that several rounds find counts as often (an option of the published code), and positions are added
after hashing: what is alike meets wherever it stands.
"""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from mnemos.attention.patterns.bucket_mixer import BucketMixer, Level
from mnemos.attention.patterns.mixer import Complexity, MixerConfig
from mnemos.attention.patterns.registry import register

_DIGITS = 12  # of a code: enough for bucket * 4 ** 12 tokens
_BASE = 4


@register
class Lsh(BucketMixer):
    """Buckets of similar queries by random rotations. State: keys, values and codes of all tokens."""

    name: ClassVar[str] = "lsh"
    paper: ClassVar[str] = "arXiv 2001.04451"
    complexity: ClassVar[Complexity] = Complexity("O(n log n)", "O(n)", 1.0, 1.0)
    rotations: Tensor  # [head_dim, rounds, digits, 2]

    def __init__(self, config: MixerConfig) -> None:
        super().__init__(config)
        self.width, self.rounds = config.bucket, config.hash_rounds
        generator = torch.Generator().manual_seed(config.seed)
        shape = (config.head_dim, config.hash_rounds, _DIGITS, _BASE // 2)
        self.register_buffer("rotations", torch.randn(shape, generator=generator))

    def levels(self, tokens: int) -> Sequence[Level]:
        ends = [self.width]
        while ends[-1] < tokens:
            ends.append(ends[-1] * _BASE)
        starts = [0, *ends[:-1]]
        return [
            Level(start, min(end, tokens), _BASE**digits)
            for digits, (start, end) in enumerate(zip(starts, ends, strict=True))
        ]

    @torch.no_grad()
    def codes(self, qk: Tensor, there: Tensor, whole: bool) -> Tensor:
        rotated = torch.unflatten(qk @ self.rotations.flatten(1).to(qk), -1, (self.rounds, _DIGITS, -1))
        digits = torch.cat((rotated, -rotated), dim=-1).argmax(
            dim=-1
        )  # [batch, heads, tokens, rounds, digits]
        worth = _BASE ** torch.arange(_DIGITS, device=qk.device)
        return (digits * worth).sum(dim=-1).transpose(2, 3)

    def _coding(self, tokens: int) -> int:
        return tokens * self.config.heads * self.rotations.numel()
