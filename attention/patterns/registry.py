"""The attention patterns by name."""

from collections.abc import Callable

from mnemos.attention.patterns.mixer import Mixer, MixerConfig

_PATTERNS: dict[str, type[Mixer]] = {}


def register(pattern: type[Mixer]) -> type[Mixer]:
    """Adds a mixer under its `name`.

    Raises:
        ValueError: another mixer has that name.
    """
    if _PATTERNS.setdefault(pattern.name, pattern) is not pattern:
        raise ValueError(f"two attention patterns are named {pattern.name!r}; rename one of them")
    return pattern


def pattern(name: str) -> type[Mixer]:
    """The class of a pattern.

    Raises:
        ValueError: no such pattern; the message lists those there are.
    """
    try:
        return _PATTERNS[name]
    except KeyError:
        raise ValueError(
            f"there is no attention pattern {name!r}; choose from {', '.join(pattern_names())}"
        ) from None


def pattern_names() -> list[str]:
    """All patterns, in the order they were registered."""
    return list(_PATTERNS)


def make_mixer(name: str, config: MixerConfig) -> Mixer:
    """One layer's mixer, its weights fresh."""
    build: Callable[[MixerConfig], Mixer] = pattern(name)
    return build(config)
