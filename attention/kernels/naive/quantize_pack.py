"""Keys and values to codes and scales, by the product's own functions."""

from typing import Literal

from torch import Tensor

from mnemos.attention.quantize import pack_nibbles, quantize_keys, quantize_values


def quantize_pack(k: Tensor, v: Tensor, bits: Literal[4, 8]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As `mnemos.attention.kernels.dispatch.quantize_pack`."""
    (k_codes, k_scales), (v_codes, v_scales) = quantize_keys(k, bits), quantize_values(v, bits)
    if bits == 4:
        k_codes, v_codes = pack_nibbles(k_codes), pack_nibbles(v_codes)
    return k_codes, k_scales, v_codes, v_scales
