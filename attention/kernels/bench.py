"""`python -m mnemos.attention.kernels.bench`: the kernels timed beside their rivals on this machine's GPU.

Ceilings are measured in the same run: a large copy in device memory, one from pinned host memory, and a large
product of matrices. A share is of the ceiling that the counted bytes and operations come to first. The JSON
beside the table holds the same figures; it is written again after every section, so that what was measured
stays where a later section fails.
"""

import argparse
import json
import sys
import traceback
from collections.abc import Callable, Iterable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from mnemos.attention.kernels import bench_kernels, bench_training
from mnemos.attention.kernels.ceilings import Ceilings, measure_ceilings
from mnemos.attention.kernels.timing import Row, table_lines

Section = Callable[[], Iterable[Row]]
_OF_THE_DEVICE = ("bench_paging", "bench_turn")  # of mnemos.attention.gpu: rows(device, sizes)


def sections(device: torch.device, ceilings: Ceilings, tiny: bool) -> dict[str, Section]:
    """What is measured, in order; each section's memory is free again before the next one."""
    kernels = bench_kernels.Bench(device, bench_kernels.TINY if tiny else bench_kernels.Sizes(), ceilings)
    training = bench_training.TrainingBench(
        device, bench_training.TINY if tiny else bench_training.Sizes(), ceilings
    )
    found: dict[str, Section] = dict(kernels.sections())
    found["block_sparse"] = training.block_sparse
    for name in _OF_THE_DEVICE:
        module = f"mnemos.attention.gpu.{name}"
        if find_spec("mnemos.attention.gpu") is not None and find_spec(module) is not None:
            found[name] = _rows_of(module, device, tiny)
    return found


def _rows_of(module: str, device: torch.device, tiny: bool) -> Section:
    def rows() -> Iterable[Row]:
        imported: Any = import_module(module)
        found: Iterable[Row] = imported.rows(device, imported.TINY if tiny else None)
        return found

    return rows


def main(arguments: list[str] | None = None) -> int:
    """Print the table and write the JSON; 1 when there is no CUDA device to measure, or a section failed."""
    parser = argparse.ArgumentParser(prog="mnemos.attention.kernels.bench", description=__doc__)
    parser.add_argument("--json", type=Path, default=Path("build/kernels.json"), help="where the figures go")
    parser.add_argument("--only", nargs="+", metavar="SECTION", help="sections to measure, all by default")
    parser.add_argument(
        "--tiny", action="store_true", help="tiny sizes on any device: a test of this program"
    )
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available() and not options.tiny:
        print("No CUDA device here: nothing to measure.", file=sys.stderr)
        return 1
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    ceilings = (
        measure_ceilings(device, 1 << 16, 64, 2)
        if options.tiny
        else measure_ceilings(device, 1 << 30, 8192, 20)
    )
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU: no figures of kernels"
    chosen = sections(device, ceilings, options.tiny)
    unknown = set(options.only or ()) - set(chosen)
    if unknown:
        parser.error(f"no section {', '.join(sorted(unknown))}; there are {', '.join(chosen)}")
    rows: list[Row] = []
    failed: dict[str, str] = {}
    for title, section in chosen.items():
        if options.only and title not in options.only:
            continue
        print(f"{title} ...", file=sys.stderr, flush=True)
        try:
            rows.extend(section())
        except Exception as error:  # told, and told again by the exit code; the other sections still run
            traceback.print_exc()
            failed[title] = f"{type(error).__name__}: {error}"
        if device.type == "cuda":
            torch.cuda.empty_cache()
        _write(options.json, name, ceilings, rows, failed)
    print(f"{name}; torch {torch.__version__}")
    print(
        f"copy in memory {ceilings.copy / 1e9:.0f} GB/s, from pinned host memory "
        f"{ceilings.host_copy / 1e9:.1f} GB/s, bf16 product {ceilings.product / 1e12:.1f} TFLOP/s"
    )
    if rows:
        print("\n".join(table_lines(rows)))
    for title, error in failed.items():
        print(f"{title} failed: {error}", file=sys.stderr)
    return int(bool(failed))


def _write(path: Path, name: str, ceilings: Ceilings, rows: list[Row], failed: dict[str, str]) -> None:
    figures = {
        "device": name,
        "torch": torch.__version__,
        **ceilings.as_json(),
        "failed": failed,
        "rows": [row.as_json() for row in rows],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main())
