"""Sentence vectors: one text, read alone by a small BERT, to the state of its first token or the mean of all.

The encoder is Granite Embedding 30M English (arXiv 2502.20204); beside it all-MiniLM-L6-v2 (arXiv 2002.10957,
trained as in arXiv 1908.10084) is known, which recall is measured against. Both have six layers of 384. Every
text goes through by itself, so that its vector is that of its own words whatever else is read. Vectors lie in
int8 at the scale of `projection.to_int8`.
"""

import hashlib
from contextlib import nullcontext
from functools import cached_property, lru_cache
from threading import Lock
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from mnemos.attention.compiled import kernels
from mnemos.attention.embedder_files import GRANITE, EmbedderFiles, usable
from mnemos.attention.embedder_weights import load_parts, load_tokenizer
from mnemos.attention.linear import fast_dtype
from mnemos.attention.one_thread import one_thread
from mnemos.attention.projection import to_int8
from mnemos.attention.step_compiled import PackedWeights

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from mnemos.attention.calibration import Calibration

DIMS = 384
MAX_TOKENS = 254  # of one vector, beside the two that open and close every text
_LAYERS, _HEADS = 6, 12
_EPSILON = 1e-12
_READING = "1"  # how texts are cut and pooled: a part of the form
_PARTS = 4  # of a long text
_MANY_ROWS = 48  # tokens: fewer are a matter of one thread, and of packed weights
_READ_CHARACTERS = 64 * MAX_TOKENS  # the tokenizer would take seconds over more, and a token has few

Pair = tuple[Tensor, Tensor]  # weight, bias


class _Dense:
    """`y = x W^T + b`, from eight bits where compiled kernels multiply them; of many rows in bf16 where the
    processor multiplies that.
    """

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        library = kernels()
        self._packed = None if library is None else PackedWeights(library, weight, "int8")
        self._weight = weight if library is None else None
        self._wide = weight.bfloat16() if fast_dtype() is torch.bfloat16 else None
        self._bias = bias

    def __call__(self, x: Tensor) -> Tensor:
        if self._wide is not None and len(x) >= _MANY_ROWS:
            return functional.linear(x.bfloat16(), self._wide).float().add_(self._bias)
        if self._packed is not None:
            return self._packed(x).add_(self._bias)
        assert self._weight is not None
        return functional.linear(x, self._weight, self._bias)


class _Layer(NamedTuple):
    qkv: _Dense
    out: _Dense
    attn_norm: Pair
    up: _Dense
    down: _Dense
    mlp_norm: Pair


class _Bert:
    """The encoder's weights."""

    def __init__(self, known: EmbedderFiles) -> None:
        parts = load_parts(known)
        weights = parts.tensors

        def pair(name: str) -> Pair:
            return weights[f"{name}.weight"], weights[f"{name}.bias"]

        self._pools_first = known.pools_first
        self._words = parts.words
        # A text has one part: the vector of its type is the same at every place.
        self._places = (
            weights["embeddings.position_embeddings.weight"][known.first_place :]
            + weights["embeddings.token_type_embeddings.weight"][0]
        )
        self._norm = pair("embeddings.LayerNorm")
        self._layers = []
        for index in range(_LAYERS):
            name = f"encoder.layer.{index}."
            three = [pair(f"{name}attention.self.{part}") for part in ("query", "key", "value")]
            self._layers.append(
                _Layer(
                    _Dense(torch.cat([part[0] for part in three]), torch.cat([part[1] for part in three])),
                    _Dense(*pair(f"{name}attention.output.dense")),
                    pair(f"{name}attention.output.LayerNorm"),
                    _Dense(*pair(f"{name}intermediate.dense")),
                    _Dense(*pair(f"{name}output.dense")),
                    pair(f"{name}output.LayerNorm"),
                )
            )

    @torch.inference_mode()
    def vector(self, tokens: list[int]) -> Tensor:
        """The vector `[DIMS]`, of length one, of one text's tokens."""
        count = len(tokens)
        states = _normed(self._words(tokens) + self._places[:count], self._norm)  # [tokens, DIMS]
        for layer in self._layers:
            split = layer.qkv(states).view(count, 3, _HEADS, -1).permute(1, 2, 0, 3)
            q, k, v = split  # [heads, tokens, dim] each
            seen = functional.scaled_dot_product_attention(q[None], k[None], v[None])[0]
            joined = seen.transpose(0, 1).reshape(count, DIMS)
            states = _normed(states + layer.out(joined), layer.attn_norm)
            wide = functional.gelu(layer.up(states))
            states = _normed(states + layer.down(wide), layer.mlp_norm)
        return functional.normalize(states[0] if self._pools_first else states.mean(dim=0), dim=0)


def _normed(states: Tensor, norm: Pair) -> Tensor:
    return functional.layer_norm(states, (DIMS,), *norm, _EPSILON)


class Embedder:
    """Texts to vectors. The weights are read when the first text comes."""

    dims = DIMS

    def __init__(self, known: EmbedderFiles) -> None:
        self._known = known
        self._guard = Lock()
        self.name = known.name
        digests = [digest for _, _, digest in known.files]
        self.form = hashlib.sha256("\0".join([*digests, _READING]).encode()).hexdigest()[:16]

    def query(self, text: str) -> Tensor:
        """A query's vector `[dims]` in int8, of its last tokens: a question often comes at the end."""
        return to_int8(self._vector(self._tokens(text[-_READ_CHARACTERS:])[-MAX_TOKENS:]))

    def opening(self, text: str) -> Tensor:
        """The vector `[dims]` in int8 of a text's first tokens, as the encoder is mostly used."""
        return to_int8(self._vector(self._tokens(text)[:MAX_TOKENS]))

    def memory(self, text: str) -> Tensor:
        """A text's vector `[1, dims]` in int8: of a long one the mean of at most four of its parts."""
        tokens = self._tokens(text)
        parts = max(1, min(_PARTS, -(-len(tokens) // MAX_TOKENS)))
        starts = [len(tokens) * part // parts for part in range(parts)]
        mean = torch.stack([self._vector(tokens[at : at + MAX_TOKENS]) for at in starts]).mean(dim=0)
        return to_int8(functional.normalize(mean, dim=0))[None]

    def _tokens(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text[:_READ_CHARACTERS], add_special_tokens=False).ids)

    def _vector(self, tokens: list[int]) -> Tensor:
        whole = [self._known.open_token, *tokens, self._known.close_token]
        with one_thread() if len(whole) < _MANY_ROWS else nullcontext():
            return self._bert.vector(whole)

    @cached_property
    def _tokenizer(self) -> "Tokenizer":
        made = load_tokenizer(self._known)
        made.no_padding()
        made.no_truncation()
        return made

    @cached_property
    def _weights(self) -> _Bert:
        return _Bert(self._known)

    @property
    def _bert(self) -> _Bert:
        with self._guard:  # once, whoever asks first
            return self._weights


@lru_cache
def _shared(name: str, _folder: str) -> Embedder | None:
    known = usable(name)
    return None if known is None else Embedder(known)


def embedder_named(name: str = GRANITE.name) -> Embedder | None:
    """The sentence encoder of that name, where it is here and not switched off."""
    known = usable(name)
    return None if known is None else _shared(known.name, str(known.folder))


def embedder_of(calibration: "Calibration") -> Embedder | None:
    """The sentence encoder that a calibration names, where it is here; a trained router takes its place."""
    if not calibration.embedder or calibration.vectors is not None:
        return None
    return embedder_named(calibration.embedder)
