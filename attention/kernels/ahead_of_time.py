"""The kernels compiled for a GPU that is not there: registers, spills, shared memory, widths of loads.

`python -m mnemos.attention.kernels.ahead_of_time` prints a table for sm_80 and sm_90. Needs Triton (Linux on
x86-64) and the `ptxas` that its wheel holds, no device.
"""

import importlib
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CAPABILITIES = (80, 90)
_WIDE = re.compile(
    r"ld\.global[\w.:]*\.v4\.b32|ld\.global[\w.:]*\.v2\.b64|cp\.async\.cg\.shared\.global[^;]*0x10"
)
_WIDE_STORE = re.compile(r"st\.global[\w.:]*\.v4\.b32|st\.global[\w.:]*\.v2\.b64")


@dataclass(frozen=True, slots=True)
class Variant:
    """One kernel with the types and constants that it is compiled for."""

    module: str
    kernel: str
    types: str  # of its arguments before the constants, in order; "i32:16" is a multiple of 16
    constants: dict[str, Any]
    warps: int = 4
    stages: int = 3
    must_load_wide: bool = True

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
    ptx: str = field(repr=False)


def variants() -> list[Variant]:
    """Every kernel in the dtypes and shapes that it has constants for."""
    return [*_split_variants()]


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

    types = "*{q} *u8 *{halves} *i64 *i32 *fp32 *fp32 *fp32 i32 i32 i32 fp32"
    found = []
    shapes = [(4, 64, 3), (4, 80, 1), (4, 96, 4), (4, 128, 4), (4, 256, 16), (8, 64, 3), (8, 80, 1)]
    shapes += [(8, 96, 4), (8, 128, 4), (8, 256, 16), (16, 64, 3), (16, 80, 1), (16, 128, 4), (16, 256, 8)]
    for bits, dim, group in shapes:
        for q in ("fp16", "bf16"):
            constants = {"GROUP": group, "HAS_BIAS": True, **shape_constants(bits, dim)}
            # Rows of 40 bytes (int4 of 80 channels) begin on boundaries of 8.
            wide = dim * bits // 8 % 16 == 0
            found.append(
                Variant(
                    "split_kv_attention", "attend_splits",
                    types.format(q=q, halves=q if bits == 16 else "fp16"),
                    constants, warps_of(bits, dim), must_load_wide=wide,
                )
            )  # fmt: skip
    for dim in (64, 80, 96, 128, 256):
        padded = 1 << (dim - 1).bit_length()
        constants = {"DIM": dim, "PADDED": padded, "BLOCK": 16}
        found.append(
            Variant("split_kv_attention", "join_splits", "*fp32 *fp32 *i32 *fp32 *fp32 i32", constants)
        )
    return found


def main() -> int:
    """Print the table; 1 when a variant does not compile, spills, or loads narrowly."""
    failed = False
    print(f"{'kernel':<58} {'sm':>3} {'registers':>9} {'spilled':>7} {'shared':>7} {'16-byte ld':>10} {'st':>3}")
    for variant in variants():
        for capability in CAPABILITIES:
            made = compile_variant(variant, capability)
            bad = made.spilled_bytes > 0 or (variant.must_load_wide and not made.wide_loads)
            failed = failed or bad
            print(
                f"{variant.name:<58} {capability:>3} {made.registers:>9} {made.spilled_bytes:>7} "
                f"{made.shared_bytes:>7} {made.wide_loads:>10} {made.wide_stores:>3}{' !' if bad else ''}",
                flush=True,
            )
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
