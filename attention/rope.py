"""Rotary embedding (RoPE, arXiv 2104.09864): frequencies of every supported scaling, and tables of rotations.

A table grows with the positions that are used: a window of 131,072 tokens costs nothing until it is.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from mnemos.attention.compiled import kernels
from mnemos.attention.config import ModelConfig, RopeScaling

_FIRST_POSITIONS = 2048  # rows of a new table


class Rotary:
    """The rotations of one kind of layer: complex factors by position, `[positions, head_dim / 2]`."""

    def __init__(self, frequencies: Tensor, magnitude: float, max_positions: int) -> None:
        """`frequencies [head_dim / 2]` in radians a token; `magnitude` multiplies what is rotated."""
        self._frequencies = frequencies
        self._magnitude = magnitude
        self._max_positions = max_positions
        self._table = torch.empty(0, len(frequencies), dtype=torch.complex64)

    def span(self, start: int, count: int) -> Tensor:
        """Factors of the positions `[start, start + count)`, `[count, head_dim / 2]`, complex64."""
        return self._upto(start + count)[start : start + count]

    def at(self, position: int) -> Tensor:
        """Factors of one position, `[head_dim / 2]`, complex64."""
        return self._upto(position + 1)[position]

    def _upto(self, end: int) -> Tensor:
        table = self._table
        if end > len(table):
            rows = min(max(end, 2 * len(table), _FIRST_POSITIONS), max(end, self._max_positions))
            angle = torch.outer(torch.arange(rows, dtype=torch.float32), self._frequencies)
            table = torch.polar(torch.full_like(angle, self._magnitude), angle)
            self._table = table  # one assignment: a reader in another thread sees the old table or the new
        return table


class KeyRotation:
    """Moves keys that are rotated already on to later positions: rotations add up."""

    def __init__(self, rotaries: Sequence[Rotary], use: Sequence[int]) -> None:
        """`use[layer]` is the rotary of each layer, as from `rotaries`."""
        self._rotaries = rotaries
        self._use = use

    def __call__(self, keys: Tensor, positions: int) -> Tensor:
        """`keys [layers, kv_heads, tokens, head_dim]` as they were encoded `positions` further on."""
        if positions == 0:
            return keys
        phases = self._phases(positions)[:, None, None]
        pairs = torch.view_as_complex(torch.unflatten(keys.float(), -1, (-1, 2)))
        return torch.view_as_real(pairs * phases).flatten(-2).to(keys.dtype)

    def turn_(self, keys: Tensor, positions: int) -> None:
        """As `__call__`, in place: keys of a cache, `[layers, kv_heads, tokens, head_dim]`."""
        layers, kv_heads, tokens, dim = keys.shape
        stride = keys.stride(1)
        is_plain = keys.dtype == torch.float32 and keys.stride() == (kv_heads * stride, stride, dim, 1)
        library = kernels() if is_plain and positions else None
        if library is None:
            keys.copy_(self(keys, positions))
            return
        turns = self.turns(positions)
        at, to = keys.data_ptr(), turns.data_ptr()
        if library.mnemos_turn_keys(at, stride, layers, kv_heads, tokens, dim, to):
            keys.copy_(self(keys, positions))

    def turns(self, positions: int) -> Tensor:
        """Cosine and sine of each pair, `[layers, head_dim]`, fp32."""
        return torch.view_as_real(self._phases(positions)).flatten(1).contiguous()

    def _phases(self, positions: int) -> Tensor:
        """Factors of each layer, `[layers, head_dim / 2]`, complex64."""
        kinds = [rotary.at(positions) for rotary in self._rotaries]
        # A magnitude other than 1 is in the keys already.
        return torch.stack([kinds[kind] / kinds[kind].abs() for kind in self._use])


def rotaries(config: ModelConfig) -> tuple[list[Rotary], list[int]]:
    """The distinct rotaries of a model, and for each layer which of them it uses."""
    kinds: dict[str, Rotary] = {}
    use: list[str] = []
    for layer in range(config.layers):
        kind = "full"
        if layer in config.nope_layers:
            kind = "none"
        elif config.local_rope_theta is not None and layer in config.sliding_layers:
            kind = "local"
        if kind not in kinds:
            frequencies, magnitude = _of_kind(config, kind)
            kinds[kind] = Rotary(frequencies, magnitude, config.max_positions)
        use.append(kind)
    order = list(kinds)
    return list(kinds.values()), [order.index(kind) for kind in use]


def _of_kind(config: ModelConfig, kind: str) -> tuple[Tensor, float]:
    if kind == "none":  # no rotation is one by a zero angle
        return torch.zeros(config.head_dim // 2), 1.0
    if kind == "local" and config.local_rope_theta is not None:
        return base_frequencies(config.head_dim, config.local_rope_theta), 1.0
    base = base_frequencies(config.head_dim, config.rope_theta)
    scaling = config.rope_scaling
    if scaling is None:
        return base, 1.0
    return scaled_frequencies(base, config.rope_theta, scaling), scaling.attention_factor


def base_frequencies(head_dim: int, theta: float) -> Tensor:
    """`theta ** (-2 i / head_dim)`, `[head_dim / 2]` in fp32."""
    return 1.0 / (theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim))


def scaled_frequencies(base: Tensor, theta: float, scaling: RopeScaling) -> Tensor:
    """Stretched frequencies, `[head_dim / 2]` in fp32."""
    if scaling.kind == "factors":
        return base / torch.tensor(scaling.factors)
    if scaling.kind == "linear":  # position interpolation (arXiv 2306.15595)
        return base / scaling.factor
    if scaling.kind == "llama3":
        return _llama3(base, scaling)
    return _yarn(base, theta, scaling)


def _llama3(base: Tensor, scaling: RopeScaling) -> Tensor:
    """Llama 3.1's (arXiv 2407.21783): long wavelengths are stretched, short ones kept, others in between."""
    low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
    turns = scaling.original_positions * base / (2 * math.pi)  # rotations over the original window
    kept = ((turns - low) / (high - low)).clamp(0, 1)  # share of the original frequency
    return (1 - kept) * base / scaling.factor + kept * base


def _yarn(base: Tensor, theta: float, scaling: RopeScaling) -> Tensor:
    """YaRN's "NTK by parts" (arXiv 2309.00071, section 3.2)."""
    dim = 2 * len(base)

    def pair_that_turns(rotations: float) -> float:
        """The index of the frequency that turns so often over the original window."""
        span = scaling.original_positions / (rotations * 2 * math.pi)
        return dim * math.log(span) / (2 * math.log(theta))

    low, high = pair_that_turns(scaling.beta_fast), pair_that_turns(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    ramp = (torch.arange(dim // 2, dtype=torch.float32) - low) / max(high - low, 0.001)
    stretched = ramp.clamp(0, 1)
    return stretched * base / scaling.factor + (1 - stretched) * base


def yarn_attention_factor(factor: float, mscale: float = 1.0, mscale_all_dim: float = 0.0) -> float:
    """YaRN's default: `0.1 ln(factor) + 1`, or the ratio of two such where a checkpoint names both scales."""

    def of(scale: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0

    return of(mscale) / of(mscale_all_dim) if mscale and mscale_all_dim else of(1.0)
