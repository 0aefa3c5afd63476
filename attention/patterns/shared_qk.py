"""Projections of patterns in which a token's key is its own query, so that both fall into one bucket."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from mnemos.attention.patterns.mixer import MixerConfig
from mnemos.attention.patterns.projections import ALIBI_WIDTH, rotate, with_alibi, zero_padding


class SharedQk(nn.Module):
    """Queries, values and out, without bias; keys are queries of length one (Reformer, arXiv 2001.04451).

    Values are shared by groups of heads; keys, being queries, are not.
    """

    def __init__(self, config: MixerConfig) -> None:
        super().__init__()
        self.config = config
        self.query = nn.Linear(config.dim, config.heads * config.head_dim, bias=False)
        self.value = nn.Linear(config.dim, config.kv_heads * config.head_dim, bias=False)
        self.out = nn.Linear(config.heads * config.head_dim, config.dim, bias=False)
        self.scale = config.head_dim**-0.5
        self.key_dim = config.head_dim + (ALIBI_WIDTH if config.position == "alibi" else 0)

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Queries without positions and values, `[batch, heads, tokens, head_dim]`."""
        qk = torch.unflatten(self.query(x), -1, (self.config.heads, -1)).transpose(1, 2)
        v = torch.unflatten(self.value(x), -1, (self.config.kv_heads, -1)).transpose(1, 2)
        return qk, v.repeat_interleave(self.config.heads // self.config.kv_heads, dim=1)

    def place(self, qk: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """q and k with positions in them, `[batch, heads, tokens, key_dim]`."""
        q, k = qk, functional.normalize(qk, dim=-1)
        if self.config.position == "rope":
            theta = self.config.rope_theta
            return rotate(q, positions, theta), rotate(k, positions, theta)
        if self.config.position == "alibi":
            return with_alibi(q, k, positions, self.scale)
        return q, k

    def join(self, mixed: Tensor, positions: Tensor) -> Tensor:
        """`[batch, heads, tokens, head_dim]` to `[batch, tokens, dim]`, zero where padded."""
        return zero_padding(self.out(mixed.transpose(1, 2).flatten(2)), positions)
