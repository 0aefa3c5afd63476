"""Padding moved behind the tokens, and back."""

import torch

from mnemos.attention.patterns.mixer import PADDING
from mnemos.attention.patterns.packing import pack


def test_tokens_keep_their_order_and_find_their_way_back() -> None:
    positions = torch.tensor([[PADDING, 0, PADDING, 1, 2], [0, 1, 2, 3, PADDING], [PADDING] * 5])
    x = torch.arange(15.0).view(3, 5, 1)
    packed = pack(x, positions)
    assert packed.positions[0].tolist() == [0, 1, 2, PADDING, PADDING]
    assert packed.x[0, :3, 0].tolist() == [1.0, 3.0, 4.0]
    assert torch.equal(packed.restore(packed.x), x)


def test_nothing_is_copied_where_padding_is_last_already() -> None:
    positions = torch.tensor([[0, 1, PADDING], [PADDING] * 3])
    x = torch.randn(2, 3, 4)
    packed = pack(x, positions)
    assert packed.x is x
    assert packed.restore(x) is x
