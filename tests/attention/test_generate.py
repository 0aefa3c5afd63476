"""Generation with a real decoder over a tiny random checkpoint, and the holding back of stop texts."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mnemos.attention.generate import Generation, StopReason, generate, text_pieces
from mnemos.attention.models import LanguageModel, load
from mnemos.attention.sampling import Sampling
from mnemos.attention.tokenizer import Detokenizer

PROMPT = [1, 77, 264, 31, 9]
NO_EOS: frozenset[int] = frozenset()


@pytest.fixture
def model(hf_directory: Path, cache: Path) -> LanguageModel:
    return load(hf_directory, dtype="fp32")


Start = Callable[..., Generation]


@pytest.fixture
def start(model: LanguageModel) -> Start:
    def begin(sampling: Sampling | None = None, *, capacity: int = 64, **options: object) -> Generation:
        cache = model.decoder.new_cache(capacity)
        logits = model.decoder.forward(PROMPT, cache)
        given = {"eos_ids": NO_EOS} | options
        return generate(model.decoder, cache, logits, sampling or Sampling(max_tokens=8), **given)  # type: ignore[arg-type]

    return begin


def test_greedy_equals_reading_everything_anew(model: LanguageModel, start: Start) -> None:
    tokens = list(start(Sampling(max_tokens=12)))
    read = list(PROMPT)
    for token in tokens:
        assert token == int(model.decoder.forward(read, model.decoder.new_cache(64)).argmax())
        read.append(token)


def test_max_tokens(start: Start) -> None:
    generation = start()
    assert list(generation) == generation.tokens
    assert len(generation.tokens) == 8
    assert generation.stop_reason is StopReason.LENGTH
    assert generation.pending == generation.tokens[-1:]
    assert list(generation) == []


def test_eos_ends_the_reply_and_is_no_part_of_it(start: Start) -> None:
    tokens = list(start())
    position = next(i for i, token in enumerate(tokens) if token not in tokens[:i] and i >= 2)
    generation = start(eos_ids=frozenset({tokens[position]}))
    assert list(generation) == tokens[:position]
    assert generation.stop_reason is StopReason.EOS
    assert generation.pending == []


def test_a_full_window_ends_the_reply(start: Start) -> None:
    generation = start(capacity=len(PROMPT) + 3)
    assert len(list(generation)) == 4  # three run through the model, the fourth only drawn
    assert generation.stop_reason is StopReason.WINDOW


def test_the_caller_can_stop_it(start: Start) -> None:
    asked = iter([False, False, False, True])
    generation = start(should_stop=lambda: next(asked))
    assert list(generation) == generation.tokens
    assert generation.stop_reason is StopReason.INTERRUPTED
    assert len(generation.tokens) == 3


def test_pending_tells_what_the_cache_lacks(model: LanguageModel) -> None:
    cache = model.decoder.new_cache(64)
    logits = model.decoder.forward(PROMPT, cache)
    generation = generate(model.decoder, cache, logits, Sampling(max_tokens=5), eos_ids=NO_EOS)
    list(generation)
    assert cache.length == len(PROMPT) + 5 - len(generation.pending)


def test_repetition_penalty_counts_history_and_the_reply(start: Start) -> None:
    tokens = list(start(Sampling(max_tokens=20, repetition_penalty=1e6), history=PROMPT))
    assert len(set(tokens) | set(PROMPT)) == len(tokens) + len(PROMPT)


class _Script(Generation):
    """A generation that follows a script of tokens; text_pieces sees nothing else of it."""

    def __init__(self, tokens: list[int]) -> None:
        self.stop_reason = None
        self._script: Iterator[int] = iter(tokens)

    def __next__(self) -> int:
        if self.stop_reason is None:
            return next(self._script)
        raise StopIteration


@settings(max_examples=150, deadline=None)
@given(
    text=st.text("abc\né🙂", max_size=30),
    stop=st.lists(st.text("abc\n", min_size=1, max_size=4), max_size=3),
)
def test_text_ends_before_the_first_stop_text(byte_per_token: "Bytes", text: str, stop: list[str]) -> None:
    generation = _Script(list(text.encode()))
    pieces = list(text_pieces(generation, Detokenizer(byte_per_token), stop))  # type: ignore[arg-type]
    read = next(
        (text[:end] for end in range(len(text) + 1) if any(each in text[:end] for each in stop)), text
    )
    cut = min((read.find(each) for each in stop if each in read), default=len(text))
    assert "".join(pieces) == text[:cut]
    assert all(pieces)
    assert (generation.stop_reason is StopReason.TEXT) == (cut < len(text))


def test_text_is_not_held_back_without_need(byte_per_token: "Bytes") -> None:
    pieces = text_pieces(_Script(list(b"one two")), Detokenizer(byte_per_token), ["\nUser"])  # type: ignore[arg-type]
    assert next(pieces) == "o"
    assert list(text_pieces(_Script(list(b"a\nUx")), Detokenizer(byte_per_token), ["\nUser"])) == [  # type: ignore[arg-type]
        "a",
        "\nUx",
    ]


class Bytes:
    """The smallest tokenizer there is: a token per byte."""

    def decode(self, ids: list[int]) -> str:
        return bytes(ids).decode(errors="replace")


@pytest.fixture(scope="module")
def byte_per_token() -> Bytes:
    return Bytes()
