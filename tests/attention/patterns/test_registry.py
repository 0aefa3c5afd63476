"""Attention patterns by name."""

import subprocess
import sys

import pytest

from mnemos.attention.patterns import registry
from mnemos.attention.patterns.dense import Dense
from mnemos.attention.patterns.mixer import MixerConfig


def test_all_patterns_are_listed() -> None:
    exact = ["dense", "latent"]
    sparse = ["window", "bigbird", "lsh", "kmeans", "knn", "msa", "msa_every"]
    summed = ["linear", "favor", "compressive"]
    assert set(exact + sparse + summed) == set(registry.pattern_names())
    assert len(registry.pattern_names()) == 12


def test_listing_imports_no_pattern() -> None:
    code = (
        "import sys; from mnemos.attention.patterns.registry import pattern_names\n"
        "names = ['mnemos.attention.patterns.' + name for name in (*pattern_names(), 'projections')]\n"
        "loaded = {*names, 'faiss'} & {*sys.modules}\n"
        "assert not loaded, loaded"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_unknown_pattern_is_refused_with_those_there_are() -> None:
    with pytest.raises(ValueError, match="no attention pattern 'dens'; choose from dense, window, bigbird"):
        registry.pattern("dens")


def test_a_pattern_of_ones_own_is_found_beside_the_built_in_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_registered", {})

    @registry.register
    class Mine(Dense):
        name = "mine"

    config = MixerConfig(dim=8, heads=2, kv_heads=1, head_dim=4)
    assert registry.pattern_names()[-1] == "mine"
    assert isinstance(registry.make_mixer("mine", config), Mine)


def test_a_name_belongs_to_one_pattern(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_registered", {"dense": Dense})
    assert registry.register(Dense) is Dense

    class Other(Dense):
        pass

    with pytest.raises(ValueError, match="two attention patterns are named 'dense'"):
        registry.register(Other)
