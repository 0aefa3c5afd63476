"""Our decoder and loader against transformers on the default model, and how quickly the model loads."""

from pathlib import Path
from typing import Any

import pytest
import torch

from mnemos.attention.bench_decode import run
from mnemos.attention.bench_rivals import to_transformers
from mnemos.attention.models import LanguageModel, load

pytestmark = pytest.mark.model

PROMPTS = [
    "The capital of France is",
    "def fibonacci(n: int) -> int:\n    if n < 2:\n        return n\n    return",
    "Привет! 你好。 مرحبا 🙂 In 1999 there were 31,536,000 seconds.",
    "<|im_start|>user\nMy sister Clara works as a nurse. What does she do?<|im_end|>\n"
    "<|im_start|>assistant\n",
    " ".join(f"{n} bottles of beer on the wall, take one down;" for n in range(60, 50, -1)),
]


@pytest.fixture(scope="module")
def rival(default_weights: Any) -> Any:
    config, weights, _, _ = default_weights
    return to_transformers(config, weights, torch.float32)


@pytest.mark.parametrize("prompt", PROMPTS, ids=["fact", "code", "multilingual", "chat", "long"])
def test_logits_equal_transformers(default_model: LanguageModel, rival: Any, prompt: str) -> None:
    ids = default_model.tokenizer.encode(prompt, special=True)
    cache = default_model.decoder.new_cache(len(ids) + 1)
    with torch.inference_mode():
        theirs = rival(torch.tensor([ids])).logits[0]  # [tokens, vocab]
    ours = default_model.decoder.forward_all(ids, cache)
    assert (ours - theirs).abs().max() < 1e-3
    # The decode path: the last token alone, behind the others' KV.
    cache.truncate(len(ids) - 1, len(ids) - 1)
    assert (default_model.decoder.forward(ids[-1:], cache) - theirs[-1]).abs().max() < 1e-3


@pytest.mark.slow
def test_weights_equal_transformers_own_reading_of_the_file(default_path: Path, default_weights: Any) -> None:
    from transformers import LlamaForCausalLM
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    config, weights, _, _ = default_weights
    with torch.device("meta"):
        dummy = LlamaForCausalLM(to_transformers(config, weights, torch.float32).config)
    theirs = load_gguf_checkpoint(str(default_path), return_tensors=True, model_to_load=dummy)["tensors"]
    for name, tensor in weights.named():
        assert torch.equal(tensor, theirs[name]), name


def test_auto_stays_near_fp32(default_model: LanguageModel, default_path: Path) -> None:
    """The default format's next-token distributions: total variation, averaged over a text."""
    fast = load(default_path)
    ids = default_model.tokenizer.encode(PROMPTS[3], special=True)
    exact = torch.softmax(
        default_model.decoder.forward_all(ids, default_model.decoder.new_cache(len(ids))), -1
    )
    cache = fast.decoder.new_cache(len(ids))
    rows = torch.stack([fast.decoder.forward([token], cache) for token in ids])
    drift = (torch.softmax(rows, -1) - exact).abs().sum(-1) / 2
    assert drift.mean() < 0.03


@pytest.mark.slow
@pytest.mark.timeout(900)  # every format of the default model, on a machine that may be busy
def test_the_benchmark_runs_and_reports(default_path: Path) -> None:
    report = run(str(default_path), repetitions=1, prefill_tokens=16, decode_tokens=2, drift_tokens=64)
    assert report["rival_dtype"] == "bf16"
    assert report["decode_ratio"] > 0
    assert report["prefill_ratio"] > 0
    assert report["same_dtype"]["decode_tokens_per_s"] > 0
    assert report["decode_ratio"] == report["formats"][report["weights"]]["decode_ratio"]
    for name, measured in report["formats"].items():
        assert measured["drift"] < 0.02, name
