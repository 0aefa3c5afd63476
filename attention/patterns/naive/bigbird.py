"""Window, random and global blocks, token by token."""

from torch import Tensor

from mnemos.attention.patterns.bigbird import BigBird
from mnemos.attention.patterns.mixer import Mixer, MixerConfig
from mnemos.attention.patterns.naive.tokens import softmax_mix


def mix(mixer: Mixer, x: Tensor, positions: Tensor) -> Tensor:
    """The output for `x [batch, tokens, dim]`, by the mixer's weights."""
    assert isinstance(mixer, BigBird)
    config = mixer.config
    size = config.block

    def keys_of(query: int, head: int) -> list[int]:
        own = query // size
        near_from = own - -(-(config.window - 1) // size)
        blocks = set(range(max(near_from, 0), own + 1)) | set(range(min(config.global_blocks, own + 1)))
        blocks |= drawn_blocks(config, head // (config.heads // config.kv_heads), own, near_from)
        return [key for key in range(query + 1) if key // size in blocks]

    return softmax_mix(mixer.projections, x, positions, keys_of)


def drawn_blocks(config: MixerConfig, kv_head: int, own: int, near_from: int) -> set[int]:
    """Floyd's sampling of `random_blocks` from those between the global and the near blocks."""
    count = near_from - config.global_blocks
    if count <= config.random_blocks:
        return set(range(config.global_blocks, max(near_from, config.global_blocks)))
    drawn: set[int] = set()
    for slot in range(config.random_blocks):
        last = count - config.random_blocks + slot
        choice = ((config.seed * 31 + kv_head) * 31 + slot) * 1_000_003 + own
        choice %= 2**32
        for _ in range(2):
            choice = ((choice ^ (choice >> 16)) * 0x45D9F3B) % 2**32
        choice = (choice ^ (choice >> 16)) % (last + 1)
        drawn.add(last if choice in drawn else choice)
    return {config.global_blocks + block for block in drawn}
