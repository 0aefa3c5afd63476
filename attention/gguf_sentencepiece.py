"""SentencePiece vocabularies of GGUF files (`tokenizer.ggml.model` = llama) in the form of `tokenizers`.

Such a file has a score per piece and no merges: two neighbours merge when together they are a piece, the one
of the highest score first. A list of merges sorted by that score says the same.
"""

from collections.abc import Sequence
from typing import Any

_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"


def sentencepiece_parts(
    tokens: Sequence[str], scores: Sequence[float], mergeable: Sequence[bool], unknown: str, *, prefix: bool
) -> dict[str, Any]:
    """Normalizer, decoder and model of a `tokenizers` definition.

    `mergeable` marks the pieces that merges may make: neither control tokens, nor bytes, nor what was defined
    by its user. With `prefix` a text gets a space in front, as Llama 2 wants and Gemma does not.
    """
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
    decoders = [
        {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if prefix:
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    normalizers = [{"type": "Prepend", "prepend": _SPACE}, replace] if prefix else [replace]
    return {
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": unknown,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": {token: index for index, token in enumerate(tokens)},
            "merges": _merges(tokens, scores, mergeable),
        },
    }


def _merges(
    tokens: Sequence[str], scores: Sequence[float], mergeable: Sequence[bool]
) -> list[tuple[str, str]]:
    """Every way to make each piece of two others, pieces of higher scores first."""
    ids = {token: index for index, token in enumerate(tokens) if mergeable[index]}
    merges: list[tuple[str, str]] = []
    for piece in sorted(ids, key=lambda piece: -scores[ids[piece]]):
        ways = [
            (piece[:at], piece[at:]) for at in range(1, len(piece)) if piece[:at] in ids and piece[at:] in ids
        ]
        merges += sorted(ways, key=lambda pair: (ids[pair[0]], ids[pair[1]]))
    return merges
