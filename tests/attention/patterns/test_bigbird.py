"""Which blocks BigBird reaches."""

from typing import Any

import torch

from mnemos.attention.patterns.bigbird import BigBird, scrambled
from mnemos.attention.patterns.dense import Dense
from mnemos.attention.patterns.mixer import MixerConfig

SIZES: dict[str, Any] = {"dim": 16, "heads": 4, "kv_heads": 2, "head_dim": 4, "block": 8, "window": 17}


def reached(mixer: BigBird, head: int, block: int) -> list[int]:
    """The blocks that one block reaches through one KV head, as they come."""
    blocks, there = mixer._reach(torch.tensor([[block]]))
    return blocks[0, head, 0][there[0, head, 0]].tolist()


def test_random_blocks_are_distinct_and_lie_between_the_others() -> None:
    mixer = BigBird(MixerConfig(**SIZES, random_blocks=3, global_blocks=2))
    for block in range(40):
        for head in range(2):
            blocks = reached(mixer, head, block)
            assert len(set(blocks)) == len(blocks)
            assert blocks[-1] == block
            near = set(range(max(block - 2, 0), block + 1))
            assert near | set(range(min(2, block + 1))) <= set(blocks)
            drawn = set(blocks) - near - {0, 1}
            assert len(drawn) == min(3, max(block - 2 - 2, 0))
            assert all(2 <= one < block - 2 for one in drawn)


def test_every_block_is_drawn_about_as_often_as_any_other() -> None:
    counts = torch.zeros(100)
    for seed in range(200):
        mixer = BigBird(MixerConfig(**SIZES, random_blocks=4, global_blocks=0, seed=seed))
        for head in range(2):
            counts[reached(mixer, head, 102)[:4]] += 1
    # 1,600 draws of 100 blocks: 16 each, give or take 4.
    assert counts.min() >= 3
    assert counts.max() <= 34
    assert 2.5 < counts.std() < 5.5


def test_heads_and_seeds_draw_differently() -> None:
    one, other = (BigBird(MixerConfig(**SIZES, random_blocks=3, seed=seed)) for seed in (0, 1))
    far = range(50, 60)
    assert [reached(one, 0, block) for block in far] != [reached(one, 1, block) for block in far]
    assert [reached(one, 0, block) for block in far] != [reached(other, 0, block) for block in far]


def test_it_is_dense_while_all_blocks_are_reached() -> None:
    config = MixerConfig(**SIZES, random_blocks=2, global_blocks=1)
    mixer, dense = BigBird(config), Dense(config)
    dense.load_state_dict(mixer.state_dict())
    x, places = torch.randn(2, 60, 16), torch.arange(60).repeat(2, 1)
    ours, theirs = mixer(x, places)[0], dense(x, places)[0]
    torch.testing.assert_close(ours[:, :48], theirs[:, :48])  # 6 blocks: 1 global, 2 random, 3 near
    assert not torch.allclose(ours[:, 56:], theirs[:, 56:])


def test_scrambled_numbers_are_positive_and_differ() -> None:
    numbers = scrambled(torch.arange(-500, 500))
    assert len(set(numbers.tolist())) == 1000
    assert 0 <= int(numbers.min()) < int(numbers.max()) < 2**32
