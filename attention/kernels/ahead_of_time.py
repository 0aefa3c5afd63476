"""The kernels compiled for a GPU that is not there: registers, spills, shared memory, widths of loads.

`python -m mnemos.attention.kernels.ahead_of_time` prints a table for sm_80 and sm_90. Needs Triton (Linux on
x86-64) and the `ptxas` that its wheel holds, no device.
"""

import importlib
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

CAPABILITIES = (80, 90)
# Bits, head_dim and GQA group: the default model's, Qwen3's, and the odd ones.
_SPLIT_SHAPES = (
    (4, 64, 3), (4, 80, 1), (4, 96, 4), (4, 128, 4), (4, 256, 16),
    (8, 64, 3), (8, 96, 4), (8, 128, 4), (16, 64, 3), (16, 128, 4), (16, 256, 8),
)  # fmt: skip
_WIDE = re.compile(
    r"ld\.global[\w.:]*\.v4\.b32|ld\.global[\w.:]*\.v2\.b64|cp\.async\.cg\.shared\.global[^;]*0x10"
)
_NARROW_COPY = re.compile(r"cp\.async\.ca\.shared\.global[^;]*?, 0x[48],")
_WIDE_STORE = re.compile(r"st\.global[\w.:]*\.v4\.b32|st\.global[\w.:]*\.v2\.b64")


@dataclass(frozen=True, slots=True)
class Variant:
    """One kernel with the types and constants that it is compiled for."""

    module: str
    kernel: str
    types: str  # of its arguments before the constants, in order; "i32:16" a multiple of 16, "i32:1" a 1
    constants: dict[str, Any]
    warps: int = 4
    stages: int = 3
    must_load_wide: bool = True
    small_copies: int = 0  # asynchronous ones of 4 bytes that it may have: of a number a row

    @property
    def name(self) -> str:
        shown = [str(value) for value in self.constants.values()]
        return f"{self.kernel}[{self.types.split()[0][1:]}; {', '.join(shown)}]"


@dataclass(frozen=True, slots=True)
class Compiled:
    """What the compiler reports."""

    registers: int  # a thread
    spilled_bytes: int  # stores and loads, a thread
    shared_bytes: int  # a block
    wide_loads: int  # instructions of 16 bytes a thread
    wide_stores: int
    narrow_copies: int  # asynchronous copies to shared memory of 4 or 8 bytes a thread
    ptx: str = field(repr=False)

    def loads_wide(self, small_copies: int = 0) -> bool:
        """Whether what goes through shared memory comes 16 bytes at a time, and something does."""
        return self.wide_loads > 0 and self.narrow_copies <= small_copies


def variants() -> list[Variant]:
    """Every kernel in the dtypes and shapes that it has constants for."""
    return [
        *_split_variants(), *_merge_variants(), *_route_variants(), *_page_variants(), *_training_variants()
    ]  # fmt: skip


def ones(variant: Variant) -> Variant:
    """The variant with 1 for every integer argument, which Triton compiles apart, as constants."""
    return replace(variant, types=re.sub(r"(?<!\S)i32(?!\S)", "i32:1", variant.types))


