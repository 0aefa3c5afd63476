"""What attention patterns are measured on: models by machine, sequences of any length, the needle setting."""

from dataclasses import dataclass

import numpy as np
import torch

from mnemos.attention.patterns.mixer import MixerConfig
from mnemos.attention.patterns.registry import pattern
from mnemos.attention.training.batches import Batch, Sample, make_batch, next_tokens
from mnemos.attention.training.needle import NeedleSizes, NeedleTask
from mnemos.attention.training.settings import TrainSettings
from mnemos.errors import UsageError


@dataclass(frozen=True, slots=True)
class Sizes:
    """The small model and its data, by machine. Lengths are in tokens."""

    dim: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    document: int
    pool: int
    top_k: int
    window: int
    bf16: bool

    def mixer(self) -> MixerConfig:
        return MixerConfig(
            dim=self.dim,
            heads=self.heads,
            kv_heads=self.kv_heads,
            head_dim=self.head_dim,
            document=self.document,
            pool=self.pool,
            top_k=self.top_k,
            window=self.window,
            block=64,
            bucket=64,
            segment=self.window,
        )


CPU = Sizes(
    dim=128, layers=2, heads=4, kv_heads=2, head_dim=32, document=128, pool=32, top_k=4, window=128,
    bf16=False,
)  # fmt: skip
GPU = Sizes(
    dim=1024, layers=4, heads=8, kv_heads=2, head_dim=128, document=512, pool=64, top_k=16, window=512,
    bf16=True,
)  # fmt: skip


def layers_of(name: str, sizes: Sizes) -> tuple[str, ...]:
    """The pattern of each layer. UsageError for one that there is not."""
    parts = name.split("+")
    for part in parts:
        try:
            pattern(part)
        except ValueError as error:
            raise UsageError(str(error)) from None
    return tuple(parts[index % len(parts)] for index in range(max(sizes.layers, len(parts))))


def sequence(task: NeedleTask, length: int) -> Batch:
    """One sequence of exactly `length` tokens, every token a target.

    Its question is as long as a document, and about the needles of one.
    """
    document = task.sizes.document
    sample = task.sample(0, (length - document) // document * document + 2 * task.sizes.facts)
    *documents, question = sample.documents
    noise = _noise(task, length - sum(map(len, documents)) - len(question))
    asked = torch.cat((question, noise[: document - len(question)]))
    spare = noise[document - len(question) :]
    parts = [*documents, *([spare] if len(spare) else [])]
    evidence = (*sample.evidence, *([False] * (len(parts) - len(documents))))
    asks = torch.arange(len(asked)) < len(question)
    whole = (*parts, asked)
    return make_batch([Sample(whole, tuple(map(next_tokens, whole)), asks, evidence)])


def _noise(task: NeedleTask, count: int) -> torch.Tensor:
    first = task.vocab - task.sizes.noise
    return torch.from_numpy(np.random.default_rng(0).integers(first, task.vocab, size=max(count, 0)))


def needle_setting(steps: int) -> tuple[NeedleSizes, TrainSettings, MixerConfig]:
    """The task, the budget and the mixers of the recall column: the same on every machine."""
    sizes = NeedleSizes(document=8, facts=1, keys=32, values=16, noise=16)
    settings = TrainSettings(
        steps=steps, batch=32, length=66, start_length=18, learning_rate=4e-3, warmup=20, router_share=0.1
    )
    config = MixerConfig(
        dim=64, heads=2, kv_heads=2, head_dim=32, window=16, sinks=2, block=8, bucket=16, clusters=4,
        segment=16, compressed=16, neighbours=8, document=8, pool=2, top_k=1, latent=32, features=32,
    )  # fmt: skip
    return sizes, settings, config
