"""A weight matrix that keeps the form each shape of work runs fastest in.

Prefill (many rows) is bound by arithmetic and wants the dtype the CPU multiplies fastest; decode (one row)
is bound by reading the weights and wants them small.
"""

import torch
from torch import Tensor
from torch.nn import functional

from mnemos.attention.step_weights import (
    Int4Weight,
    Int8Weight,
    PlainWeight,
    StepFormat,
    StepWeight,
    fits_int4,
    step_dtype,
)


class Projection:
    """`y = x W^T` for `W [out, in]`, without bias.

    `step` is the product for one row `[1, in]`, in and out in `step_dtype`; `int8` the same thing where the
    format is int8.
    """

    __slots__ = ("_int8", "step", "step_dtype", "weight")

    def __init__(
        self,
        weight: Tensor,
        dtype: torch.dtype,
        decode_dtype: torch.dtype,
        step_format: StepFormat = "plain",
    ) -> None:
        self.weight = weight.to(dtype).contiguous()
        self.step_dtype = step_dtype(step_format, decode_dtype)
        self.step: StepWeight
        self._int8: Int8Weight | None = None
        if step_format == "int8":
            self.step = self._int8 = Int8Weight(self.weight)
        elif step_format == "int4" and fits_int4(*weight.shape):
            self.step = Int4Weight(weight)
        elif self.step_dtype == dtype:
            self.step = PlainWeight(self.weight)
        else:
            self.step = PlainWeight(weight.to(self.step_dtype).contiguous())

    @property
    def int8(self) -> Int8Weight:
        if self._int8 is None:
            raise ValueError("this projection is not kept in int8")
        return self._int8

    def __call__(self, x: Tensor) -> Tensor:
        """`x [tokens, in]` to `[tokens, out]`, in the dtype of `x`."""
        return functional.linear(x, self.weight)


def fast_dtype() -> torch.dtype:
    """bf16 where the CPU multiplies bf16 matrices in hardware, otherwise fp32."""
    for probe in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"):
        supported = getattr(torch.cpu, probe, None)
        if supported is not None and supported():
            return torch.bfloat16
    return torch.float32
