"""Prefill and decode speed beside transformers, and llama.cpp: the same weights, threads and tokens, in one
run.
"""

import gc
import json
import statistics
import subprocess
import sys
import time
from typing import Any

import torch

from mnemos.attention.bench_rivals import LLAMA_CPP, Greedy, with_llama_cpp, with_transformers
from mnemos.attention.compiled import kernels
from mnemos.attention.decoder import Decoder
from mnemos.attention.drift_text import DRIFT_TEXT
from mnemos.attention.models import (
    PACKED,
    decode_name,
    load_weights,
    make_decoder,
    pick_formats,
)
from mnemos.attention.registry import resolve_name, weights_path
from mnemos.attention.step_weights import has_int4, has_int8
from mnemos.attention.tokenizer import Tokenizer
from mnemos.errors import UsageError

PREFILL_TOKENS = 256
DECODE_TOKENS = 32
DRIFT_TOKENS = 256
_LOAD_S = 300
_LOAD = """
import json, sys, time, torch
given = json.loads(sys.argv[1])
torch.set_num_threads(given["threads"])
start = time.perf_counter()
from mnemos.attention.models import load
model = load(given["model"], decode_weights=given["weights"], compile=given["compile"])
prompt = model.template.encode([{"role": "user", "content": "Who are you?"}], model.tokenizer)
model.decoder.forward(prompt, model.decoder.new_cache(64 + len(prompt))).argmax()
print(time.perf_counter() - start)
"""


class _Runner:
    """Times a prompt's prefill and the tokens decoded after it."""

    def __init__(self, rival: Greedy) -> None:
        self._of = rival
        self.prefill_s: list[float] = []
        self.decode_s: list[float] = []

    def run(self, prompt: list[int], decode_tokens: int, *, keep: bool) -> None:
        start = time.perf_counter()
        token = self._of.prefill(prompt)
        middle = time.perf_counter()
        for _ in range(decode_tokens):
            token = self._of.decode(token)
        end = time.perf_counter()
        if keep:
            self.prefill_s.append(middle - start)
            self.decode_s.append(end - middle)


def run(
    name_or_path: str | None = None,
    *,
    weights: str | None = None,
    compile: bool | None = None,
    rival: str | None = None,
    threads: int | None = None,
    repetitions: int = 3,
    prefill_tokens: int = PREFILL_TOKENS,
    decode_tokens: int = DECODE_TOKENS,
    drift_tokens: int = DRIFT_TOKENS,
) -> dict[str, Any]:
    """Medians over interleaved repetitions, JSON-able: tokens per second, ours over a rival's as ratios.

    transformers runs in bf16 with eager attention. `decode_ratio` and `prefill_ratio` are those of what
    `load` picks for `weights` and `compile`; `formats` has each format of decode weights, with its drift:
    what it loses, in nats per token, on a fixed text; `same_dtype` is bf16 throughout, as transformers. With
    the rival `llamacpp`, `decode_vs_llamacpp` and `prefill_vs_llamacpp` compare with llama.cpp on the same
    GGUF file. `load_s` is from after `import torch` to the first token of a short prompt in a new process.
    Raises UsageError when a rival is not installed or there are no kernels for `weights`.
    """
    if rival not in (None, LLAMA_CPP):
        raise UsageError(f"unknown rival '{rival}'; use {LLAMA_CPP}")
    if threads is not None:
        torch.set_num_threads(threads)
    picked = _picked(weights, compile)
    config, loaded, source, _ = load_weights(name_or_path)
    path = weights_path(resolve_name(name_or_path))
    assert path is not None, "the weights have just been read"
    capacity, bf16 = prefill_tokens + decode_tokens, torch.bfloat16
    rivals = {"rival": with_transformers(config, loaded, path)}
    if rival == LLAMA_CPP:
        rivals[LLAMA_CPP] = with_llama_cpp(path, capacity)
    decoders = {"same_dtype": Decoder(config, loaded, dtype=bf16, decode_dtype=bf16)}
    for name in {picked: None} | dict.fromkeys(_formats(compile)):
        form = "auto" if name == "compiled" else name.removeprefix("compiled_")
        decoders[name] = make_decoder(config, loaded, "auto", form, name.startswith("compiled"), "cpu")
    text = Tokenizer(source, vocab_size=config.vocab_size).encode(DRIFT_TEXT)[:drift_tokens]
    exact = _exact_loss(Decoder(config, loaded, dtype=torch.float32), text)
    drift = {name: _loss(decoder, text) - exact for name, decoder in decoders.items()}
    prompt = torch.randint(
        0, config.vocab_size, (prefill_tokens,), generator=torch.Generator().manual_seed(0)
    ).tolist()
    runners = {name: _Runner(each) for name, each in rivals.items()}
    runners |= {name: _Runner(_ours(decoder, capacity)) for name, decoder in decoders.items()}
    prefill_dtype = decoders[picked].dtype
    del loaded, rivals
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
    against = {}
    if LLAMA_CPP in runners:
        against = {
            "decode_vs_llamacpp": round(decode[picked] / decode[LLAMA_CPP], 3),
            "prefill_vs_llamacpp": round(prefill[picked] / prefill[LLAMA_CPP], 3),
            "llamacpp_decode_tokens_per_s": round(decode[LLAMA_CPP], 2),
            "llamacpp_prefill_tokens_per_s": round(prefill[LLAMA_CPP], 1),
        }
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
        **against,
        "load_s": round(_load_s(name_or_path, weights, compile, repetitions), 3),
        "rival_prefill_tokens_per_s": round(prefill["rival"], 1),
        "rival_decode_tokens_per_s": round(decode["rival"], 2),
        "same_dtype": measured.pop("same_dtype"),
        "formats": measured,
    }


