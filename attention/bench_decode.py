"""Prefill and decode speed beside transformers: the same weights, dtype, threads and tokens, in one run."""

import gc
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from mnemos.attention.config import LLAMA, ModelConfig
from mnemos.attention.decoder import Decoder
from mnemos.attention.models import load_weights, pick_dtypes
from mnemos.attention.weights import Weights
from mnemos.errors import UsageError

PREFILL_TOKENS = 256
DECODE_TOKENS = 32


class _Runner:
    """Prefills a prompt, then decodes greedily; both timed."""

    def __init__(self, prefill: Callable[[list[int]], int], decode: Callable[[int], int]) -> None:
        self._prefill, self._decode = prefill, decode
        self.prefill_s: list[float] = []
        self.decode_s: list[float] = []

    def run(self, prompt: list[int], decode_tokens: int, *, keep: bool) -> list[int]:
        start = time.perf_counter()
        token = self._prefill(prompt)
        middle = time.perf_counter()
        tokens = [token]
        for _ in range(decode_tokens):
            token = self._decode(token)
            tokens.append(token)
        end = time.perf_counter()
        if keep:
            self.prefill_s.append(middle - start)
            self.decode_s.append(end - middle)
        return tokens


def run(
    name_or_path: str | None = None,
    *,
    threads: int | None = None,
    repetitions: int = 3,
    prefill_tokens: int = PREFILL_TOKENS,
    decode_tokens: int = DECODE_TOKENS,
) -> dict[str, Any]:
    """Medians over interleaved repetitions, JSON-able: tokens per second, ours over transformers' as ratios.

    `decode_ratio` and `prefill_ratio` compare bf16 with bf16, transformers with eager attention; `default` is
    our `auto` format. Raises UsageError when transformers is not installed.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    config, weights, _, _ = load_weights(name_or_path)
    prompt = torch.randint(
        0, config.vocab_size, (prefill_tokens,), generator=torch.Generator().manual_seed(0)
    )
    prefill_dtype, decode_dtype = pick_dtypes("auto")
    capacity = prefill_tokens + decode_tokens
    bf16 = torch.bfloat16
    runners = {
        "rival": _rival(config, weights),
        "ours": _ours(Decoder(config, weights, dtype=bf16, decode_dtype=bf16), capacity),
        "default": _ours(Decoder(config, weights, dtype=prefill_dtype, decode_dtype=decode_dtype), capacity),
    }
    del weights
    for repetition in range(repetitions + 1):  # the first warms up
        for runner in runners.values():
            gc.collect()
            runner.run(prompt.tolist(), decode_tokens, keep=repetition > 0)
    prefill = {key: prefill_tokens / statistics.median(each.prefill_s) for key, each in runners.items()}
    decode = {key: decode_tokens / statistics.median(each.decode_s) for key, each in runners.items()}
    return {
        "model": config.name,
        "dtype": "bf16",
        "threads": torch.get_num_threads(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "prefill_tokens": prefill_tokens,
        "decode_tokens": decode_tokens,
        "repetitions": repetitions,
        "prefill_tokens_per_s": round(prefill["ours"], 1),
        "decode_tokens_per_s": round(decode["ours"], 2),
        "rival_prefill_tokens_per_s": round(prefill["rival"], 1),
        "rival_decode_tokens_per_s": round(decode["rival"], 2),
        "prefill_ratio": round(prefill["ours"] / prefill["rival"], 3),
        "decode_ratio": round(decode["ours"] / decode["rival"], 3),
        "default": {
            "prefill_dtype": str(prefill_dtype).removeprefix("torch."),
            "decode_dtype": str(decode_dtype).removeprefix("torch."),
            "prefill_tokens_per_s": round(prefill["default"], 1),
            "decode_tokens_per_s": round(decode["default"], 2),
            "prefill_ratio": round(prefill["default"] / prefill["rival"], 3),
            "decode_ratio": round(decode["default"] / decode["rival"], 3),
        },
    }


def _ours(decoder: Decoder, capacity: int) -> _Runner:
    cache = decoder.new_cache(capacity)

    def prefill(prompt: list[int]) -> int:
        cache.truncate(0, 0)
        return int(decoder.forward(prompt, cache).argmax())

    return _Runner(prefill, lambda token: int(decoder.forward([token], cache).argmax()))


def _rival(config: ModelConfig, weights: Weights) -> _Runner:
    model = to_transformers(config, weights, torch.bfloat16)
    state: list[Any] = [None]

    @torch.inference_mode()
    def step(tokens: list[int]) -> int:
        out = model(torch.tensor([tokens]), past_key_values=state[0], use_cache=True, logits_to_keep=1)
        state[0] = out.past_key_values
        return int(out.logits[0, -1].argmax())

    def prefill(prompt: list[int]) -> int:
        state[0] = None
        return step(prompt)

    return _Runner(prefill, lambda token: step([token]))


def to_transformers(config: ModelConfig, weights: Weights, dtype: torch.dtype) -> Any:
    """The same weights as a transformers model with eager attention. Raises UsageError without it."""
    try:
        from transformers import LlamaConfig, LlamaForCausalLM
    except ImportError as error:
        raise UsageError("this benchmark needs transformers: pip install 'mnemos[bench]'") from error
    if config.architecture != LLAMA or config.rope_scaling is not None:
        raise UsageError(
            f"this benchmark compares plain Llama models; {config.name} is a {config.architecture} with "
            "settings of its own"
        )
    described = LlamaConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.kv_heads,
        head_dim=config.head_dim,
        intermediate_size=config.intermediate_size,
        rms_norm_eps=config.rms_norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
        max_position_embeddings=config.max_positions,
        tie_word_embeddings=config.tie_embeddings,
        attn_implementation="eager",
    )
    model = LlamaForCausalLM(described).eval()
    state = {name: tensor.to(dtype) for name, tensor in weights.named()}
    # Assigned rather than copied, so that the rotary frequencies, a buffer, stay in fp32.
    missing, unexpected = model.load_state_dict(state, strict=False, assign=True)
    if unexpected or set(missing) - {"lm_head.weight"}:
        raise UsageError(f"transformers' Llama has other tensors than ours: {[*missing, *unexpected][:3]}")
    model.tie_weights()
    return model
