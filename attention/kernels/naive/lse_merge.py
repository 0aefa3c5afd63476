"""Two parts of one attention joined by their log-sum-exps, in plain torch."""

import torch
from torch import Tensor


def lse_merge(
    memory: Tensor, memory_lse: Tensor, working: Tensor, working_lse: Tensor, mass_scale: float
) -> Tensor:
    """As `mnemos.attention.kernels.dispatch.lse_merge`."""
    scaled = torch.where(memory_lse.isinf(), memory_lse, memory_lse * mass_scale)
    both = torch.stack([scaled, working_lse])  # [2, rows]
    top = both.amax(dim=0)
    weights = (both - torch.where(top.isinf(), 0.0, top)).exp()
    shares = (weights / weights.sum(dim=0).clamp_min(1e-38))[..., None]
    # An empty part may hold NaN.
    of_memory = torch.where(shares[0] > 0, memory.float() * shares[0], 0.0)
    of_working = torch.where(shares[1] > 0, working.float() * shares[1], 0.0)
    return (of_memory + of_working).to(working.dtype)
