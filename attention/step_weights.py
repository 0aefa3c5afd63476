"""Weight matrices as the one-token step multiplies them: plain, int8 or int4.

At one token a product is bound by the bytes of its weights, so fewer bits are faster. Activations keep their
width: int8 products of FBGEMM take 7-bit activations, which alone would cost 0.06 of loss per token; here
they go in as two rows, the value and 126 times what rounding it left over, so that 13 bits count. A second
row costs next to nothing.

PyTorch's own kernels do the products. A kernel that this build or CPU hasn't is never called: `pack` falls
back to the next wider format.
"""

import warnings
from collections.abc import Callable
from threading import Lock
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from mnemos.errors import UsageError

StepFormat = Literal["plain", "int8", "int4"]
StepWeight = Callable[[Tensor], Tensor]  # `[1, in]` to `[1, out]`, both in the format's own dtype
INT4_GROUP = 32  # inputs that share a scale and a zero: Q4_0 and Q4_1 files lose nothing by it
_LEVELS = 63  # of an activation on either side of zero: 7 bits, so that no 16-bit sum saturates
_packing = Lock()  # the engine is the process's own
_FINER = 2.0 * _LEVELS  # what half a level is stretched by to fill them again


class PlainWeight:
    """`W [out, in]` in a floating-point dtype."""

    __slots__ = ("weight",)

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight

    def __call__(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight)


class Int8Weight:
    """Weights in int8 with a scale per output, activations in 13 bits; fp32 in and out.

    Packed at its first product: who only encodes and routes never waits for it.
    """

    __slots__ = ("_packed", "_weight")

    def __init__(self, weight: Tensor) -> None:
        self._weight: Tensor | None = weight
        self._packed: Any = None

    def product(self, x: NDArray[np.float32], factor: float = 1.0) -> NDArray[np.float32]:
        """`W x` times `factor`, `[out]`, of `x [in]`. NaN where an activation is not finite."""
        packed = self._pack() if self._packed is None else self._packed
        level = float(max(x.max(), -x.min())) / _LEVELS or 1.0
        rows = np.empty((2, x.shape[0]), np.float32)
        coarse, rest = rows
        np.multiply(x, np.float32(1.0 / level), out=rest)
        np.rint(
            rest, out=coarse
        )  # whole numbers: the product's own rounding, at an offset, sees ties otherwise
        np.subtract(rest, coarse, out=rest)
        rest *= _FINER
        both = _int8_product(torch.from_numpy(rows), 1.0, _LEVELS + 1, packed).numpy()  # [2, out]
        out: NDArray[np.float32] = both[1]
        out *= np.float32(1.0 / _FINER)
        out += both[0]
        out *= np.float32(level * factor)
        return out

    def __call__(self, x: Tensor) -> Tensor:
        with np.errstate(all="ignore"):
            return torch.from_numpy(self.product(x[0].numpy()))[None]

    def products(self, x: Tensor) -> Tensor:
        """As `product`, of several rows `[rows, in]`, each with its own levels: `[rows, out]`."""
        packed = self._pack() if self._packed is None else self._packed
        count, wide = len(x), x.float()
        level = wide.abs().amax(dim=1, keepdim=True).div_(_LEVELS)  # [rows, 1]
        level.masked_fill_(level == 0, 1.0)
        rows = torch.empty(2 * count, wide.shape[1])
        coarse, rest = rows[:count], rows[count:]
        torch.div(wide, level, out=rest)
        torch.round(rest, out=coarse)
        rest.sub_(coarse).mul_(_FINER)
        both: Tensor = _int8_product(rows, 1.0, _LEVELS + 1, packed)
        return both[count:].mul_(1.0 / _FINER).add_(both[:count]).mul_(level)

    def _pack(self) -> Any:
        with _packing:
            if self._weight is not None:  # else another thread has just packed it
                self._packed = _fbgemm_packed(self._weight)
                self._weight = None
        return self._packed


