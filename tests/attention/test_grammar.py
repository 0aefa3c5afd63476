"""Decoding by a grammar: the mask and what the sampler does with it, over a byte-level vocabulary."""

import pytest
import tokenizers
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mnemos.attention.grammar import Grammar, check_grammar, quoted, tag_rule
from mnemos.attention.sampling import Sampler, Sampling
from mnemos.attention.tokenizer import Tokenizer
from mnemos.attention.tokenizer_source import TokenizerSource
from mnemos.errors import InvalidSchemaError, ModelError

LETTERS = st.characters(exclude_categories=["Cs", "Cc"]) | st.sampled_from('\n\t\r"\\')
SIZE = 260  # two rows of the embedding belong to no token


@pytest.fixture(scope="module")
def letters() -> Tokenizer:
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: index for index, token in enumerate(["<end>", "[CALL]", *alphabet])}
    built = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocab, merges=[]))
    built.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    built.decoder = tokenizers.decoders.ByteLevel()
    built.add_special_tokens([tokenizers.AddedToken(name, special=True) for name in ("<end>", "[CALL]")])
    return Tokenizer(TokenizerSource(built.to_str(), None, (0,), False, None), vocab_size=SIZE)


def allowed(letters: Tokenizer, lark: str, text: str) -> str:
    """Every single character that may follow `text`, sorted; `$` for the end of the turn."""
    mask = Grammar(letters, lark, vocab_size=SIZE).mask()
    tokens: list[int] = []
    for token in letters.encode(text, special=True):
        assert mask.allowed(tokens)[token], letters.decode(tokens)
        tokens.append(token)
    ids = mask.allowed(tokens).nonzero()[:, 0].tolist()
    assert mask.is_finished(tokens) == (ids == [0])
    return "".join(sorted("$" if token == 0 else letters.decode([token], special=True) for token in ids))


def test_a_schema_says_what_may_follow(letters: Tokenizer) -> None:
    lark = 'start: %json {"enum": ["yes", "no", 12]}'
    assert allowed(letters, lark, "") == '"1'
    assert allowed(letters, lark, '"') == "ny"
    assert allowed(letters, lark, "12") == "$"


def test_a_control_token_is_named_by_its_id(letters: Tokenizer) -> None:
    tag = tag_rule(letters, "[CALL]", vocab_size=SIZE)
    assert tag == "<[1]>"
    assert tag_rule(letters, "<tool_call>", vocab_size=SIZE) == '"<tool_call>"'
    assert allowed(letters, f"start: {tag} /x/", "") == "[CALL]"
    assert allowed(letters, f"start: {tag} /x/", "[CALL]") == "x"
    assert "[CALL]" not in allowed(letters, "start: /(.|\\n)*/", "a"), "words hold no control token"


def test_rows_without_a_token_and_consumed_masks(letters: Tokenizer) -> None:
    mask = Grammar(letters, "start: /a*/", vocab_size=SIZE).mask()
    assert mask.allowed([]).shape == (SIZE,)
    assert mask.allowed([]).sum() == 2
    (a,) = letters.encode("a")
    assert mask.allowed([a, a, a]).sum() == 2
    wrong = Grammar(letters, "start: /a*/", vocab_size=SIZE).mask()
    with pytest.raises(ModelError, match="grammar"):
        wrong.allowed(letters.encode("b"))


def test_masks_of_one_grammar_are_apart(letters: Tokenizer) -> None:
    grammar = Grammar(letters, 'start: "ab"', vocab_size=SIZE)
    first, second = grammar.mask(), grammar.mask()
    (a, b) = letters.encode("ab")
    assert first.allowed([a])[b]
    assert second.allowed([])[a]


@settings(max_examples=60, deadline=None)
@given(
    text=st.text(st.characters(exclude_categories=["Cs", "Cc"]) | st.sampled_from('\n\t\r"\\'), max_size=12)
)
def test_any_text_can_be_quoted(letters: Tokenizer, text: str) -> None:
    if text:
        mask = Grammar(letters, f"start: {quoted(text)}", vocab_size=SIZE).mask()
        tokens = letters.encode(text)
        assert all(mask.allowed(tokens[:at])[token] for at, token in enumerate(tokens))
        assert mask.is_finished(tokens)


def test_what_can_not_be_compiled_is_named(letters: Tokenizer) -> None:
    with pytest.raises(InvalidSchemaError, match=r"tool f can't be decoded by a grammar \(.*not"):
        check_grammar('start: %json {"not": {}}', "tool f")
    with pytest.raises(InvalidSchemaError):
        Grammar(letters, "start: nowhere", vocab_size=SIZE)
    check_grammar('start: %json {"type": "object"}', "tool f")


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=2.0, top_k=3, top_p=0.9, seed=1)])
def test_the_sampler_draws_from_what_is_allowed(sampling: Sampling) -> None:
    logits = torch.linspace(5, -5, 64)
    only = torch.zeros(64, dtype=torch.bool)
    only[[40, 50]] = True
    sampler = Sampler(sampling)
    assert {sampler(logits, [40, 41], only) for _ in range(20)} <= {40, 50}
    with pytest.raises(ModelError):
        sampler(logits, [], torch.zeros(64, dtype=torch.bool))