def compile_variant(variant: Variant, capability: int) -> Compiled:
    """Compile for one capability (80 or 90). Raises what Triton raises; RuntimeError when ptxas fails."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.backends.nvidia.compiler import get_ptxas
    from triton.compiler import ASTSource

    kernel = getattr(importlib.import_module(f"mnemos.attention.kernels.{variant.module}"), variant.kernel)
    types = [kind.partition(":")[0] for kind in variant.types.split()]
    names = kernel.arg_names
    signature = dict(zip(names, types, strict=False)) | dict.fromkeys(names[len(types) :], "constexpr")
    constants = {(names.index(name),): value for name, value in variant.constants.items()}
    for index, kind in enumerate(variant.types.split()):
        if kind == "i32:1":
            signature[names[index]] = "constexpr"
            constants[(index,)] = 1
    multiples = [kind.startswith("*") or kind.endswith(":16") for kind in variant.types.split()]
    aligned = {(i,): [["tt.divisibility", 16]] for i, is_multiple in enumerate(multiples) if is_multiple}
    compiled = triton.compile(
        ASTSource(kernel, signature, constants, aligned),
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": variant.warps, "num_stages": variant.stages},
    )
    ptx = compiled.asm["ptx"]
    registers, spilled = _assemble(ptx, get_ptxas(capability).path)
    return Compiled(
        registers,
        spilled,
        compiled.metadata.shared,
        len(_WIDE.findall(ptx)),
        len(_WIDE_STORE.findall(ptx)),
        len(_NARROW_COPY.findall(ptx)),
        ptx,
    )


def _assemble(ptx: str, ptxas: str) -> tuple[int, int]:
    """Registers a thread, and bytes spilled."""
    found = re.search(r"^\.target (\w+)", ptx, re.MULTILINE)
    if found is None:
        raise RuntimeError("PTX without a target")
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "kernel.ptx")
        source.write_text(ptx)
        ran = subprocess.run(
            [ptxas, "-v", f"--gpu-name={found[1]}", source, "-o", Path(folder, "kernel.cubin")],
            capture_output=True,
            text=True,
        )
    if ran.returncode:
        raise RuntimeError(f"ptxas refused a kernel: {ran.stderr}")
    registers = re.search(r"Used (\d+) registers", ran.stderr)
    spills = re.findall(r"(\d+) bytes spill (?:stores|loads)", ran.stderr)
    if registers is None or not spills:
        raise RuntimeError(f"ptxas did not report registers and spills: {ran.stderr}")
    return int(registers[1]), sum(map(int, spills))


def _split_variants() -> list[Variant]:
    from mnemos.attention.kernels.split_kv_attention import shape_constants, warps_of

    types = "*{q} *u8 *{halves} *i32 *i32 *fp32 *fp32 *fp32 i32 fp32"
    found = []
    for bits, dim, group in _SPLIT_SHAPES:
        for q in ("fp16", "bf16"):
            constants = {"GROUP": group, "HAS_BIAS": True, **shape_constants(bits, dim)}
            found.append(
                Variant(
                    "split_kv_attention", "attend_splits",
                    types.format(q=q, halves=q if bits == 16 else "fp16"),
                    constants, warps_of(bits, constants["PADDED"]),
                    # Rows of 40 bytes (int4 of 80 channels) begin on boundaries of 8.
                    must_load_wide=dim * bits // 8 % 16 == 0,
                )
            )  # fmt: skip
    for dim in (64, 96, 128, 256):
        constants = {"DIM": dim, "PADDED": _power_of_two(dim), "BLOCK": 16}
        types_of_join = "*fp32 *fp32 *i32 *fp32 *fp32 i32"
        found.append(Variant("split_kv_attention", "join_splits", types_of_join, constants))
    return found


def _merge_variants() -> list[Variant]:
    return [
        Variant(
            "lse_merge", "merge_rows", f"*fp32 *fp32 *{working} *fp32 *{working} i32 fp32",
            {"DIM": 128, "PADDED": 128, "BLOCK": 4},
        )
        for working in ("fp16", "bf16")
    ] + _working_variants()  # fmt: skip


def _working_variants() -> list[Variant]:
    from mnemos.attention.kernels.working_attention import block_of

    found = []
    for kind, dim, group in (
        ("bf16", 64, 3),
        ("bf16", 128, 4),
        ("fp16", 128, 4),
        ("bf16", 256, 8),
        ("fp32", 64, 3),
        ("fp32", 128, 4),
    ):
        padded = _power_of_two(dim)
        block = block_of(padded, 4 if kind == "fp32" else 2)
        shared = {"GROUP": group, "DIM": dim, "PADDED": padded, "SPLITS": 32}
        types = f"*{kind} *i64 *fp32 *fp32 i32 i32 i32 fp32"
        for is_local in (False, True) if kind == "bf16" else (True,):
            constants = shared | {"IS_LOCAL": is_local, "BLOCK": block}
            found.append(Variant("working_attention", "attend_working", types, constants, stages=2))
        if kind != "bf16":
            continue
        types = f"*fp32 *fp32 *fp32 *fp32 *fp32 *{kind} i32 i32"
        constants = {"DIM": dim, "PADDED": padded, "SPLITS": 32, "HAS_MEMORY": True}
        found.append(Variant("working_attention", "join_working", types, constants))
        types = f"*{kind} *fp32 *i32 *fp32 *i64 *{kind} i32 i32 i32 i32 fp32"
        constants = {"DIM": dim, "HALF": _power_of_two(dim // 2), "HAS_NORM": True}
        found.append(Variant("place_rows", "place_heads", types, constants, 1, must_load_wide=False))
    return found


def _route_variants() -> list[Variant]:
    from mnemos.attention.kernels import route_mass, route_msa

    found = []
    for kind in ("fp16", "bf16"):
        for dim in (64, 128):
            constants = {"DIM": dim, "PADDED": dim, "ROWS": 64, "TOKENS": route_mass.TOKENS}
            found.append(
                Variant(
                    "route_mass", "segment_lse", f"*{kind} *i8 *fp16 *i64 *i32 *fp32 i32 i32 i32 fp32",
                    constants | {"SEGMENTS": route_mass.SEGMENTS},
                )
            )  # fmt: skip
        constants = {"CHUNKS": route_msa.CHUNKS, "CHANNELS": route_msa.CHANNELS, "ROWS": 64}
        types = f"*{kind} *{kind} *fp32 i32 i32 i32:16"
        found.append(Variant("route_msa", "score_chunks", types, constants, stages=4))
    return found


def _page_variants() -> list[Variant]:
    from mnemos.attention.kernels.page_gather import BLOCK, WARPS
    from mnemos.attention.kernels.quantize_pack import TOKENS

    found = [Variant("page_gather", "copy_pages", "*i32 *i64 *i32", {"BLOCK": BLOCK}, WARPS)]
    for kind in ("fp16", "bf16"):
        for bits, dim in ((4, 128), (8, 64)):
            constants = {"DIM": dim, "PADDED": dim // 2, "BITS": bits, "V_GROUP": 32, "TOKENS": TOKENS}
            types = f"*{kind} *{kind} *u8 *fp16 *u8 *fp16 i32 i32"
            found.append(Variant("quantize_pack", "pack_group", types, constants))
    return found


def _training_variants() -> list[Variant]:
    """Blocks of 8 keys: documents of 512 tokens pooled by 64."""
    import torch

    from mnemos.attention.kernels.block_sparse import chunk_of, tiling

    lists = "*{x} *{x} *{x} *u8 *{x} *{x} *u8 *i32 *i32"
    found = []
    for dim in (64, 80, 96, 128, 256):
        for kind, dtype in (("fp16", torch.float16), ("bf16", torch.bfloat16)):
            tiles = tiling(dtype, dim)
            shared = {"GROUP": 4, "DIM": dim, "PADDED": _power_of_two(dim)}
            listed = {"ROWS": tiles.rows, "KEYS": tiles.keys, "CHUNK": chunk_of(8, tiles.keys)}
            listed |= {"HAS_BLOCKS": True, "PRECISION": "ieee"}
            sizes = " i32 i32 i32 i32 i32 i32"
            # Small copies are of the log-sum-exps and sums of a row, or of a list.
            parts = (
                ("block_sparse", "attend_blocks", f"{lists} *{{x}} *fp32{sizes} fp32", listed, tiles.warps),
                (
                    "block_sparse_backward", "grad_queries",
                    f"{lists} *{{x}} *{{x}} *fp32 *fp32 *{{x}}{sizes} fp32 fp32", listed, tiles.warps,
                ),
                (
                    "block_sparse_backward", "grad_own",
                    "*{x} *{x} *{x} *u8 *{x} *fp32 *fp32 *{x} *{x} i32 i32 i32 fp32 fp32",
                    {"ROWS": tiles.own_rows, "KEYS": tiles.own_keys, "PRECISION": "ieee"}, tiles.own_warps,
                ),
                (
                    "block_sparse_backward", "grad_blocks",
                    "*{x} *{x} *{x} *i64 *u8 *i64 *i64 *{x} *fp32 *fp32 *{x} *{x} "
                    "i32 i32 i32 i32 i32 fp32 fp32",
                    {"ROWS": tiles.rows, "KEYS": 16, "PRECISION": "ieee"}, 4,
                ),
            )  # fmt: skip
            found += [
                Variant(
                    module, kernel, types.format(x=kind), shared | sizes_of, warps, tiles.stages,
                    small_copies=4 if kernel in ("grad_own", "grad_blocks") else 2,
                )
                for module, kernel, types, sizes_of, warps in parts
            ]  # fmt: skip
    return found


def _power_of_two(size: int) -> int:
    return 1 << (size - 1).bit_length()


def main() -> int:
    """Print the table; 1 when a variant does not compile, spills, or loads narrowly."""
    failed = False
    print(
        f"{'kernel':<58} {'sm':>3} {'registers':>9} {'spilled':>7} {'shared':>7} {'16-byte ld':>10} {'st':>3}"
    )
    for variant in variants():
        for capability in CAPABILITIES:
            made = compile_variant(variant, capability)
            bad = made.spilled_bytes > 0 or (
                variant.must_load_wide and not made.loads_wide(variant.small_copies)
            )
            failed = failed or bad
            print(
                f"{variant.name:<58} {capability:>3} {made.registers:>9} {made.spilled_bytes:>7} "
                f"{made.shared_bytes:>7} {made.wide_loads:>10} {made.wide_stores:>3}{' !' if bad else ''}",
                flush=True,
            )
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
