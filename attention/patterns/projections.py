"""What most patterns share: q, k, v and out, token positions in q and k, and softmax attention over them."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from mnemos.attention.patterns.mixer import PADDING, MixerConfig
from mnemos.attention.rope import base_frequencies

ALIBI_WIDTH = 8  # numbers added to q and k: three are used, and kernels like multiples of eight
_MOST_SEQUENCES = 32_768  # in one call of a kernel: CUDA's grids end at 65,535


class Projections(nn.Module):
    """Linear maps of one layer without bias; query heads share K and V in groups (GQA, arXiv 2305.13245).

    Positions are in q and k when they leave here, RoPE (arXiv 2104.09864) or ALiBi (arXiv 2108.12409): the
    score of a pair of tokens is `scale * (q @ k)` either way, and a softmax over earlier tokens is all that
    is left to do. ALiBi's `-slope * (i - j)` is `slope * j` up to a constant of the row, and that is a few
    more numbers in q and k, `[..., key_dim]` wide then, instead of a bias of [tokens, tokens].
    """

    def __init__(self, config: MixerConfig) -> None:
        super().__init__()
        self.config = config
        self.query = nn.Linear(config.dim, config.heads * config.head_dim, bias=False)
        self.key = nn.Linear(config.dim, config.kv_heads * config.head_dim, bias=False)
        self.value = nn.Linear(config.dim, config.kv_heads * config.head_dim, bias=False)
        self.out = nn.Linear(config.heads * config.head_dim, config.dim, bias=False)
        self.scale = config.head_dim**-0.5
        self.key_dim = config.head_dim + (ALIBI_WIDTH if config.position == "alibi" else 0)

    def split(self, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q [batch, heads, tokens, key_dim], k [batch, kv_heads, tokens, key_dim] and v [..., head_dim]."""
        q, k, v = self.heads_of(x)
        q, k = self.place(q, k, positions)
        return q, k, v

    def heads_of(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q, k and v without positions, `[batch, heads or kv_heads, tokens, head_dim]`."""
        q, k, v = (
            torch.unflatten(part(x), -1, (-1, self.config.head_dim)).transpose(1, 2)
            for part in (self.query, self.key, self.value)
        )
        return q, k, v

    def place(self, q: Tensor, k: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """q and k with positions in them, `[..., key_dim]`."""
        if self.config.position == "rope":
            theta = self.config.rope_theta
            return rotate(q, positions, theta), rotate(k, positions, theta)
        if self.config.position == "alibi":
            return with_alibi(q, k, positions, self.scale)
        return q, k

    def join(self, mixed: Tensor, positions: Tensor) -> Tensor:
        """[batch, heads, tokens, head_dim] to [batch, tokens, dim], zero where padded."""
        return zero_padding(self.out(mixed.transpose(1, 2).flatten(2)), positions)


def refuse_alibi(config: MixerConfig, name: str) -> None:
    """Raises ValueError where ALiBi is asked of a pattern that has no scores to add it to."""
    if config.position == "alibi":
        raise ValueError(
            f"ALiBi is added to scores before a softmax, and the {name} pattern has none; "
            "use position='rope' or 'none'"
        )


def zero_padding(y: Tensor, positions: Tensor) -> Tensor:
    """`y [batch, tokens, dim]` with zeros where the token is not there."""
    return y.masked_fill((positions == PADDING)[..., None], 0.0)


def rotate(x: Tensor, positions: Tensor, theta: float) -> Tensor:
    """RoPE: neighbouring pairs of `x [batch, heads, tokens, head_dim]` turned by `positions [batch, tokens]`.

    At least fp32 inside. Positions of padding turn by whatever they are.
    """
    frequencies = base_frequencies(x.shape[-1], theta).to(positions.device)
    angles = (positions[..., None] * frequencies)[:, None]  # [batch, 1, tokens, head_dim / 2]
    wide = torch.promote_types(x.dtype, torch.float32)
    cos, sin = angles.cos().to(wide), angles.sin().to(wide)
    even, odd = torch.unflatten(x.to(wide), -1, (-1, 2)).unbind(-1)
    turned = torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1)
    return turned.flatten(-2).to(x.dtype)


def alibi_slopes(heads: int) -> Tensor:
    """`[heads]`, float64: a geometric series that starts at its own ratio, 2^(-8 / heads) for powers of two.

    For other counts, the heads left over take every second slope of the next power of two (the paper's code).
    """
    whole = 2 ** math.floor(math.log2(heads))
    slopes = [2 ** (-8 * (i + 1) / whole) for i in range(whole)]
    finer = [2 ** (-4 * (i + 1) / whole) for i in range(0, 2 * whole, 2)]
    return torch.tensor((slopes + finer)[:heads], dtype=torch.float64)


def with_alibi(q: Tensor, k: Tensor, positions: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """q and k with `ALIBI_WIDTH` more numbers, whose products times `scale` are slope * position of the key.

    The position is written in base 256, each digit exact in bf16.
    """
    bases = torch.tensor([65536.0, 256.0, 1.0], dtype=torch.float64, device=q.device)
    digits = torch.stack((positions // 65536, positions // 256 % 256, positions % 256), dim=-1)
    weights = alibi_slopes(q.shape[1]).to(q.device)[:, None] * bases / scale  # [heads, 3]
    more_q = functional.pad(weights, (0, ALIBI_WIDTH - 3)).to(q.dtype)[None, :, None]
    more_k = functional.pad(digits, (0, ALIBI_WIDTH - 3)).to(k.dtype)[:, None]
    return (
        torch.cat((q, more_q.expand(len(q), -1, q.shape[2], -1)), dim=-1),
        torch.cat((k, more_k.expand(-1, k.shape[1], -1, -1)), dim=-1),
    )


def attend(q: Tensor, k: Tensor, v: Tensor, scale: float, visible: Tensor | None = None) -> Tensor:
    """Softmax attention in memory linear in the length (PyTorch's fused kernels; arXiv 2205.14135).

    Args:
        q: [batch, heads, tokens, key_dim].
        k: [batch, kv_heads, keys, key_dim]. Each KV head serves heads / kv_heads query heads in turn.
        v: [batch, kv_heads, keys, head_dim].
        scale: what a score is multiplied with.
        visible: bool [batch or 1, tokens, keys], in each row at least one True; None for causal, with as many
            keys as tokens.

    Returns:
        [batch, heads, tokens, head_dim]. A pair of tokens costs 2 * key_dim multiply-adds in each head: the
        kernels want one width, so values are as wide as keys on the way.
    """
    if len(q) > _MOST_SEQUENCES:
        parts = [
            attend(q[s], k[s], v[s], scale, visible if visible is None or len(visible) == 1 else visible[s])
            for s in _slices(len(q))
        ]
        return torch.cat(parts)
    width = v.shape[-1]
    if k.shape[-1] != width:
        v = functional.pad(v, (0, k.shape[-1] - width))
    if visible is None:
        mixed = functional.scaled_dot_product_attention(
            q, k, v, is_causal=True, scale=scale, enable_gqa=q.shape[1] != k.shape[1]
        )
        return mixed[..., :width]
    # The heads of a group as more query rows: fused kernels with a mask know no groups.
    group = q.shape[1] // k.shape[1]
    rows = torch.unflatten(q, 1, (-1, group)).flatten(2, 3)  # [batch, kv_heads, group * tokens, key_dim]
    mask = visible.repeat(1, group, 1)[:, None] if group > 1 else visible[:, None]
    mixed = functional.scaled_dot_product_attention(rows, k, v, attn_mask=mask, scale=scale)
    return torch.unflatten(mixed, 2, (group, -1)).flatten(1, 2)[..., :width]


def visible_among(positions: Tensor, tokens: int) -> Tensor:
    """What the last `tokens` of the keys see, `[batch, tokens, keys]`: themselves and what is there before.

    `positions [batch, keys]`; padding is not there.
    """
    keys = positions.shape[1]
    order = torch.arange(keys, device=positions.device)
    queries = order[keys - tokens :, None]
    there = (positions != PADDING)[:, None]
    return (there & (order < queries)) | (order == queries)


def _slices(count: int) -> list[slice]:
    return [slice(start, start + _MOST_SEQUENCES) for start in range(0, count, _MOST_SEQUENCES)]
