"""The attention patterns by name. Listing them imports none of them."""

from collections.abc import Callable
from importlib import import_module
from typing import cast

from torch import Tensor

from mnemos.attention.patterns.mixer import Mixer, MixerConfig

NaiveTwin = Callable[[Mixer, Tensor, Tensor], Tensor]
"""`mix(mixer, x, positions) -> y`: a mixer's output for a whole sequence by plain loops, with its weights."""

_PACKAGE = "mnemos.attention.patterns"
_BUILT_IN = (
    "dense",
    "window",
    "bigbird",
    "lsh",
    "kmeans",
    "linear",
    "favor",
    "compressive",
    "knn",
    "latent",
    "msa",
    "msa_every",
)
"""Each is the module of that name, and registers its mixer when it is imported."""

_registered: dict[str, type[Mixer]] = {}


def register(pattern: type[Mixer]) -> type[Mixer]:
    """Adds a mixer under its `name`.

    Raises:
        ValueError: another mixer has that name.
    """
    if _registered.setdefault(pattern.name, pattern) is not pattern:
        raise ValueError(f"two attention patterns are named {pattern.name!r}; rename one of them")
    return pattern


def pattern(name: str) -> type[Mixer]:
    """The class of a pattern.

    Raises:
        ValueError: no such pattern; the message lists those there are.
    """
    if name not in _registered:
        if name not in _BUILT_IN:
            raise ValueError(
                f"there is no attention pattern {name!r}; choose from {', '.join(pattern_names())}"
            )
        import_module(f"{_PACKAGE}.{name}")
    return _registered[name]


def pattern_names() -> list[str]:
    """All patterns: the built-in ones, then those registered besides."""
    return [*_BUILT_IN, *(name for name in _registered if name not in _BUILT_IN)]


def make_mixer(name: str, config: MixerConfig) -> Mixer:
    """One layer's mixer, its weights fresh."""
    build: Callable[[MixerConfig], Mixer] = pattern(name)
    return build(config)


def naive_twin(name: str) -> NaiveTwin:
    """The plain form of a built-in pattern: slow, in whatever precision the mixer's weights have."""
    return cast(NaiveTwin, import_module(f"{_PACKAGE}.naive.{name}").mix)
