"""GGUF files of each family that the format knows, written as llama.cpp's converter would, and SentencePiece
vocabularies in them.
"""

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mnemos.attention.decoder import Decoder
from mnemos.attention.gguf_config import GgufMetadata, config_from_metadata
from mnemos.attention.gguf_loader import load_gguf
from mnemos.attention.gguf_tokenizer import tokenizer_from_metadata
from mnemos.attention.hf_loader import load_directory
from mnemos.attention.tokenizer import Tokenizer
from mnemos.attention.tokenizer_source import TokenizerSource
from mnemos.errors import InvalidTokenizerError, InvalidWeightsError

PROMPT = torch.randint(3, 288, (45,), generator=torch.Generator().manual_seed(3)).tolist()


@pytest.mark.parametrize("name", ["llama3", "qwen2", "qwen3", "gemma3", "smollm3"])
def test_a_file_speaks_as_the_directory_does(
    name: str, write_family_gguf: Callable[[str], Path], family: Callable[[str], Any], cache: Path
) -> None:
    path = write_family_gguf(name)
    config, weights, _, fingerprint = load_gguf(path)
    reference, known, _, _ = load_directory(family(name).directory)
    logits = []
    for shape, tensors in ((config, weights), (reference, known)):
        decoder = Decoder(shape, tensors)
        logits.append(decoder.forward_all(PROMPT, decoder.new_cache(64)))
    if name == "gemma3":  # the file can't say the scale of this size's scores; see below
        assert (config.attention_scale, reference.attention_scale) == (32**-0.5, 24**-0.5)
        decoder = Decoder(config, weights)
        decoder.scale = reference.score_scale
        logits[0] = decoder.forward_all(PROMPT, decoder.new_cache(64))
    if name == "qwen2":  # the format has no window for it
        assert (config.window, reference.window) == (None, 24)
        logits = [rows[:24] for rows in logits]
    assert (logits[0] - logits[1]).abs().max() < 1e-3
    again, mapped, _, same = load_gguf(path)  # from the conversion that was kept
    assert (again, same) == (config, fingerprint)
    assert len(list(cache.glob("converted/*"))) == 1
    for (key, one), (_, other) in zip(weights.named(), mapped.named(), strict=True):
        assert torch.equal(one, other), key


def shape_of(architecture: str, **values: Any) -> Any:
    sizes = {
        "block_count": 6, "attention.head_count": 4, "embedding_length": 64, "feed_forward_length": 96,
        "attention.layer_norm_rms_epsilon": 1e-6, "context_length": 128, "attention.sliding_window": 24,
    }  # fmt: skip
    whole = {f"{architecture}.{key.replace('__', '.')}": value for key, value in (sizes | values).items()}
    metadata = GgufMetadata.of("m", {"general.architecture": architecture, **whole}, ())
    source = TokenizerSource("{}", None, (), False, None)
    return config_from_metadata(metadata, source, rows=288, tie_embeddings=True)


def test_what_a_gemma_file_leaves_unsaid() -> None:
    small = shape_of("gemma3", **{"attention.key_length": 32})
    assert small.sliding_layers == (0, 1, 2, 3, 4)
    assert (small.local_rope_theta, small.attention_scale) == (10000.0, 32**-0.5)
    largest = shape_of("gemma3", **{"attention.key_length": 32, "block_count": 62})
    assert largest.attention_scale == (64 // 4) ** -0.5
    flags = shape_of("gemma3", **{"attention.sliding_window_pattern": [True, False] * 3})
    assert flags.sliding_layers == (0, 2, 4)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rope.scaling.type": "longrope"}, r"'longrope' is not supported \(supported: none, linear, yarn\)"),
        ({"expert_count": 8}, "mixtures of experts"),
        ({"rope.dimension_count": 8}, "a rope.dimension_count other than the head size 16"),
        ({"block_count": None}, "doesn't say its llama.block_count"),
    ],
)
def test_refused_by_name(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidWeightsError, match=message):
        shape_of("llama", **values)


