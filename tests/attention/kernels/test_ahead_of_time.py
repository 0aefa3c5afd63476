"""Every kernel compiles for sm_80 and sm_90 without a GPU, spills nothing and loads 16 bytes at a time."""

import os

import pytest

pytest.importorskip("triton", reason="Triton has wheels for Linux on x86-64 only")
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")

from mnemos.attention.kernels.ahead_of_time import CAPABILITIES, Variant, compile_variant, ones, variants

# At 4 warps a block 168 leave room for three blocks on a multiprocessor, 232 for two.
MOST_REGISTERS = {"segment_lse": 200, "pack_group": 200}
MOST_REGISTERS_OF_SPLITS = {256: 232}  # by head_dim
MOST_SHARED_BYTES = 80 * 1024  # a block, so that two fit on an sm_80
COMMON_SPLITS = ((4, 64), (4, 128), (8, 128), (16, 128))  # bits and head_dim


def cases() -> list[object]:
    found = []
    for variant in variants():
        shape = (variant.constants.get("BITS"), variant.constants.get("DIM"))
        common = variant.kernel != "attend_splits" or shape in COMMON_SPLITS
        marks = () if common else (pytest.mark.slow,)
        found += [
            pytest.param(variant, cap, id=f"{variant.name} sm_{cap}", marks=marks) for cap in CAPABILITIES
        ]
    return found


@pytest.mark.parametrize(("variant", "capability"), cases())
def test_compiles_within_limits(variant: Variant, capability: int) -> None:
    made = compile_variant(variant, capability)
    most = MOST_REGISTERS.get(variant.kernel, 168)
    if variant.kernel == "attend_splits":
        most = MOST_REGISTERS_OF_SPLITS.get(variant.constants["DIM"], 168)
    assert made.spilled_bytes == 0
    assert 0 < made.registers <= most
    assert made.shared_bytes <= MOST_SHARED_BYTES
    if variant.must_load_wide:
        assert made.loads_wide
    if variant.kernel == "attend_working":  # what is found by address comes as wide
        assert made.wide_loads >= 16
    if variant.kernel == "copy_pages":
        assert made.wide_stores == made.wide_loads


def test_arguments_of_one_compile() -> None:
    """One layer, one KV head, one token: Triton makes constants of them."""
    for variant in {variant.kernel: ones(variant) for variant in variants()}.values():
        assert compile_variant(variant, 90).spilled_bytes == 0


def test_every_kernel_is_among_the_variants() -> None:
    assert {variant.module for variant in variants()} == {
        "split_kv_attention", "lse_merge", "route_mass", "route_msa", "page_gather", "quantize_pack",
        "place_rows", "working_attention",
    }  # fmt: skip
