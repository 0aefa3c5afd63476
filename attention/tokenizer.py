"""Text to token ids and back, through the `tokenizers` library.

Text that people wrote is never allowed to become control tokens: `encode` reads `<|im_start|>` as the twelve
characters it is, unless the caller vouches for the text with `special=True`.
"""

import json
import re
import threading
from collections.abc import Iterable
from functools import partial
from typing import Any

import tokenizers

from mnemos.attention.tokenizer_source import TokenizerSource
from mnemos.errors import InvalidTokenizerError

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class Tokenizer:
    """One checkpoint's tokenizer. Safe to share between threads."""

    def __init__(self, source: TokenizerSource, *, vocab_size: int) -> None:
        """`vocab_size` is the number of embedding rows; ids at or above it would have no embedding.

        Raises InvalidTokenizerError when the definition can't be read or is larger than the embedding.
        """
        self.source = source
        self.bos_id = source.bos_id
        self.add_bos = source.add_bos
        self.eos_ids = frozenset(source.eos_ids)
        self._text_only = _text_only(source)
        self._with_control: tokenizers.Tokenizer | None = None
        self._lock = threading.Lock()
        self.size = max(self._text_only.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        if self.size > vocab_size:
            raise InvalidTokenizerError(
                f"the tokenizer has ids up to {self.size - 1}, the weights embed {vocab_size} tokens; "
                "they belong to different models"
            )
        added: dict[int, Any] = self._text_only.get_added_tokens_decoder()
        self.control_ids = frozenset(token for token, entry in added.items() if entry.special)
        names = sorted((added[token].content for token in self.control_ids), key=len, reverse=True)
        self._control_pattern = re.compile("|".join(map(re.escape, names)) or r"(?!)")

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """Token ids of `text`, without BOS. Control tokens in it are parsed only with `special=True`."""
        if special:
            return list(self._control_parser().encode(text, add_special_tokens=False).ids)
        ids = self._text_only.encode(text, add_special_tokens=False).ids
        # No merge makes a control token in any vocabulary we know; an odd one must not be the first.
        return [token for token in ids if token not in self.control_ids]

    def decode(self, ids: Iterable[int], *, special: bool = False) -> str:
        """The text of `ids`; control tokens are left out unless `special`. Broken UTF-8 becomes U+FFFD."""
        return str(self._text_only.decode(list(ids), skip_special_tokens=not special))

    def control_spans(self, text: str) -> list[tuple[int, int]]:
        """Where control tokens stand in `text`, as (start, end), were it parsed with `special=True`."""
        return [match.span() for match in self._control_pattern.finditer(text)]

    def id_of(self, token: str) -> int | None:
        """The id of a token by its exact name, or None."""
        found: int | None = self._text_only.token_to_id(token)
        return found

    def _control_parser(self) -> tokenizers.Tokenizer:
        with self._lock:
            if self._with_control is None:
                self._with_control = _build(self.source.definition)
            return self._with_control


class Detokenizer:
    """Turns ids into text as they arrive, holding back bytes of a character that is not whole yet.

    The pieces handed out, `finish` included, join to `Tokenizer.decode` of all the ids, with control tokens
    among them if `special`.
    """

    def __init__(self, tokenizer: Tokenizer, *, special: bool = False) -> None:
        self._decode = partial(tokenizer.decode, special=True) if special else tokenizer.decode
        self._context: list[int] = []  # ids whose text is out, decoded again so that spacing rules see them
        self._ids: list[int] = []  # ids that came after those
        self._shown = 0  # characters of the decoded context + ids that are out

    def push(self, token: int) -> str:
        """The text that `token` completes; empty while a character is still incomplete."""
        self._ids.append(token)
        text = self._decode(self._context + self._ids)
        # Only bytes of an unfinished character, shown as trailing U+FFFD, can still change.
        whole = text.rstrip(_REPLACEMENT)
        piece = text[self._shown : len(whole)]
        self._shown += len(piece)
        if len(whole) == len(text):
            self._context, self._ids = self._ids, []
            self._shown = len(self._decode(self._context))
        return piece

    def finish(self) -> str:
        """What was held back: U+FFFD for a character that never became whole."""
        text = self._decode(self._context + self._ids)
        piece = text[self._shown :]
        self._shown = len(text)
        return piece


def _text_only(source: TokenizerSource) -> tokenizers.Tokenizer:
    """A tokenizer that parses no control token: neither one flagged so, nor one the template uses."""
    built = _build(source.definition)
    added: dict[int, Any] = built.get_added_tokens_decoder()
    template = source.chat_template or ""
    if any(not entry.special and entry.content in template for entry in added.values()):
        definition = json.loads(source.definition)
        for entry in definition["added_tokens"]:
            entry["special"] = entry["special"] or entry["content"] in template
        built = _build(json.dumps(definition))
    built.encode_special_tokens = True
    return built


def _build(definition: str) -> tokenizers.Tokenizer:
    try:
        built = tokenizers.Tokenizer.from_str(definition)
    # The library raises bare Exception for every malformed definition.
    except Exception as error:
        raise InvalidTokenizerError(
            f"the tokenizer can't be read ({error}); fetch the model again"
        ) from error
    built.no_truncation()
    built.no_padding()
    return built