PIECES = [*"▁helowrdnaé你", "▁h", "he", "el", "ll", "ell", "hell", "lo", "llo", "▁he", "hello", "▁hello",
          "wo", "or", "rd", "▁wo", "▁world", "rld", "an", "▁an", "and", "▁and", "ld"]  # fmt: skip
SCORES = {piece: -float((index * 37) % 101) for index, piece in enumerate(PIECES)}  # no order of length


def vocabulary() -> dict[str, Any]:
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *PIECES, "▁▁", "<turn>"]
    types = [2, 3, 3, *[6] * 256, *[1] * len(PIECES), 4, 3]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.scores": [SCORES.get(token, 0.0) for token in tokens],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }


def naive_pieces(text: str) -> list[str]:
    """SentencePiece's own rule: of neighbours that make a piece, the highest score merges, from the left."""
    parts = list(text)
    while True:
        ways = [(-SCORES[a + b], at) for at, (a, b) in enumerate(pairwise(parts)) if a + b in SCORES]
        if not ways:
            return parts
        at = min(ways)[1]
        parts[at : at + 2] = [parts[at] + parts[at + 1]]


def naive_ids(tokens: list[str], text: str, *, prefix: bool) -> list[int]:
    ids: list[int] = []
    whole = ("▁" if prefix and text else "") + text.replace(" ", "▁")
    for at, stretch in enumerate(whole.split("▁▁")):
        ids += [tokens.index("▁▁")] * (at > 0)
        for piece in naive_pieces(stretch):
            if piece in tokens:
                ids.append(tokens.index(piece))
            else:
                ids += [tokens.index(f"<0x{byte:02X}>") for byte in piece.encode()]
    return ids


@settings(max_examples=150, deadline=None)
@given(
    text=st.text(st.sampled_from("helowrdna é你😀x"), max_size=24),
    prefix=st.booleans(),
)
def test_sentencepiece_merges_by_score(text: str, prefix: bool) -> None:
    metadata = vocabulary() | {"tokenizer.ggml.add_space_prefix": prefix}
    source = tokenizer_from_metadata("m", metadata)
    tokenizer = Tokenizer(source, vocab_size=400)
    tokens = metadata["tokenizer.ggml.tokens"]
    if "  " not in text and not (prefix and text.startswith(" ")):  # a user's own piece splits a text first
        assert tokenizer.encode(text) == naive_ids(tokens, text, prefix=prefix)
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_sentencepiece_control_tokens_and_what_a_file_lacks() -> None:
    source = tokenizer_from_metadata("m", vocabulary())
    tokenizer = Tokenizer(source, vocab_size=400)
    assert source.add_bos
    assert source.eos_ids == (2,)
    assert tokenizer.control_ids >= {1, 2, tokenizer.id_of("<turn>")}
    assert tokenizer.id_of("<turn>") in tokenizer.encode("hello<turn>", special=True)
    assert tokenizer.id_of("<turn>") not in tokenizer.encode("hello<turn>")
    gemma = tokenizer_from_metadata("m", vocabulary() | {"tokenizer.ggml.add_space_prefix": False})
    spaces = Tokenizer(gemma, vocab_size=400)
    tokens = vocabulary()["tokenizer.ggml.tokens"]
    ids = spaces.encode("hello  and")
    assert ids == naive_ids(tokens, "hello  and", prefix=False)
    assert spaces.id_of("▁▁") in ids
    assert json.loads(source.definition)["model"]["byte_fallback"]
    for key in ("tokenizer.ggml.scores", "tokenizer.ggml.tokens"):
        with pytest.raises(InvalidTokenizerError, match=r"incomplete|carries no tokenizer"):
            tokenizer_from_metadata("m", {k: v for k, v in vocabulary().items() if k != key})
