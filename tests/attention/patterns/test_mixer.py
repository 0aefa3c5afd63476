"""Sizes that make no sense for any pattern."""

from typing import Any

import pytest

from mnemos.attention.patterns.mixer import MixerConfig

SIZES: dict[str, Any] = {"dim": 8, "heads": 4, "kv_heads": 2, "head_dim": 4}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": 3}, r"heads \(3\) must be a multiple of kv_heads \(2\)"),
        ({"window": 0}, "window must be at least 1, not 0"),
        ({"sinks": -1}, "sinks must be at least 0, not -1"),
        ({"head_dim": 5}, "head_dim must be even, not 5"),
        ({"position": "learned"}, "position must be 'rope', 'alibi' or 'none', not 'learned'"),
    ],
)
def test_a_configuration_that_makes_no_sense_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MixerConfig(**(SIZES | changes))


def test_what_may_be_none_may_be_none() -> None:
    MixerConfig(**SIZES, sinks=0, random_blocks=0, global_blocks=0, seed=-3)
    MixerConfig(**(SIZES | {"head_dim": 5}), position="alibi")
