"""Constrained decoding by grammar, through the `llguidance` library (imported when a grammar is first used).

Grammars are in its dialect of Lark, with JSON schemas inside (`%json {...}`).
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from mnemos.attention.tokenizer import Tokenizer
from mnemos.errors import InvalidSchemaError, ModelError

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer
    from torch import Tensor

_ALLOWED = 200  # what the library writes for an allowed token; 0 for another
_readers: "WeakKeyDictionary[Tokenizer, LLTokenizer]" = WeakKeyDictionary()


def check_grammar(lark: str, what: str) -> None:
    """Raises `InvalidSchemaError`, naming `what`, when the grammar can't be compiled."""
    from llguidance import LLMatcher

    is_error, messages = LLMatcher.validate_grammar_with_warnings(LLMatcher.grammar_from_lark(lark))
    if is_error:
        reason = messages[0].splitlines()[0].partition("failed to compile JSON schema: ")
        raise InvalidSchemaError(f"{what} can't be decoded by a grammar ({reason[2] or reason[0]})")


class Grammar:
    """A compiled grammar over one tokenizer's vocabulary. `mask()` begins a generation by it."""

    def __init__(self, tokenizer: Tokenizer, lark: str, *, vocab_size: int) -> None:
        """`vocab_size` is the number of logits. Raises `InvalidSchemaError`."""
        from llguidance import LLMatcher

        self._start = LLMatcher(_reader(tokenizer, vocab_size), LLMatcher.grammar_from_lark(lark))
        if self._start.is_error():
            raise InvalidSchemaError(f"a grammar can't be compiled ({self._start.get_error()})")

    def mask(self) -> "GrammarMask":
        return GrammarMask(self._start.deep_copy())


class GrammarMask:
    """A `LogitMask`: where one generation stands in its grammar."""

    def __init__(self, matcher: "LLMatcher") -> None:
        self._matcher = matcher
        self._read = 0  # tokens that the matcher has seen

    def allowed(self, tokens: Sequence[int]) -> "Tensor":
        """Raises ModelError when the grammar's own limits are exceeded."""
        import torch  # late: a tool's schema is checked without it

        self._catch_up(tokens)
        bias = bytearray(self._matcher.compute_logit_bias())
        self._check()
        return torch.frombuffer(bias, dtype=torch.uint8) == _ALLOWED  # [vocab]

    def is_finished(self, tokens: Sequence[int]) -> bool:
        self._catch_up(tokens)
        self._check()
        return self._matcher.is_stopped()

    def _catch_up(self, tokens: Sequence[int]) -> None:
        fresh = list(tokens[self._read :])
        if fresh:
            self._matcher.consume_tokens(fresh)
            self._read = len(tokens)

    def _check(self) -> None:
        if self._matcher.is_error():
            raise ModelError(
                "the reply's grammar grew past its limits; use a simpler output type or fewer tools "
                f"({self._matcher.stop_reason()})"
            )


def tag_rule(tokenizer: Tokenizer, tag: str, *, vocab_size: int) -> str:
    """A tag such as `[TOOL_CALLS]` as a grammar names it: by its control token where it is one."""
    token = tokenizer.id_of(tag)
    if token is not None and _reader(tokenizer, vocab_size).is_special_token(token):
        return f"<[{token}]>"
    return quoted(tag)


def quoted(text: str) -> str:
    """`text` as a literal of a grammar."""
    escapes: Mapping[str, str] = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\t": "\\t", "\r": "\\r"}
    return '"' + "".join(escapes.get(letter, letter) for letter in text) + '"'


def _reader(tokenizer: Tokenizer, vocab_size: int) -> "LLTokenizer":
    """The vocabulary as the library reads it; 0.3 s for 50,000 tokens, so it is kept."""
    found = _readers.get(tokenizer)
    if found is None:
        from llguidance import LLTokenizer

        found = LLTokenizer(
            tokenizer.source.definition, n_vocab=vocab_size, eos_token=sorted(tokenizer.eos_ids)
        )
        _readers[tokenizer] = found
    return found