def _fbgemm_packed(weight: Tensor) -> Any:
    codes, scales = quantize_rows(weight)
    zeros = torch.zeros(len(scales), dtype=torch.long)
    before = torch.backends.quantized.engine
    with warnings.catch_warnings(), torch.inference_mode(False):
        warnings.simplefilter("ignore", UserWarning)  # such tensors are deprecated
        torch.backends.quantized.engine = "fbgemm"
        try:
            made = torch._make_per_channel_quantized_tensor(codes, scales.double(), zeros, 0)
            return torch.ops.quantized.linear_prepack(made, None)
        finally:
            torch.backends.quantized.engine = before


class Int4Weight:
    """Weights in int4 with scale and zero per group of 32 inputs; bf16 in and out."""

    __slots__ = ("_packed", "_scales")

    def __init__(self, weight: Tensor) -> None:
        codes, scales = quantize_groups(weight)
        self._packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1)
        self._scales = scales

    def __call__(self, x: Tensor) -> Tensor:
        product: Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(
            x, self._packed, INT4_GROUP, self._scales
        )
        return product


def quantize_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """`weight [out, in]` as int8 codes of the same shape and fp32 scales `[out]`."""
    wide = weight.float()
    low, high = torch.aminmax(wide, dim=1)
    scales = torch.maximum(high, -low).div_(127)
    scales.masked_fill_(scales == 0, 1.0)
    return torch.mul(wide, scales.reciprocal()[:, None]).round_().to(torch.int8), scales


def quantize_groups(weight: Tensor) -> tuple[Tensor, Tensor]:
    """`weight [out, in]` as int32 codes of 0 to 15 and bf16 `[in / 32, out, 2]`: the scale, and the value of
    code 8.
    """
    out, inner = weight.shape
    grouped = weight.float().view(out, inner // INT4_GROUP, INT4_GROUP)
    low, high = torch.aminmax(grouped, dim=-1)
    scales = (high - low).div_(15)
    scales.masked_fill_(scales == 0, 1.0)
    codes = ((grouped - low[..., None]) / scales[..., None]).round_().clamp_(0, 15).int().view(out, inner)
    pairs = torch.stack((scales, low + 8 * scales), dim=-1).transpose(0, 1)
    return codes, pairs.contiguous().to(torch.bfloat16)


def has_int8() -> bool:
    """Whether this build of PyTorch has FBGEMM and its product with a given scale."""
    return "fbgemm" in torch.backends.quantized.supported_engines and _int8_product is not None


def has_int4() -> bool:
    return hasattr(torch.ops.aten, "_weight_int4pack_mm_for_cpu")


def pick_format(name: str) -> StepFormat:
    """The format for a name: `auto` is int8 where there are kernels for it.

    Raises UsageError for an unknown name, or when there are no kernels for the format asked for.
    """
    available: dict[str, bool] = {"plain": True, "int8": has_int8(), "int4": has_int4() and has_int8()}
    if name == "auto":
        return "int8" if available["int8"] else "plain"
    if name == "bf16":
        return "plain"
    if name not in available:
        raise UsageError(f"unknown decode weights '{name}'; use auto, bf16, int8 or int4")
    if not available[name]:
        raise UsageError(f"this build of PyTorch has no {name} kernels for this CPU; use auto or bf16")
    return "int4" if name == "int4" else "int8"


def step_dtype(step_format: StepFormat, plain: torch.dtype) -> torch.dtype:
    """What the vectors of a step are in."""
    return {"plain": plain, "int8": torch.float32, "int4": torch.bfloat16}[step_format]


def fits_int4(out: int, inner: int) -> bool:
    """Whether the int4 kernel takes a matrix of that shape."""
    return out % 16 == 0 and inner % INT4_GROUP == 0


def _find_int8_product() -> Any:
    product = getattr(torch.ops.quantized, "linear_with_input_q_dq_qweight_dq_output_fp32", None)
    return None if product is None else product.default


_int8_product = _find_int8_product()
