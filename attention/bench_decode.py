"""Prefill and decode speed beside transformers: the same weights, dtype, threads and tokens, in one run."""

import gc
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from mnemos.attention.config import LLAMA, ModelConfig
from mnemos.attention.decoder import Decoder
from mnemos.attention.drift_text import DRIFT_TEXT
from mnemos.attention.models import load_weights, pick_formats
from mnemos.attention.step_weights import has_int4, has_int8
from mnemos.attention.tokenizer import Tokenizer
from mnemos.attention.weights import Weights
from mnemos.errors import UsageError

PREFILL_TOKENS = 256
DECODE_TOKENS = 32
DRIFT_TOKENS = 256


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
    weights: str | None = None,
    threads: int | None = None,
    repetitions: int = 3,
    prefill_tokens: int = PREFILL_TOKENS,
    decode_tokens: int = DECODE_TOKENS,
    drift_tokens: int = DRIFT_TOKENS,
) -> dict[str, Any]:
    """Medians over interleaved repetitions, JSON-able: tokens per second, ours over transformers' as ratios.

    transformers runs in bf16 with eager attention. `decode_ratio` and `prefill_ratio` are those of the format
    that `load` picks for `weights`; `formats` has each format of decode weights, with its drift: what it
    loses, in nats per token, on a fixed text; `same_dtype` is bf16 throughout, as transformers. Raises
    UsageError when transformers is not installed or there are no kernels for `weights`.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    chosen = pick_formats("auto", weights)
    config, loaded, source, _ = load_weights(name_or_path)
    prompt = torch.randint(
        0, config.vocab_size, (prefill_tokens,), generator=torch.Generator().manual_seed(0)
    ).tolist()
    capacity, bf16 = prefill_tokens + decode_tokens, torch.bfloat16
    prefill_dtype = chosen[0]
    decoders = {"same_dtype": Decoder(config, loaded, dtype=bf16, decode_dtype=bf16)}
    for name in _formats():
        _, decode_dtype, step_format = pick_formats("auto", name)
        decoders[name] = Decoder(
            config, loaded, dtype=prefill_dtype, decode_dtype=decode_dtype, step_format=step_format
        )
    text = Tokenizer(source, vocab_size=config.vocab_size).encode(DRIFT_TEXT)[:drift_tokens]
    exact = _loss(Decoder(config, loaded, dtype=torch.float32), text)
    drift = {name: _loss(decoder, text) - exact for name, decoder in decoders.items()}
    runners = {"rival": _rival(config, loaded)}
    runners |= {name: _ours(decoder, capacity) for name, decoder in decoders.items()}
    del loaded
    for repetition in range(repetitions + 1):  # the first warms up
        for runner in runners.values():
            gc.collect()
            runner.run(prompt, decode_tokens, keep=repetition > 0)
    prefill = {key: prefill_tokens / statistics.median(each.prefill_s) for key, each in runners.items()}
    decode = {key: decode_tokens / statistics.median(each.decode_s) for key, each in runners.items()}
    measured = {
        name: {
            "decode_tokens_per_s": round(decode[name], 2),
            "decode_ratio": round(decode[name] / decode["rival"], 3),
            "prefill_tokens_per_s": round(prefill[name], 1),
            "prefill_ratio": round(prefill[name] / prefill["rival"], 3),
            "drift": round(drift[name], 4),
        }
        for name in decoders
    }
    picked = "bf16" if chosen[2] == "plain" else chosen[2]
    return {
        "model": config.name,
        "weights": picked,
        "prefill_dtype": str(prefill_dtype).removeprefix("torch."),
        "rival_dtype": "bf16",
        "threads": torch.get_num_threads(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "prefill_tokens": prefill_tokens,
        "decode_tokens": decode_tokens,
        "drift_tokens": len(text),
        "repetitions": repetitions,
        **measured[picked],
        "rival_prefill_tokens_per_s": round(prefill["rival"], 1),
        "rival_decode_tokens_per_s": round(decode["rival"], 2),
        "same_dtype": measured.pop("same_dtype"),
        "formats": measured,
    }


def _formats() -> list[str]:
    return ["bf16", *(["int8"] if has_int8() else []), *(["int4"] if has_int8() and has_int4() else [])]


def _loss(decoder: Decoder, text: list[int]) -> float:
    """Loss per token of a text decoded one token at a time, in nats."""
    cache = decoder.new_cache(len(text))
    rows = torch.stack([decoder.forward([token], cache) for token in text[:-1]])
    return float(torch.nn.functional.cross_entropy(rows, torch.tensor(text[1:])))


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
