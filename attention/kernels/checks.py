"""What every kernel is spared: bad input gets its error here, before a launch."""

from collections.abc import Sequence

import torch
from torch import Tensor

FLOATS = (torch.float16, torch.bfloat16, torch.float32)
HEAD_DIMS = (64, 80, 96, 128, 256)
MAX_GROUP = 16


def check_tensors(kernel: str, **tensors: Tensor) -> None:
    """All on one device, contiguous and on a boundary of 16 bytes. Raises ValueError."""
    device = next(iter(tensors.values())).device
    for name, tensor in tensors.items():
        if tensor.device != device:
            raise ValueError(
                f"{kernel}: {name} is on {tensor.device} and other inputs are on {device}; move one of them"
            )
        if not tensor.is_contiguous():
            raise ValueError(f"{kernel}: {name} is not contiguous; pass {name}.contiguous()")
        if tensor.numel() and tensor.data_ptr() % 16:
            raise ValueError(f"{kernel}: {name} does not start on a boundary of 16 bytes; pass a copy of it")


def check_dtype(kernel: str, name: str, tensor: Tensor, allowed: Sequence[torch.dtype]) -> None:
    """Raises ValueError when the tensor has none of the `allowed` dtypes."""
    if tensor.dtype not in allowed:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in allowed)
        raise ValueError(f"{kernel}: {name} is {str(tensor.dtype).removeprefix('torch.')}; it takes {names}")


def check_shape(kernel: str, name: str, tensor: Tensor, shape: Sequence[int | None]) -> None:
    """`None` stands for any size above zero. Raises ValueError."""
    fits = tensor.dim() == len(shape) and all(
        size > 0 if wanted is None else size == wanted
        for size, wanted in zip(tensor.shape, shape, strict=True)
    )
    if not fits:
        wanted = ["any" if size is None else size for size in shape]
        raise ValueError(f"{kernel}: {name} has shape {list(tensor.shape)}; it takes {wanted}")
