"""Vectors of queries and memories: projections of hidden states that were trained to bring the two together.

A query and a memory have a side each. A side looks at a text's hidden states, standardised channel by
channel,
with a few pooling heads: each takes a softmax over the tokens and projects the mean that comes of it to its
part
of the vector. Vectors have length one and lie in int8 at one scale for all, so that their products are plain
integer products, and a vector depends on its own memory and on constants, never on another memory.
"""

import base64
import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from torch.nn import functional

from mnemos.errors import ModelError

MEMORY_VECTORS = 4  # of one memory at most: a vector for each span, or for as many parts of them
_SPREAD = 4.0  # deviations of a component of a random unit vector that int8 reaches
_CLIP = 8.0  # of a standardised channel: a few channels of a decoder run away


class Vectors(BaseModel):
    """A trained projection as it stands in a calibration; arrays are little-endian, in base64."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    layer: int = Field(ge=0, description="whose input is projected")
    dims: int = Field(ge=8, le=1024)
    heads: int = Field(ge=1, le=64)
    query_centre: str = Field(description="fp16 [hidden]: mean of that input over the training queries")
    memory_centre: str = Field(description="the same over the training memories")
    spread: str = Field(description="fp16 [hidden]: its standard deviation")
    query: str = Field(
        description="int8 [heads + dims, hidden] and fp16 [heads + dims]: rows and their scales"
    )
    memory: str = Field(description="the same of the memories' side")
    centroids: str = Field(
        description="int8 [lists, dims]: of the training text's vectors, for a large index"
    )

    @property
    def form(self) -> str:
        """What tells these vectors from those of another projection: 16 hexadecimal digits."""
        parts = [str(self.layer), str(self.dims), str(self.heads), self.spread]
        return hashlib.sha256(
            "\0".join([*parts, self.query_centre, self.memory_centre, self.query, self.memory]).encode()
        ).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Side:
    """One side's weights."""

    pools: Tensor  # [heads, hidden]
    rows: Tensor  # [heads, dims / heads, hidden]


class Projection:
    """What `Vectors` say, ready to multiply."""

    def __init__(self, vectors: Vectors, hidden: int) -> None:
        """`hidden` is the model's width. Raises ModelError when the arrays don't fit it."""
        self.layer, self.dims, self.form = vectors.layer, vectors.dims, vectors.form
        self._query_centre = _array(vectors.query_centre, torch.float16, (hidden,))
        self._memory_centre = _array(vectors.memory_centre, torch.float16, (hidden,))
        self._spread = _array(vectors.spread, torch.float16, (hidden,)).clamp_min(1e-4)
        self._query = _side(vectors.query, vectors, hidden)
        self._memory = _side(vectors.memory, vectors, hidden)
        lists = len(_decoded(vectors.centroids)) // vectors.dims
        self.centroids = _array(vectors.centroids, torch.int8, (lists, vectors.dims))

    def query(self, hidden: Tensor) -> Tensor:
        """A query's vector `[dims]` in int8, of its hidden states `[tokens, hidden]`."""
        states = standardised(hidden.float(), self._query_centre, self._spread)
        return to_int8(projected(states, self._query))

    def memory(self, spans: Sequence[Tensor]) -> Tensor:
        """A memory's vectors `[vectors, dims]` in int8, of the hidden states of each of its spans."""
        parts = min(len(spans), MEMORY_VECTORS)
        ends = [len(spans) * part // parts for part in range(parts + 1)]
        joined = [torch.cat(list(spans[start:end])) for start, end in itertools.pairwise(ends)]
        states = [standardised(hidden.float(), self._memory_centre, self._spread) for hidden in joined]
        return torch.stack([to_int8(projected(each, self._memory)) for each in states])


def standardised(hidden: Tensor, centre: Tensor, spread: Tensor) -> Tensor:
    """Hidden states `[tokens, hidden]` as both sides look at them."""
    return ((hidden - centre) / spread).clamp(-_CLIP, _CLIP)


def projected(states: Tensor, side: Side) -> Tensor:
    """The vector `[dims]`, of length one, of standardised states `[tokens, hidden]`."""
    looks = torch.softmax(states @ side.pools.T, dim=0)  # [tokens, heads]
    pooled = looks.T @ states  # [heads, hidden]
    vector: Tensor = functional.normalize(torch.einsum("hdi,hi->hd", side.rows, pooled).flatten(), dim=0)
    return vector


def to_int8(vectors: Tensor) -> Tensor:
    """Vectors of length one at the one scale of all."""
    scale = 127 * float(vectors.shape[-1]) ** 0.5 / _SPREAD
    codes: Tensor = (vectors * scale).round().clamp(-127, 127).to(torch.int8)
    return codes


def similarity(query: Tensor, memories: Tensor) -> Tensor:
    """Products of a query's vector `[dims]` with memories' `[memories, dims]`, about their cosines; fp32."""
    return memories.float() @ query.float() / similarity_scale(query.shape[-1])


def similarity_scale(dims: int) -> float:
    """Of the product of two vectors in int8, about their cosine."""
    return float((127 / _SPREAD) ** 2 * dims)


def packed_side(side: Side) -> str:
    """A side as `Vectors` holds it."""
    weights = torch.cat([side.pools, side.rows.flatten(0, 1)])
    scales = (weights.abs().amax(dim=1) / 127).clamp_min(1e-6).half()
    codes = (weights / scales.float()[:, None]).round().clamp(-127, 127).to(torch.int8)
    return base64.b64encode(codes.numpy().tobytes() + scales.numpy().tobytes()).decode("ascii")


def packed_array(values: Tensor) -> str:
    """An array as `Vectors` holds it, in its own type."""
    return base64.b64encode(values.contiguous().numpy().tobytes()).decode("ascii")


def _side(text: str, vectors: Vectors, hidden: int) -> Side:
    count = vectors.heads + vectors.dims
    data = _decoded(text)
    if len(data) != count * hidden + 2 * count or vectors.dims % vectors.heads:
        raise _misfit()
    codes = torch.frombuffer(bytearray(data[: count * hidden]), dtype=torch.int8).view(count, hidden)
    scales = torch.frombuffer(bytearray(data[count * hidden :]), dtype=torch.float16)
    weights = codes.float() * scales.float()[:, None]
    return Side(weights[: vectors.heads], weights[vectors.heads :].view(vectors.heads, -1, hidden))


def _array(text: str, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    data = _decoded(text)
    if len(data) != dtype.itemsize * torch.Size(shape).numel() or not data:
        raise _misfit()
    values = torch.frombuffer(bytearray(data), dtype=dtype).view(shape)
    return values if dtype == torch.int8 else values.float()


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        raise _misfit() from None


def _misfit() -> ModelError:
    return ModelError(
        "the trained router in the calibration is damaged or of another model; train it again with `mnemos "
        "train router`"
    )
