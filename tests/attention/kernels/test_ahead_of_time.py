"""Every kernel compiles for sm_80 and sm_90 without a GPU, spills nothing and loads 16 bytes at a time."""

import os
import re

import pytest

pytest.importorskip("triton", reason="Triton has wheels for Linux on x86-64 only")
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")

from mnemos.attention.kernels.ahead_of_time import CAPABILITIES, Variant, compile_variant, ones, variants

# At 4 warps a block 168 leave room for three blocks on a multiprocessor, 232 for two.
MOST_REGISTERS = {"segment_lse": 200, "pack_group": 200}
MOST_REGISTERS_OF_SPLITS = {256: 232}  # by head_dim
MOST_REGISTERS_OF_TRAINING = 255  # its products bind, not how many blocks there are
MOST_SHARED_BYTES = 80 * 1024  # a block, so that two fit on an sm_80
MOST_SHARED_BYTES_OF_WIDE_TRAINING = 160 * 1024  # head_dim 256: one block
COMMON_SPLITS = ((4, 64), (4, 128), (8, 128), (16, 128))  # bits and head_dim
TRAINING = ("block_sparse", "block_sparse_backward")


def is_common(variant: Variant, capability: int) -> bool:
    """Whether it is compiled at every run of the tests; the rest is for `make test-all`."""
    shape = (variant.constants.get("BITS"), variant.constants.get("DIM"))
    if variant.module in TRAINING:
        return shape[1] == 128 and ("*bf16" in variant.types) == (capability == 90)
    return variant.kernel != "attend_splits" or shape in COMMON_SPLITS


def cases() -> list[object]:
    return [
        pytest.param(
            variant,
            capability,
            id=f"{variant.name} sm_{capability}",
            marks=() if is_common(variant, capability) else (pytest.mark.slow,),
        )
        for variant in variants()
        for capability in CAPABILITIES
    ]


@pytest.mark.parametrize(("variant", "capability"), cases())
def test_compiles_within_limits(variant: Variant, capability: int) -> None:
    made = compile_variant(variant, capability)
    most = MOST_REGISTERS.get(variant.kernel, 168)
    if variant.kernel == "attend_splits":
        most = MOST_REGISTERS_OF_SPLITS.get(variant.constants["DIM"], 168)
    shared = MOST_SHARED_BYTES
    if variant.module in TRAINING:
        most = MOST_REGISTERS_OF_TRAINING
        if variant.constants["DIM"] == 256:
            shared = MOST_SHARED_BYTES_OF_WIDE_TRAINING
        assert not re.search(r"ld\.global[\w.:]*\.b16", made.ptx)  # no number of q, k or v alone
    assert made.spilled_bytes == 0
    assert 0 < made.registers <= most
    assert made.shared_bytes <= shared
    if variant.must_load_wide:
        assert made.loads_wide(variant.small_copies)
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
        "block_sparse", "block_sparse_backward",
    }  # fmt: skip
