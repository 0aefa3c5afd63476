"""Scores of pooled routing keys for folded queries, in plain torch."""

from torch import Tensor


def route_msa(queries: Tensor, keys: Tensor) -> Tensor:
    """As `mnemos.attention.kernels.dispatch.route_msa`."""
    return (queries.float() @ keys.float().T).amax(dim=0)
