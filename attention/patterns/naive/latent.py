"""Multi-head latent attention, token by token, every key and value expanded."""

import torch
from torch import Tensor

from mnemos.attention.patterns.latent import Latent
from mnemos.attention.patterns.mixer import PADDING, Mixer
from mnemos.attention.patterns.naive.tokens import plain_slopes, turned


def mix(mixer: Mixer, x: Tensor, positions: Tensor) -> Tensor:
    """The output for `x [batch, tokens, dim]`, by the mixer's weights."""
    assert isinstance(mixer, Latent)
    return torch.stack([_sequence(mixer, *row) for row in zip(x, positions.tolist(), strict=True)])


def _sequence(mixer: Latent, x: Tensor, positions: list[int]) -> Tensor:
    config, heads = mixer.config, mixer.config.heads
    out = [x.new_zeros(config.dim)] * len(x)
    keys: list[Tensor] = []  # each [heads, head_dim + shared_dim]
    values: list[Tensor] = []
    seen: list[int] = []
    for index, position in enumerate(positions):
        if position == PADDING:
            continue
        compressed = mixer.compress.weight @ x[index]
        spread = (compressed.square().mean() + torch.finfo(x.dtype).eps).sqrt()
        latent = mixer.norm.weight * compressed / spread
        q = (mixer.query.weight @ x[index]).view(heads, -1)
        k = (mixer.key.weight @ latent).view(heads, -1)
        if mixer.shared_key is not None:
            own, with_position = q[:, : config.head_dim], q[:, config.head_dim :]
            q = torch.cat((own, turned(with_position, position, config.rope_theta)), dim=1)
            shared = turned((mixer.shared_key.weight @ x[index])[None], position, config.rope_theta)
            k = torch.cat((k, shared.expand(heads, -1)), dim=1)
        keys.append(k)
        values.append((mixer.value.weight @ latent).view(heads, -1))
        seen.append(position)
        scores = (torch.stack(keys) * q).sum(-1) / q.shape[1] ** 0.5  # [keys, heads]
        if config.position == "alibi":
            distances = scores.new_tensor([position - key for key in seen])
            scores = scores - distances[:, None] * scores.new_tensor(plain_slopes(heads))
        mixed = (scores.softmax(0)[..., None] * torch.stack(values)).sum(0)
        out[index] = mixer.out.weight @ mixed.flatten()
    return torch.stack(out)
