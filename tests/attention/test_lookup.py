"""Looking ahead changes no token of a reply, and the cache never counts what was only guessed."""

from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from mnemos.attention.compiled import kernels
from mnemos.attention.config import ModelConfig
from mnemos.attention.generate import Generation, StopReason, generate
from mnemos.attention.kv import KVCache
from mnemos.attention.lookup import LONGEST, SHORTEST, DraftIndex, Lookahead
from mnemos.attention.models import LanguageModel, load
from mnemos.attention.sampling import Sampling

unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
PROMPT = [1, 77, 264, 31, 9]


@pytest.fixture
def model(hf_directory: Path, cache: Path) -> LanguageModel:
    if kernels() is None:
        pytest.skip("no C compiler here: nothing looks ahead")
    return load(hf_directory, compile=True)


class Scripted:
    """A decoder that always goes on with the next token of a script, and counts its calls."""

    draft_rows = 8

    def __init__(self, script: list[int], vocab: int = 50) -> None:
        self.script, self.vocab, self.calls = script, vocab, 0

    def forward(self, tokens: list[int], cache: KVCache) -> Tensor:
        return self.step_rows(tokens, cache)[-1]

    def step_rows(self, tokens: list[int], cache: KVCache) -> Tensor:
        self.calls += 1
        start = cache.length
        cache.reserve(len(tokens))
        cache.advance(len(tokens))
        assert tokens[0] == self.script[start]
        return torch.stack([self._row(start + i + 1) for i in range(len(tokens))])

    def _row(self, place: int) -> Tensor:
        row = torch.zeros(self.vocab)
        row[self.script[place % len(self.script)]] = 1.0
        return row


def _cache(config: ModelConfig) -> KVCache:
    return KVCache(config, 64, torch.float32)


def walk(script: list[int], cache: KVCache, texts: list[list[int]]) -> tuple[Scripted, Lookahead]:
    decoder = Scripted(script)
    ahead = Lookahead(decoder, cache, texts)  # type: ignore[arg-type]
    for place, token in enumerate(script[:-1]):
        assert int(ahead.step(token).argmax()) == script[place + 1]
        assert cache.length == cache.next_position == place + 1
    return decoder, ahead


def test_a_quoted_text_is_read_in_a_few_calls(tiny_config: ModelConfig) -> None:
    text = torch.randperm(49, generator=torch.Generator().manual_seed(0))[:40].tolist()
    decoder, ahead = walk(text, _cache(tiny_config), [text])
    assert ahead.accepted >= 30
    assert decoder.calls <= 10


def test_a_text_that_repeats_nothing_drafts_nothing(tiny_config: ModelConfig) -> None:
    decoder, ahead = walk(list(range(40)), _cache(tiny_config), [])
    assert (ahead.drafted, decoder.calls) == (0, 39)


def test_drafts_that_never_come_true_become_rare(tiny_config: ModelConfig) -> None:
    """Each pair of tokens was seen, but what follows is always another."""
    first = [token for pair in range(20) for token in (2 * pair, 2 * pair + 1, 40)]
    then = [token for pair in range(20) for token in (2 * pair, 2 * pair + 1, 41)]
    _, ahead = walk(then, _cache(tiny_config), [first])
    assert ahead.accepted == 0
    assert ahead.drafted <= 8


@unhurried
@given(
    texts=st.lists(st.lists(st.integers(0, 3), max_size=12), max_size=3),
    script=st.lists(st.integers(0, 3), min_size=1, max_size=40),
)
def test_any_script_is_followed(tiny_config: ModelConfig, texts: list[list[int]], script: list[int]) -> None:
    walk(script, _cache(tiny_config), texts)


@unhurried
@given(text=st.lists(st.integers(0, 4), max_size=30), last=st.lists(st.integers(0, 4), max_size=10))
def test_a_draft_is_what_followed_the_longest_run(text: list[int], last: list[int]) -> None:
    index = DraftIndex([text])
    for token in last:
        index.append(token)
    draft = index.draft(SHORTEST, 3)
    joined = [*text, *last]
    found: list[int] = []
    for length in range(LONGEST, SHORTEST - 1, -1):
        starts = [*range(len(text) - length), *range(len(text), len(joined) - length)]
        same = [at for at in starts if joined[at : at + length] == last[-length:]]
        if len(last) >= length and same:
            found = joined[same[-1] + length :][:3]
            break
    assert draft == found


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(max_tokens=60),
        Sampling(max_tokens=60, repetition_penalty=1.3),
        Sampling(max_tokens=60, temperature=0.7, seed=5),
        Sampling(max_tokens=60, temperature=1.0, top_p=0.9, repetition_penalty=1.1, seed=6),
    ],
)
def test_a_reply_is_the_same_with_and_without(model: LanguageModel, sampling: Sampling) -> None:
    first = _reply(model, sampling, None)
    text = [*PROMPT, *first.tokens]
    again = _reply(model, sampling, [text])
    assert again.lookahead is not None and first.lookahead is None
    assert again.tokens == first.tokens
    assert again.lookahead.accepted > 30
    assert torch.equal(first._cache.k[:, :, :60], again._cache.k[:, :, :60])
    # Half true: what was quoted up to there goes on in another way.
    astray = [*text[:30], *reversed(text[30:])]
    assert _reply(model, sampling, [astray]).tokens == first.tokens


def test_a_full_window_ends_it_at_the_same_token(model: LanguageModel) -> None:
    sampling = Sampling(max_tokens=60)
    first = _reply(model, sampling, None)
    text = [*PROMPT, *first.tokens]
    for capacity in range(len(PROMPT) + 1, len(PROMPT) + 20):
        found = _reply(model, sampling, [text], capacity=capacity)
        assert found.tokens == first.tokens[: capacity - len(PROMPT) + 1]
        assert found.stop_reason is StopReason.WINDOW


def test_what_was_only_guessed_is_overwritten_with_the_rest(model: LanguageModel) -> None:
    first = _reply(model, Sampling(max_tokens=40), None)
    found = _reply(model, Sampling(max_tokens=20), [[*PROMPT, *first.tokens]])
    cache = found._cache
    assert cache.used > cache.length
    cache.zero_()
    assert not cache.k.any() and not cache.v.any()


@pytest.mark.model
def test_on_the_default_model_quotes_are_the_same_and_faster(default_path: Path) -> None:
    if kernels() is None:
        pytest.skip("no C compiler here: nothing looks ahead")
    model = load(default_path)
    fact = "Anna moved to Lisbon in March 2021 and works as a marine biologist at the Vasco da Gama aquarium."
    words = f"Repeat this sentence three times: {fact}"
    prompt = model.template.encode([{"role": "user", "content": words}], model.tokenizer)
    replies = []
    for drafts in (None, [prompt]):
        cache = model.decoder.new_cache(200)
        logits = model.decoder.forward(prompt, cache)
        sampling = Sampling(max_tokens=60)
        reply = generate(
            model.decoder, cache, logits, sampling, eos_ids=model.tokenizer.eos_ids, drafts=drafts
        )
        replies.append((list(reply), reply.lookahead))
    assert replies[0][0] == replies[1][0]
    assert replies[1][1] is not None and replies[1][1].accepted > 10


def _reply(
    model: LanguageModel, sampling: Sampling, drafts: list[list[int]] | None, *, capacity: int = 80
) -> Generation:
    cache = model.decoder.new_cache(capacity)
    cache.k.zero_()
    cache.v.zero_()
    logits = model.decoder.forward(PROMPT, cache)
    reply = generate(model.decoder, cache, logits, sampling, eos_ids=frozenset(), drafts=drafts)
    list(reply)
    return reply
