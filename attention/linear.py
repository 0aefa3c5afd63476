"""A weight matrix that keeps the form each shape of work runs fastest in.

Prefill (many rows) is bound by arithmetic and wants the dtype the CPU multiplies fastest; decode (one row)
is bound by reading the weights and wants them small. On a CPU without fast bf16 products, a bf16 copy of an
fp32 weight halves the bytes of a decode step.
"""

import torch
from torch import Tensor
from torch.nn import functional


class Projection:
    """`y = x W^T` for `W [out, in]`, without bias."""

    __slots__ = ("decode_weight", "weight")

    def __init__(self, weight: Tensor, dtype: torch.dtype, decode_dtype: torch.dtype) -> None:
        self.weight = weight.to(dtype).contiguous()
        self.decode_weight = self.weight if decode_dtype == dtype else weight.to(decode_dtype).contiguous()

    def __call__(self, x: Tensor) -> Tensor:
        """`x [tokens, in]` to `[tokens, out]`, in the dtype of `x`."""
        if x.shape[0] == 1 and self.decode_weight is not self.weight:
            return functional.linear(x.to(self.decode_weight.dtype), self.decode_weight).to(x.dtype)
        return functional.linear(x, self.weight)


def fast_dtype() -> torch.dtype:
    """bf16 where the CPU multiplies bf16 matrices in hardware, otherwise fp32."""
    for probe in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"):
        supported = getattr(torch.cpu, probe, None)
        if supported is not None and supported():
            return torch.bfloat16
    return torch.float32
