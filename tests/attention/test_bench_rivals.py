"""What the decode benchmark compares with: every family that transformers knows, and llama.cpp."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mnemos.attention import bench_decode
from mnemos.attention.bench_rivals import load_transformers, with_llama_cpp
from mnemos.attention.models import load, load_weights
from mnemos.errors import UsageError


@pytest.mark.parametrize("name", ["llama3", "mistral", "qwen2", "qwen3", "gemma3", "smollm3"])
def test_families_are_compared_with_themselves(family: Callable[[str], Any], cache: Path, name: str) -> None:
    directory = family(name).directory
    config, weights, _, _ = load_weights(directory)
    rival = load_transformers(config, weights, directory, torch.float32)
    model = load(directory, dtype="fp32")
    tokens = [5, 9, 200, 17, 33]
    with torch.inference_mode():
        theirs = rival(torch.tensor([tokens])).logits[0, -1]
    ours = model.decoder.forward(tokens, model.decoder.new_cache(8))
    assert (ours - theirs).abs().max() < 1e-3


@pytest.mark.slow
@pytest.mark.timeout(900)  # starts a process that loads the model
def test_the_benchmark_runs_on_another_family(family: Callable[[str], Any], cache: Path) -> None:
    directory = str(family("qwen3").directory)
    report = bench_decode.run(directory, repetitions=1, prefill_tokens=8, decode_tokens=2, drift_tokens=8)
    assert report["decode_ratio"] > 0 and report["load_s"] > 0
    assert "decode_vs_llamacpp" not in report


def test_a_model_that_transformers_does_not_know_is_refused_by_name(
    family: Callable[[str], Any], cache: Path, tmp_path: Path
) -> None:
    config, weights, _, _ = load_weights(family("qwen3").directory)
    (tmp_path / "config.json").write_text('{"model_type": "nobody-s"}')
    with pytest.raises(UsageError, match="transformers can't run tiny-qwen3"):
        load_transformers(config, weights, tmp_path, torch.float32)


def test_llama_cpp_must_be_there_and_reads_one_format(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    with pytest.raises(UsageError, match=r"pip install 'mnemos\[bench-llamacpp\]'"):
        with_llama_cpp(tmp_path / "model.gguf", 8)
    with pytest.raises(UsageError, match="GGUF"):
        with_llama_cpp(tmp_path, 8)
    with pytest.raises(UsageError, match="unknown rival 'vllm'"):
        bench_decode.run(rival="vllm")


@pytest.mark.model
@pytest.mark.slow
def test_llama_cpp_continues_the_default_model_as_ours_does(default_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    ours = load(default_path)
    prompt = ours.template.encode(
        [{"role": "user", "content": "What is the capital of France?"}], ours.tokenizer
    )
    cache = ours.decoder.new_cache(len(prompt) + 8)
    token, rival = int(ours.decoder.forward(prompt, cache).argmax()), with_llama_cpp(default_path, 128)
    theirs = rival.prefill(prompt)
    for _ in range(6):
        assert token == theirs
        token, theirs = int(ours.decoder.forward([token], cache).argmax()), rival.decode(theirs)
