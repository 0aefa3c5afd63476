"""Token keys of many memories side by side, as `route_mass` reads them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mnemos.attention.memory_codec import _ROUTE_HEAD, _ROUTE_MAGIC, _Reader


@dataclass(frozen=True, slots=True)
class SegmentKeys:
    """int8 token keys in segments (spans of memories), with the scales of each memory."""

    keys: Tensor  # [tokens, key_heads, head_dim], int8
    scales: Tensor  # [memories, key_heads, head_dim], fp16
    starts: Tensor  # [segments + 1], int64, in tokens
    owner: Tensor  # [segments], int32: the memory of each

    @property
    def segments(self) -> int:
        return len(self.owner)


def segments_of_payloads(payloads: Sequence[bytes], device: torch.device | str = "cpu") -> SegmentKeys:
    """The keys of routing payloads, in their order, as they are: nothing is decoded.

    Raises ValueError when there are none or they differ in shape.
    """
    if not payloads:
        raise ValueError("routing needs at least one routing payload, and was given an empty list")
    keys: list[Tensor] = []
    scales: list[Tensor] = []
    sizes: list[int] = []
    owner: list[int] = []
    for index, payload in enumerate(payloads):
        magic, heads, dim, _, count = _ROUTE_HEAD.unpack_from(payload)
        if magic != _ROUTE_MAGIC:
            raise ValueError("a routing record has an unknown format")
        reader = _Reader(payload, _ROUTE_HEAD.size)
        spans = [int(size) for size in reader.take((count,), torch.int32)]
        keys.append(reader.take((sum(spans), heads, dim), torch.int8))
        scales.append(reader.take((heads, dim), torch.float16))
        if keys[-1].shape[1:] != keys[0].shape[1:]:
            raise ValueError("routing records of one search differ in heads or channels; encode them again")
        sizes += spans
        owner += [index] * count
    starts = torch.zeros(len(sizes) + 1, dtype=torch.int64)
    starts[1:] = torch.tensor(sizes).cumsum(0)
    tensors = (torch.cat(keys), torch.stack(scales), starts, torch.tensor(owner, dtype=torch.int32))
    return SegmentKeys(*(tensor.to(device) for tensor in tensors))


def segment_mass(lse: Tensor, rows: Sequence[int]) -> Tensor:
    """Softmax mass of each segment, `[segments]`: the mean over the query rows of all key heads.

    `lse [key_heads, rows, segments]` is `route_mass`'s, of which each key head has its first `rows`.
    """
    mass = torch.zeros(lse.shape[-1], device=lse.device)
    for head, count in enumerate(rows):
        mass += torch.softmax(lse[head, :count], dim=-1).sum(dim=0)
    return mass / sum(rows)
