"""One run in several processes, as `torchrun` starts them: each takes its share, and gradients are summed."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

_CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class Place:
    """This process among `world` others, and its device."""

    rank: int = 0
    world: int = 1
    device: torch.device = _CPU

    @property
    def is_first(self) -> bool:
        """Whether it speaks and writes for all."""
        return self.rank == 0

    def sum(self, value: Tensor) -> Tensor:
        """The sum over all processes, without gradients."""
        if self.world > 1:
            value = value.detach().clone()
            dist.all_reduce(value)
        return value

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Adds up each parameter's gradient over all processes, in one message. None counts as zero."""
        if self.world == 1:
            return
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        gradients = [
            torch.zeros_like(parameter) if parameter.grad is None else parameter.grad for parameter in trained
        ]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        for parameter, part in zip(
            trained, torch.split(flat, [each.numel() for each in gradients]), strict=True
        ):
            parameter.grad = part.view_as(parameter)

    def gather(self, value: Tensor) -> list[Tensor]:
        """`value`, of the same shape everywhere, of all processes in their order, with gradients.

        A gradient that arrives here is the sum of what every process has for this one's part.
        """
        if self.world == 1:
            return [value]
        gathered: Tensor = _Gather.apply(value, self.rank, self.world)  # type: ignore[no-untyped-call]
        return list(gathered.unbind(0))

    def wait(self) -> None:
        """Until all are here."""
        if self.world > 1:
            dist.barrier()


@contextmanager
def joined() -> Iterator[Place]:
    """This process's place under `torchrun`, or the only one without it."""
    device = _CPU
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Place(device=device)
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Place(dist.get_rank(), dist.get_world_size(), device)
    finally:
        dist.destroy_process_group()


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, rank: int, world: int) -> Tensor:
        ctx.rank = rank
        parts = [torch.empty_like(value) for _ in range(world)]
        dist.all_gather(parts, value.contiguous())
        return torch.stack(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        total = gradients[0].contiguous().clone()
        dist.all_reduce(total)
        return total[ctx.rank], None, None
