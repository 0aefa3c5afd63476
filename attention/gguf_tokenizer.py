"""A `tokenizers` definition out of a GGUF file's metadata (format: ggml docs/gguf.md, `tokenizer.ggml.*`).

Byte-level BPE vocabularies (`tokenizer.ggml.model` = gpt2), with the pre-tokenizers below, and SentencePiece
ones (llama).
"""

import json
from collections.abc import Mapping
from enum import IntEnum
from typing import Any

from mnemos.attention.gguf_sentencepiece import sentencepiece_parts
from mnemos.attention.tokenizer_source import END_OF_TURN_NAMES, TokenizerSource
from mnemos.errors import InvalidTokenizerError


class TokenType(IntEnum):
    """`tokenizer.ggml.token_type`."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


_LLAMA3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2_WORDS = _LLAMA3_WORDS.replace(r"\p{N}{1,3}", r"\p{N}")


def _byte_level(use_regex: bool) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


def _split(pattern: str) -> list[dict[str, Any]]:
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return [split, _byte_level(False)]


_GPT2 = [_byte_level(True)]
_DIGITS = [{"type": "Digits", "individual_digits": True}, _byte_level(True)]
_PRE_TOKENIZERS: dict[str, list[dict[str, Any]]] = {
    "gpt-2": _GPT2,
    "gpt2": _GPT2,
    "smollm": _DIGITS,
    "refact": _DIGITS,
    "command-r": _DIGITS,
    "llama-bpe": _split(_LLAMA3_WORDS),
    "llama3": _split(_LLAMA3_WORDS),
    "llama-v3": _split(_LLAMA3_WORDS),
    "qwen2": _split(_QWEN2_WORDS),
}
SUPPORTED_PRE_TOKENIZERS = tuple(sorted(_PRE_TOKENIZERS))


def tokenizer_from_metadata(name: str, metadata: Mapping[str, Any]) -> TokenizerSource:
    """Builds the tokenizer of the GGUF file `name` from its metadata (key -> value).

    Raises InvalidTokenizerError when it is absent, incomplete or of a kind not supported.
    """
    kind = metadata.get("tokenizer.ggml.model")
    if kind is None or not metadata.get("tokenizer.ggml.tokens"):
        raise InvalidTokenizerError(
            f"{name} carries no tokenizer; convert the model again with its vocabulary"
        )
    if kind not in ("gpt2", "llama"):
        raise InvalidTokenizerError(
            f"{name}: tokenizer model '{kind}' is not supported (supported: gpt2, llama); "
            "use the model's Hugging Face directory instead"
        )
    is_bytes = kind == "gpt2"
    pre = metadata.get("tokenizer.ggml.pre", "absent")
    if is_bytes and pre not in _PRE_TOKENIZERS:
        raise InvalidTokenizerError(
            f"{name}: pre-tokenizer '{pre}' is not supported "
            f"(supported: {', '.join(SUPPORTED_PRE_TOKENIZERS)}); "
            "use the model's Hugging Face directory instead"
        )
    tokens: list[str] = metadata["tokenizer.ggml.tokens"]
    types: list[int] = metadata.get("tokenizer.ggml.token_type") or [TokenType.NORMAL] * len(tokens)
    scores: list[float] = metadata.get("tokenizer.ggml.scores") or []
    is_whole = "tokenizer.ggml.merges" in metadata if is_bytes else len(scores) == len(tokens)
    if len(types) != len(tokens) or not is_whole:
        raise InvalidTokenizerError(f"{name}: its tokenizer is incomplete; fetch the file again")
    special_ids = _special_ids(name, metadata, len(tokens))
    eos = dict.fromkeys(
        special_ids[key] for key in ("eos_token_id", "eot_token_id", "eom_token_id") if key in special_ids
    )
    for index, (token, kind_of_token) in enumerate(zip(tokens, types, strict=True)):
        if kind_of_token == TokenType.CONTROL and token in END_OF_TURN_NAMES:
            eos[index] = None
    bos_id = special_ids.get("bos_token_id")
    if is_bytes:
        parts = _byte_level_parts(tokens, metadata["tokenizer.ggml.merges"], pre)
    else:
        unknown = special_ids.get("unknown_token_id", 0)
        mergeable = [kind_of_token == TokenType.NORMAL for kind_of_token in types]
        prefix = bool(metadata.get("tokenizer.ggml.add_space_prefix", True))
        parts = sentencepiece_parts(tokens, scores, mergeable, tokens[unknown], prefix=prefix)
    return TokenizerSource(
        definition=json.dumps(_definition(tokens, types, parts)),
        bos_id=bos_id,
        eos_ids=tuple(eos),
        add_bos=bool(metadata.get("tokenizer.ggml.add_bos_token", not is_bytes)) and bos_id is not None,
        chat_template=metadata.get("tokenizer.chat_template"),
    )


def _special_ids(name: str, metadata: Mapping[str, Any], vocab_size: int) -> dict[str, int]:
    prefix = "tokenizer.ggml."
    keys = ("bos_token_id", "eos_token_id", "eot_token_id", "eom_token_id", "unknown_token_id")
    found = {key: int(metadata[prefix + key]) for key in keys if prefix + key in metadata}
    for key, value in found.items():
        if not 0 <= value < vocab_size:
            raise InvalidTokenizerError(
                f"{name}: {key} {value} is outside its vocabulary of {vocab_size} tokens"
            )
    return found


def _definition(tokens: list[str], types: list[int], parts: dict[str, Any]) -> dict[str, Any]:
    # A SentencePiece vocabulary has what its user defined in the form after normalization ("▁▁": two spaces).
    normalized = parts["normalizer"] is not None and parts["model"]["byte_fallback"]
    added = [
        {
            "id": index,
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": normalized and kind == TokenType.USER_DEFINED,
            "special": kind in (TokenType.CONTROL, TokenType.UNKNOWN),
        }
        for index, (token, kind) in enumerate(zip(tokens, types, strict=True))
        if kind in (TokenType.CONTROL, TokenType.UNKNOWN, TokenType.USER_DEFINED)
    ]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "post_processor": None,
        **parts,
    }


def _byte_level_parts(tokens: list[str], merges: list[str], pre: str) -> dict[str, Any]:
    return {
        "normalizer": {"type": "NFC"} if pre == "qwen2" else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": _PRE_TOKENIZERS[pre]},
        "decoder": _byte_level(True),
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            # Llama 3 vocabularies take a whole word that is a token before trying merges.
            "ignore_merges": pre in ("llama-bpe", "llama3", "llama-v3"),
            "vocab": {token: index for index, token in enumerate(tokens)},
            "merges": merges,
        },
    }
