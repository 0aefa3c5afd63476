"""Padding moved behind the tokens: a causal pattern then never sees it, and blocks hold real tokens only."""

from typing import NamedTuple

import torch
from torch import Tensor

from mnemos.attention.patterns.mixer import PADDING


class Packed(NamedTuple):
    """Tokens that are there first, in their order, then padding."""

    x: Tensor  # [batch, tokens, dim]
    positions: Tensor  # [batch, tokens]
    order: Tensor | None  # [batch, tokens]: where each token was; None when nothing moved

    def restore(self, y: Tensor) -> Tensor:
        """`y [batch, tokens, dim]` in the order that the tokens came in."""
        if self.order is None:
            return y
        return torch.empty_like(y).scatter(1, self.order[..., None].expand_as(y), y)


def pack(x: Tensor, positions: Tensor) -> Packed:
    """x and positions with padding last. Copies nothing when it is last already."""
    absent = positions == PADDING
    if not bool((absent[:, :-1] & ~absent[:, 1:]).any()):
        return Packed(x, positions, None)
    order = absent.to(torch.uint8).argsort(dim=1, stable=True)
    return Packed(
        x.gather(1, order[..., None].expand_as(x)),
        positions.gather(1, order),
        order,
    )
