"""How many answers of the needle task a model gets right."""

import torch

from mnemos.attention.patterns.hybrid import HybridModel
from mnemos.attention.training.batches import IGNORED, Source, make_batch


@torch.inference_mode()
def needle_recall(
    model: HybridModel, source: Source, *, length: int, samples: int = 64, batch: int = 8
) -> float:
    """The share of values that are the likeliest token after their key, over `samples` of `length` tokens."""
    device = model.embed.weight.device
    was_training = model.training
    model.eval()
    right = asked = 0
    for first in range(0, samples, batch):
        numbers = range(first, min(first + batch, samples))
        some = make_batch([source.sample(number, length) for number in numbers]).to(device)
        hidden, _, _ = model.hidden(some.tokens, some.positions, None, some.asks)
        wanted = some.targets != IGNORED
        said = model.logits(hidden[wanted]).argmax(dim=-1)
        right += int((said == some.targets[wanted]).sum())
        asked += int(wanted.sum())
    model.train(was_training)
    return right / max(asked, 1)
