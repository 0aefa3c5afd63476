"""The router's supervised contrastive loss (MSA, arXiv 2603.23516)."""

import torch
from torch import Tensor


def route_loss(scores: Tensor, evidence: Tensor, temperature: float = 0.1, focus: float = 0.0) -> Tensor:
    """How far documents with evidence are from outscoring each of those without, a scalar.

    For each document with evidence, -log(exp(s+) / (exp(s+) + sum of exp(s-))), scores divided by the
    temperature: other evidence is not in its denominator. The mean is over a question's evidence, then over
    questions that have any; zero where none has.

    Args:
        scores: [..., documents], -inf for documents that are not there.
        evidence: bool [..., documents].
        temperature: what scores are divided by, above 0.
        focus: weighs each term by (1 - p)^focus, p being the fraction above (focal loss, arXiv 1708.02002).

    Raises:
        ValueError: shapes that differ, or a temperature that is not above zero.
    """
    if scores.shape != evidence.shape or evidence.dtype != torch.bool:
        raise ValueError(
            f"evidence must be bool of shape {list(scores.shape)}, "
            f"not {evidence.dtype} of {list(evidence.shape)}"
        )
    if temperature <= 0:
        raise ValueError(f"temperature must be above 0, not {temperature}")
    wide = torch.promote_types(scores.dtype, torch.float32)
    there = scores > -torch.inf
    scaled = torch.where(there, scores, 0.0).to(wide) / temperature
    positive, negative = evidence & there, ~evidence & there
    if not scores.shape[-1]:
        return scaled.sum()
    # A finite floor instead of -inf: a row without negatives then has no NaN in its gradient.
    others = scaled.masked_fill(~negative, torch.finfo(wide).min).logsumexp(dim=-1, keepdim=True)
    terms = torch.nn.functional.softplus(others - scaled)
    if focus:
        terms = terms * (-torch.expm1(-terms)) ** focus
    found = positive.sum(dim=-1)
    by_question = (terms * positive).sum(dim=-1) / found.clamp_min(1)
    return by_question.sum() / (found > 0).sum().clamp_min(1)
