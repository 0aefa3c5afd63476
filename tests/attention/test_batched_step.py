"""Steps of several conversations together against the same steps one by one."""

import copy
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mnemos.attention import compiled
from mnemos.attention.batched_step import batch_logits, decode_batch
from mnemos.attention.decoder import Collect, Decoder
from mnemos.attention.generate import generate
from mnemos.attention.hf_loader import load_directory
from mnemos.attention.kv import KVCache
from mnemos.attention.models import LanguageModel, load
from mnemos.attention.sampling import Sampling
from mnemos.attention.shared_decoder import SharedDecoder
from mnemos.attention.step_weights import has_int4, has_int8
from mnemos.errors import ContextOverflowError

FAMILIES = ("llama2", "llama3", "mistral", "qwen2", "qwen3", "gemma3", "smollm3")


def tokens_of(count: int, seed: int) -> list[int]:
    return torch.randint(3, 288, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def conversations(decoder: Decoder) -> list[KVCache]:
    """Caches of several lengths: fresh, behind a prefix, with memories in view, weighed and not."""
    made = []
    for index, (count, temperature) in enumerate(
        [(1, None), (3, 1.0), (40, 0.7), (17, None), (29, 0.8), (37, 1.0)]
    ):
        cache = decoder.new_cache(120)
        cache.k.fill_(torch.nan)
        cache.v.fill_(torch.nan)
        if temperature is not None:
            source = decoder.new_cache(20)
            Decoder.prefill(decoder, tokens_of(20, 90 + index), source)
            cache.load_prefix(source.snapshot(0, 4))
            spans = [source.snapshot(4, 13), source.snapshot(13, 20)]
            cache.page_in(spans, temperature=temperature, mass_scale=0.5 + temperature / 2)
        Decoder.prefill(decoder, tokens_of(count, index), cache)
        made.append(cache)
    return made


def twin(cache: KVCache) -> KVCache:
    other = copy.copy(cache)
    other.k, other.v = cache.k.clone(), cache.v.clone()
    other.layer_k, other.layer_v = other.k.unbind(), other.v.unbind()
    return other


def both_ways(decoder: Decoder, steps: int) -> tuple[Tensor, Tensor]:
    """Logits `[steps, rows, vocab]` of rows one by one and together."""
    alone = conversations(decoder)
    together = [twin(cache) for cache in alone]
    found: tuple[list[Tensor], list[Tensor]] = ([], [])
    for step in range(steps):
        tokens = tokens_of(len(alone), 1000 + step)
        pairs = zip(tokens, alone, strict=True)
        found[0].append(torch.stack([Decoder.forward(decoder, [token], cache) for token, cache in pairs]))
        with torch.inference_mode():
            found[1].append(batch_logits(decoder, decode_batch(decoder, tokens, together)))
    assert [c.length for c in alone] == [c.length for c in together]
    assert [c.next_position for c in alone] == [c.next_position for c in together]
    return torch.stack(found[0]), torch.stack(found[1])


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("form", ["plain", "int8"])
def test_together_is_what_each_is_alone(
    name: str, form: Any, family: Callable[[str], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if form == "int8" and not has_int8():
        pytest.skip("no FBGEMM in this build of PyTorch")
    monkeypatch.setenv("MNEMOS_CACHE_DIR", str(tmp_path))
    config, weights, _, _ = load_directory(family(name).directory)
    alone, together = both_ways(Decoder(config, weights, step_format=form), 8)
    room = 1e-4 if form == "plain" else 2e-3
    assert (alone - together).abs().max() < room * alone.abs().max()
    if form == "plain":
        assert torch.equal(alone.argmax(-1), together.argmax(-1))


@pytest.mark.parametrize("weights", ["bf16", "int8", "int4"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_every_format_of_weights(hf_directory: Path, cache: Path, dtype: str, weights: str) -> None:
    if weights != "bf16" and not (has_int8() and has_int4()):
        pytest.skip("no kernels for it here")
    decoder = load(hf_directory, dtype=dtype, decode_weights=weights, compile=False).decoder
    alone, together = both_ways(decoder, 6)
    shares = (torch.softmax(rows, -1) for rows in (alone, together))
    narrow = dtype == "bf16" or weights != "int8"
    assert (next(shares) - next(shares)).abs().sum(-1).max() / 2 < (
        0.25 if dtype == "bf16" else 0.1 if narrow else 2e-3
    )


@pytest.mark.parametrize(
    ("name", "weights"), [("llama3", "int8"), *((name, "int4") for name in FAMILIES if name != "llama2")]
)
def test_compiled_rows_of_several_caches_are_equal_to_the_last_bit(
    name: str, weights: Any, family: Callable[[str], Any], tmp_path: Path
) -> None:
    library = compiled.kernels()
    if library is None:
        pytest.skip("no C compiler here")
    config, loaded, _, _ = load_directory(family(name).directory)
    for threads in (1, 3):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            decoder = SharedDecoder(config, loaded, library=library, packed=weights)
            alone = conversations(decoder)
            together = [twin(cache) for cache in alone]
            for step in range(6):
                rows = [tokens_of(1 + (step + index) % 3, 7 * step + index) for index in range(len(alone))]
                one = [
                    torch.stack([Decoder.forward(decoder, [token], cache) for token in row])
                    for row, cache in zip(rows, alone, strict=True)
                ]
                assert decoder.compiled is not None
                many = decoder.compiled.forward_many(decoder, list(zip(rows, together, strict=True)))
                assert all(torch.equal(a, b) for a, b in zip(one, many, strict=True))
            for a, b in zip(alone, together, strict=True):
                assert torch.equal(a.k[:, :, : a.length], b.k[:, :, : b.length])
        finally:
            torch.set_num_threads(before)


def test_a_cache_in_two_rows_is_refused(hf_directory: Path, cache: Path) -> None:
    decoder = load(hf_directory, dtype="fp32").decoder
    shared = decoder.new_cache(8)
    with pytest.raises(ValueError, match="its own"):
        decode_batch(decoder, [5, 6], [shared, shared])


def test_a_full_cache_is_no_matter_of_the_others(hf_directory: Path, cache: Path) -> None:
    decoder = load(hf_directory, dtype="fp32").decoder
    assert isinstance(decoder, SharedDecoder)
    full, open_, bad = (decoder.new_cache(size) for size in (4, 9, 9))
    for each in (full, open_, bad):
        decoder.prefill([5, 6, 7, 8], each)
    outcomes = decoder._step_together([([9], full), ([9], open_), ([100_000], bad)])
    assert isinstance(outcomes[0], ContextOverflowError)
    assert isinstance(outcomes[1], Tensor)
    assert isinstance(outcomes[2], Exception)
    assert [each.length for each in (full, open_, bad)] == [4, 5, 4]
    alone = decoder.new_cache(9)
    decoder.prefill([5, 6, 7, 8], alone)
    assert torch.allclose(outcomes[1][0], decoder.forward([9], alone), atol=1e-4)


class _InCompany(SharedDecoder):
    """Takes everybody for company, so that long prompts always come in pieces."""

    def as_pieces(self, size: int) -> "_InCompany":
        self.scheduler.piece_tokens = size
        self.scheduler.is_shared = lambda: True  # type: ignore[method-assign]
        return self


def test_a_prompt_in_pieces_is_read_as_a_whole_one(family: Callable[[str], Any]) -> None:
    for name in ("qwen2", "gemma3"):
        config, weights, _, _ = load_directory(family(name).directory)
        whole, cut = Decoder(config, weights), _InCompany(config, weights).as_pieces(7)
        tokens = tokens_of(45, 5)
        collects, logits, caches = [], [], []
        for decoder in (whole, cut):
            cache = conversations(whole)[2]
            asked = Collect(query_layers=(1, 2), hidden_layers=(2,))
            length, position = cache.length, cache.next_position
            decoder.probe(tokens, cache, asked)
            assert (cache.length, cache.next_position) == (length, position)
            mass = Collect(memory_mass=True)
            logits.append(decoder.forward(tokens, cache, collect=mass))
            collects.append((asked, mass))
            caches.append(cache)
        assert torch.allclose(logits[0], logits[1], atol=1e-3)
        for layer in (1, 2):
            assert torch.allclose(collects[0][0].queries[layer], collects[1][0].queries[layer], atol=1e-3)
        assert torch.allclose(collects[0][0].hidden[2], collects[1][0].hidden[2], atol=1e-3)
        assert collects[0][1].mass is not None
        assert collects[1][1].mass is not None
        assert torch.allclose(collects[0][1].mass, collects[1][1].mass, atol=1e-3)
        assert caches[0].length == caches[1].length
        room = cut.new_cache(30)
        with pytest.raises(ContextOverflowError):
            cut.prefill(tokens, room)
        assert room.length == 0, "all of a prompt or none of it"


def reply_of(model: LanguageModel, prompt: Sequence[int], count: int) -> list[int]:
    cache = model.decoder.new_cache(len(prompt) + count)
    logits = model.decoder.forward(prompt, cache)
    sampling = Sampling(max_tokens=count, repetition_penalty=1.3)
    return list(generate(model.decoder, cache, logits, sampling, eos_ids=frozenset()))


@pytest.mark.parametrize("compile", [False, None])
def test_replies_of_threads_are_those_of_each_alone(
    hf_directory: Path, cache: Path, compile: bool | None
) -> None:
    model = load(
        hf_directory, dtype="fp32", decode_weights="int8" if compile is None else None, compile=compile
    )
    assert isinstance(model.decoder, SharedDecoder)
    prompts = [tokens_of(5 + 7 * index, index) for index in range(9)]
    alone = [reply_of(model, prompt, 40) for prompt in prompts]
    found: dict[int, list[int]] = {}
    start = threading.Barrier(len(prompts))

    def talk(index: int) -> None:
        start.wait()
        found[index] = reply_of(model, prompts[index], 40)

    threads = [threading.Thread(target=talk, args=(index,)) for index in range(len(prompts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [found[index] for index in range(len(prompts))] == alone
    assert model.decoder.scheduler.largest > 1, "some of it went together"


@pytest.mark.model
def test_the_default_model_answers_in_company_as_alone(language_model: LanguageModel) -> None:
    decoder = language_model.decoder
    texts = ["The lighthouse keeper said", "My sister works as a", "Two and two", "In winter the"]
    alone = [decoder.new_cache(40) for _ in texts]
    tokens = []
    for text, cache in zip(texts, alone, strict=True):
        tokens.append(int(decoder.forward(language_model.tokenizer.encode(text), cache).argmax()))
    together = [twin(cache) for cache in alone]
    assert isinstance(decoder, SharedDecoder)
    for _ in range(4):
        one = torch.stack([decoder.forward([t], c) for t, c in zip(tokens, alone, strict=True)])
        found = decoder._step_together([([t], c) for t, c in zip(tokens, together, strict=True)])
        many = torch.cat([rows for rows in found if isinstance(rows, Tensor)])
        assert (one - many).abs().max() < 0.01 * one.abs().max()
        tokens = one.argmax(-1).tolist()
