"""Attention by clusters: how centroids follow their tokens."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize
from torch.utils.checkpoint import checkpoint

from mnemos.attention.patterns.kmeans import Kmeans
from mnemos.attention.patterns.mixer import PADDING, MixerConfig


def _mixer(**sizes: object) -> Kmeans:
    torch.manual_seed(0)
    fixed = {"dim": 16, "heads": 4, "kv_heads": 2, "head_dim": 8, "window": 6, "clusters": 3}
    return Kmeans(MixerConfig(**{**fixed, **sizes}))


def _tokens(tokens: int = 50) -> tuple[Tensor, Tensor]:
    return torch.randn(2, tokens, 16), torch.arange(tokens).repeat(2, 1)


def test_centroids_move_towards_their_tokens_at_the_next_pass() -> None:
    mixer = _mixer()
    x, positions = _tokens()
    positions[1, 30:] = PADDING
    before = mixer.centroids.clone()
    mixer(x, positions)
    assert torch.equal(mixer.centroids, before)
    queries = normalize(mixer.projections.split(x)[0][:, 2:].detach(), dim=-1)
    mixer(x, positions)
    for head in range(2):
        mine = torch.cat((queries[0, head], queries[1, head, :30]))
        cluster = (mine @ before[head].T).argmax(dim=1)
        for centroid in range(3):
            mean = mine[cluster == centroid].mean(dim=0)
            expected = normalize(0.999 * before[head, centroid] + 0.001 * mean, dim=0)
            torch.testing.assert_close(mixer.centroids[head, centroid], expected)


def test_centroids_find_the_groups_that_there_are() -> None:
    mixer = _mixer(position="none")
    mixer.decay = 0.5
    torch.manual_seed(5)
    groups = torch.randn(3, 16) * 5
    kind = torch.randint(3, (600,))
    x = (groups[kind] + torch.randn(600, 16) * 0.1)[None]
    with torch.no_grad():
        mixer.centroids.copy_(normalize(mixer.projections.split(groups[None])[0][0, 2:], dim=-1))
        mixer.centroids.add_(torch.randn_like(mixer.centroids) * 0.2)
        for _ in range(20):
            mixer(x, torch.arange(600)[None])
        queries = normalize(mixer.projections.split(groups[None])[0][0, 2:], dim=-1)
    similar = queries @ mixer.centroids.transpose(1, 2)  # [heads, groups, clusters]
    assert similar.amax(dim=2).min() > 0.99
    assert similar.argmax(dim=2).sort(dim=1).values.tolist() == [[0, 1, 2]] * 2


@pytest.mark.parametrize("case", ["eval", "stepping"])
def test_centroids_rest_outside_training(case: str) -> None:
    mixer = _mixer()
    if case == "eval":
        mixer.eval()
    before = mixer.centroids.clone()
    for _ in range(3):
        mixer(*_tokens(), None if case == "eval" else mixer.initial_state(2))
    assert torch.equal(mixer.centroids, before)
    assert not mixer.count.any()


def test_recomputing_a_pass_finds_the_same_clusters() -> None:
    gradients = []
    for recompute in (False, True):
        mixer = _mixer()
        mixer.decay = 0.1
        x, positions = _tokens()
        mixer(x, positions)  # leaves something to follow
        torch.manual_seed(2)
        x = torch.randn_like(x)
        y = checkpoint(mixer, x, positions, use_reentrant=False)[0] if recompute else mixer(x, positions)[0]
        y.square().sum().backward()
        gradients.append([mixer.centroids, mixer.count, *(weight.grad for weight in mixer.parameters())])
    torch.testing.assert_close(gradients[0], gradients[1])


def test_what_was_seen_is_part_of_a_checkpoint() -> None:
    mixer, other = _mixer(), _mixer()
    mixer(*_tokens())
    other.load_state_dict(mixer.state_dict())
    x, positions = _tokens()
    for one in (mixer, other):
        one(x, positions)
    assert torch.equal(mixer.centroids, other.centroids)
