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
    parts = [torch.where(share > 0, part.float() * share, 0.0) for share, part in zip(shares, (memory, working), strict=True)]
    return (parts[0] + parts[1]).to(working.dtype)
