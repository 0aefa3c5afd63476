"""The rivals of `mnemos bench decode`: transformers and llama.cpp, with the same weights."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mnemos.attention.config import LLAMA, ModelConfig
from mnemos.attention.weights import Weights
from mnemos.errors import UsageError

LLAMA_CPP = "llamacpp"
_NEEDED = "this benchmark needs transformers: pip install 'mnemos[bench]'"


@dataclass(frozen=True, slots=True)
class Greedy:
    """Prefills a prompt anew, then decodes token by token; both give the likeliest next token."""

    prefill: Callable[[list[int]], int]
    decode: Callable[[int], int]


def with_transformers(config: ModelConfig, weights: Weights, path: Path) -> Greedy:
    """transformers in bf16 with eager attention. Raises UsageError when it can't run the model."""
    model = load_transformers(config, weights, path, torch.bfloat16)
    state: list[Any] = [None]

    @torch.inference_mode()
    def step(tokens: list[int]) -> int:
        out = model(torch.tensor([tokens]), past_key_values=state[0], use_cache=True, logits_to_keep=1)
        state[0] = out.past_key_values
        return int(out.logits[0, -1].argmax())

    def prefill(prompt: list[int]) -> int:
        state[0] = None
        return step(prompt)

    return Greedy(prefill, lambda token: step([token]))


def with_llama_cpp(path: Path, capacity: int) -> Greedy:
    """llama.cpp on the GGUF file itself, as many threads as PyTorch has. Raises UsageError without it."""
    if path.suffix != ".gguf":
        raise UsageError(f"llama.cpp runs GGUF files, and {path.name} is none; name one with --model")
    try:
        import llama_cpp
    except ImportError as error:
        raise UsageError(
            "this rival needs llama.cpp: pip install 'mnemos[bench-llamacpp]' (it is built from source, "
            "which takes some minutes, a C++ compiler and CMake)"
        ) from error
    threads = torch.get_num_threads()
    model = llama_cpp.Llama(
        model_path=str(path),
        n_ctx=capacity,
        n_batch=capacity,
        n_ubatch=capacity,
        n_threads=threads,
        n_threads_batch=threads,
        verbose=False,
    )
    vocab = model.n_vocab()

    def step(tokens: list[int]) -> int:
        model.eval(tokens)
        logits = llama_cpp.llama_get_logits(model.ctx)
        return int(np.ctypeslib.as_array(logits, shape=(vocab,)).argmax())

    def prefill(prompt: list[int]) -> int:
        model.reset()
        return step(prompt)

    return Greedy(prefill, lambda token: step([token]))


def load_transformers(config: ModelConfig, weights: Weights, path: Path, dtype: torch.dtype) -> Any:
    """The model in transformers: of our own weights for a plain Llama, from its files for other families.

    Raises UsageError where transformers is not installed or does not know it.
    """
    if config.architecture == LLAMA and config.rope_scaling is None:
        return to_transformers(config, weights, dtype)
    try:
        from transformers import AutoModelForCausalLM
    except ImportError as error:
        raise UsageError(_NEEDED) from error
    where = (path, {}) if path.is_dir() else (path.parent, {"gguf_file": path.name})
    try:
        model = AutoModelForCausalLM.from_pretrained(
            where[0], dtype=dtype, attn_implementation="eager", local_files_only=True, **where[1]
        )
    # A model that it doesn't know fails wherever it happens to: a key, a value, a shape, a file.
    except (ValueError, KeyError, OSError, RuntimeError, NotImplementedError) as error:
        raise UsageError(
            f"transformers can't run {config.name} ({config.architecture}), so there is nothing to compare "
            f"with: {str(error).splitlines()[0]}"
        ) from error
    return model.eval()


def to_transformers(config: ModelConfig, weights: Weights, dtype: torch.dtype) -> Any:
    """The weights of a plain Llama as a transformers model with eager attention. Raises UsageError without
    it.
    """
    try:
        from transformers import LlamaConfig, LlamaForCausalLM
    except ImportError as error:
        raise UsageError(_NEEDED) from error
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