def _picked(weights: str | None, compile: bool | None) -> str:
    """The name, among `formats`, of what `load` picks."""
    name = decode_name("auto", weights) or "auto"
    if name in PACKED and kernels(compile) is not None:
        return "compiled" if name == "auto" else f"compiled_{name}"
    step_format = pick_formats("auto", weights)[2]
    return "bf16" if step_format == "plain" else step_format


def _formats(compile: bool | None) -> list[str]:
    with_torch = ["bf16", *(["int8"] if has_int8() else []), *(["int4"] if has_int8() and has_int4() else [])]
    return with_torch if kernels(compile) is None else [*with_torch, "compiled", "compiled_int8"]


def _exact_loss(decoder: Decoder, text: list[int]) -> float:
    """Loss per token of a text that is read at once, in nats."""
    rows = decoder.forward_all(text[:-1], decoder.new_cache(len(text)))
    return float(torch.nn.functional.cross_entropy(rows, torch.tensor(text[1:])))


def _loss(decoder: Decoder, text: list[int]) -> float:
    """Loss per token of a text decoded one token at a time, in nats."""
    cache = decoder.new_cache(len(text))
    rows = torch.stack([decoder.forward([token], cache) for token in text[:-1]])
    return float(torch.nn.functional.cross_entropy(rows, torch.tensor(text[1:])))


def _ours(decoder: Decoder, capacity: int) -> Greedy:
    cache = decoder.new_cache(capacity)

    def prefill(prompt: list[int]) -> int:
        cache.truncate(0, 0)
        return int(decoder.forward(prompt, cache).argmax())

    return Greedy(prefill, lambda token: int(decoder.forward([token], cache).argmax()))


def _load_s(name_or_path: str | None, weights: str | None, compile: bool | None, repetitions: int) -> float:
    """The median of new processes, in seconds. Raises UsageError when one fails."""
    given = {"model": name_or_path, "weights": weights, "compile": compile}
    command = [sys.executable, "-c", _LOAD, json.dumps(given | {"threads": torch.get_num_threads()})]
    taken = []
    for _ in range(repetitions):
        done = subprocess.run(command, capture_output=True, text=True, timeout=_LOAD_S, check=False)
        if done.returncode:
            raise UsageError(f"loading in a new process failed: {done.stderr.strip().splitlines()[-1:]}")
        taken.append(float(done.stdout))
    return statistics.median(taken)
