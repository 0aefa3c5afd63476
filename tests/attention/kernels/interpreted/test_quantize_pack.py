"""quantize_pack in Triton's interpreter: the bytes of `attention.quantize`, not merely values near them."""

import pytest
import torch

from mnemos.attention.kernels.dispatch import forced, quantize_pack


@pytest.mark.parametrize(
    ("bits", "tokens", "dim"),
    [
        (4, 1, 64),
        (4, 63, 64),
        (4, 65, 96),
        (4, 47, 80),
        (4, 33, 128),
        (4, 31, 256),
        (8, 63, 64),
        (8, 17, 80),
        (8, 97, 96),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_equals_quantize_bit_for_bit(
    bits: int, tokens: int, dim: int, dtype: torch.dtype, poisoned: None
) -> None:
    torch.manual_seed(tokens)
    k = (torch.randn(2, 1, tokens, dim) * torch.logspace(-3, 2, dim)).to(dtype)
    v = torch.randn(2, 1, tokens, dim).to(dtype)
    k[..., 3], v[:, :, 0] = 0.25, -1.0  # groups without a range
    results = []
    for path in ("triton", "naive"):
        with forced(path):
            results.append(quantize_pack(k, v, bits))
    for name, ours, twin in zip(("k", "k scales", "v", "v scales"), *results, strict=True):
        assert ours.shape == twin.shape, name
        assert torch.equal(ours.view(torch.uint8), twin.view(torch.uint8)), name
