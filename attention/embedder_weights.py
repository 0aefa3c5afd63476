"""The tensors of a sentence encoder and its tokenizer, from either of the two forms that known ones come in.

A folder has `model.safetensors` with the names of Hugging Face's BERT, and `tokenizer.json`. A pack
(`.hmsemb`) has all in one file: `HMSEMB01`, the length of a JSON header (u64, little endian), that header,
the tokenizer, and the tensors in the header's order: fp32, or int8 and behind that an fp32 scale for each
group of numbers.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from mnemos.attention.embedder_files import EmbedderFiles
from mnemos.errors import ModelError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_MAGIC = b"HMSEMB01"
_LENGTH = 8  # bytes of the header's length
_WORDS = "embeddings.word_embeddings.weight"
_EMBEDDINGS = {
    "word_emb": _WORDS,
    "pos_emb": "embeddings.position_embeddings.weight",
    "type_emb": "embeddings.token_type_embeddings.weight",
    "emb_ln.w": "embeddings.LayerNorm.weight",
    "emb_ln.b": "embeddings.LayerNorm.bias",
}
_OF_A_LAYER = {
    "ao": "attention.output.dense",
    "aln": "attention.output.LayerNorm",
    "f1": "intermediate.dense",
    "f2": "output.dense",
    "fln": "output.LayerNorm",
}
_ENDS = {"w": "weight", "b": "bias"}


@dataclass(frozen=True, slots=True)
class Grouped:
    """A matrix in int8 with a scale for each group of a row's numbers: a row is made when it is asked for."""

    codes: np.ndarray[Any, np.dtype[np.int8]]  # [rows, columns]
    scales: np.ndarray[Any, np.dtype[np.float32]]  # [rows, groups]

    def rows(self, at: list[int]) -> Tensor:
        """`[rows, columns]`, fp32."""
        scales = self.scales[at]
        wide = self.codes[at].reshape(*scales.shape, -1) * scales[..., None]
        return torch.from_numpy(wide.reshape(len(at), -1))

    def whole(self) -> Tensor:
        wide = self.codes.reshape(*self.scales.shape, -1) * self.scales[..., None]
        return torch.from_numpy(wide.reshape(self.codes.shape))


@dataclass(frozen=True, slots=True)
class Words:
    """The embeddings of tokens, `[vocabulary, dims]`."""

    held: Tensor | Grouped

    def __call__(self, tokens: list[int]) -> Tensor:
        """`[tokens, dims]`, fp32."""
        return self.held[tokens] if isinstance(self.held, Tensor) else self.held.rows(tokens)


@dataclass(frozen=True, slots=True)
class EncoderParts:
    """What a sentence encoder is made of; `tensors` by Hugging Face's names, without the words."""

    words: Words
    tensors: dict[str, Tensor]


def load_parts(known: EmbedderFiles) -> EncoderParts:
    """Reads the weights. Raises ModelError where the file isn't what it should be."""
    path = known.folder / known.weights[0]
    if known.tokenizer is None:
        return _from_pack(path)
    from safetensors.torch import load_file

    tensors = load_file(path)
    return EncoderParts(Words(tensors.pop(_WORDS)), tensors)


def load_tokenizer(known: EmbedderFiles) -> "Tokenizer":
    """Reads the tokenizer. Raises ModelError."""
    from tokenizers import Tokenizer

    if known.tokenizer is not None:
        return Tokenizer.from_file(str(known.folder / known.tokenizer[0]))
    path = known.folder / known.weights[0]
    with path.open("rb") as file:
        header = _header(file, path)
        return Tokenizer.from_str(file.read(header["tokenizer_len"]).decode("utf-8"))


def _header(file: BinaryIO, path: Path) -> dict[str, Any]:
    """A pack's header; the file is left at its end."""
    start = file.read(len(_MAGIC) + _LENGTH)
    length = int.from_bytes(start[len(_MAGIC) :], "little")
    if not start.startswith(_MAGIC) or length > path.stat().st_size:
        raise ModelError(f"{path} is not a pack of a sentence encoder; remove it and pull the model again")
    header: dict[str, Any] = json.loads(file.read(length))
    if header.get("format") != 1:
        raise ModelError(f"{path} has a format that isn't known ({header.get('format')})")
    return header


def _from_pack(path: Path) -> EncoderParts:
    with path.open("rb") as file:
        header = _header(file, path)
        file.seek(header["tokenizer_len"], 1)
        read = {entry["name"]: _tensor(file.read(entry["len"]), entry, path) for entry in header["tensors"]}
    words = read.pop("word_emb")
    tensors: dict[str, Tensor] = {}
    for name, held in read.items():
        tensor = held.whole() if isinstance(held, Grouped) else held
        if name in _EMBEDDINGS:
            tensors[_EMBEDDINGS[name]] = tensor
            continue
        layer, part, end = name.split(".")
        prefix = f"encoder.layer.{layer.removeprefix('l')}."
        if part == "qkv":
            for which, third in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                tensors[f"{prefix}attention.self.{which}.{_ENDS[end]}"] = third
        else:
            tensors[f"{prefix}{_OF_A_LAYER[part]}.{_ENDS[end]}"] = tensor
    return EncoderParts(Words(words), tensors)


def _tensor(data: bytes, entry: dict[str, Any], path: Path) -> Tensor | Grouped:
    shape = [int(size) for size in entry["shape"]]
    count = math.prod(shape)
    if len(data) != entry["len"]:
        raise ModelError(f"{path} ends too early; remove it and pull the model again")
    if entry["dtype"] == "f32":
        return torch.frombuffer(bytearray(data), dtype=torch.float32).reshape(shape)
    codes = np.frombuffer(data, np.int8, count).reshape(shape)
    return Grouped(codes, np.frombuffer(data, "<f4", offset=count).reshape(shape[0], -1))
