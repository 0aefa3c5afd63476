"""What a machine can do at most, measured in the run whose figures are held against it."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import torch

from mnemos.attention.kernels.timing import median_ms


@dataclass(frozen=True, slots=True)
class Ceilings:
    copy: float  # bytes a second in device memory, read and written
    host_copy: float  # bytes a second from pinned host memory to the device
    product: float  # operations a second of a bf16 matrix product

    def as_json(self) -> dict[str, float]:
        names = {"copy": "copy_bytes_per_s", "host_copy": "host_copy_bytes_per_s"}
        return {names.get(name, f"{name}_operations_per_s"): rate for name, rate in asdict(self).items()}


def measure_ceilings(device: torch.device, copy_bytes: int, side: int, repeats: int) -> Ceilings:
    """A copy of `copy_bytes` in memory and over the bus, and a product of two `[side, side]`."""
    source, target = (
        torch.randint(0, 256, (copy_bytes,), dtype=torch.uint8, device=device) for _ in range(2)
    )
    host = torch.randint(0, 256, (copy_bytes,), dtype=torch.uint8)
    if device.type == "cuda":
        host = host.pin_memory()
    left, right = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    product = torch.empty(side, side, device=device, dtype=torch.bfloat16)

    def ms(calls: Sequence[Callable[[], object]]) -> float:
        return median_ms(calls, device, repeats, in_graph=False)

    # Both ways round, and both orders: what is read was not just written.
    copy_ms = ms([lambda: target.copy_(source), lambda: source.copy_(target)])
    host_ms = ms([lambda: target.copy_(host, non_blocking=True)])
    product_ms = ms([lambda: torch.mm(left, right, out=product), lambda: torch.mm(right, left, out=product)])
    return Ceilings(
        2 * copy_bytes / (copy_ms * 1e-3),
        copy_bytes / (host_ms * 1e-3),
        2 * side**3 / (product_ms * 1e-3),
    )
