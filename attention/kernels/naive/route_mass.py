"""Log-sum-exp of scores by segment, in plain torch."""

import torch
from torch import Tensor

from mnemos.attention.kernels.segments import SegmentKeys


def route_mass(queries: Tensor, segments: SegmentKeys, score_scale: float) -> Tensor:
    """As `mnemos.attention.kernels.dispatch.route_mass`."""
    lengths = segments.starts.diff()
    memory = torch.repeat_interleave(segments.owner.long(), lengths)  # [tokens]
    keys = segments.keys.float() * segments.scales.float()[memory]  # [tokens, key_heads, dim]
    scores = torch.einsum("hrd,thd->hrt", queries.float(), keys) * score_scale
    out = torch.empty(*queries.shape[:2], segments.segments, device=queries.device)
    for index, (start, end) in enumerate(zip(segments.starts[:-1], segments.starts[1:], strict=True)):
        out[..., index] = torch.logsumexp(scores[..., start:end], dim=-1)
    return out
