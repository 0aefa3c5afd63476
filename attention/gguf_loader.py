"""Checkpoints in GGUF files (format: ggml docs/gguf.md), through the `gguf` library's reader."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf.constants import GGMLQuantizationType, GGUFValueType
from torch import Tensor

from mnemos.attention.cache_dir import file_digest
from mnemos.attention.config import LLAMA, SMOLLM3, ModelConfig, layer_shapes
from mnemos.attention.converted import load_converted, save_converted
from mnemos.attention.fingerprint import fingerprint_of
from mnemos.attention.gguf_config import GgufMetadata, config_from_metadata
from mnemos.attention.gguf_tokenizer import tokenizer_from_metadata
from mnemos.attention.registry import name_of_digest
from mnemos.attention.tokenizer_source import TokenizerSource
from mnemos.attention.weights import (
    EMBED_NAME,
    HEAD_NAME,
    NORM_NAME,
    Weights,
    assemble,
    check_shape,
    is_finite,
    layer_name,
    tensor_shapes,
)
from mnemos.errors import InvalidTokenizerError, InvalidWeightsError, UnknownModelError

_LAYER_TENSORS = {
    "attn_norm": "attn_norm.weight",
    "q": "attn_q.weight",
    "k": "attn_k.weight",
    "v": "attn_v.weight",
    "o": "attn_output.weight",
    "mlp_norm": "ffn_norm.weight",
    "gate": "ffn_gate.weight",
    "up": "ffn_up.weight",
    "down": "ffn_down.weight",
    "q_bias": "attn_q.bias",
    "k_bias": "attn_k.bias",
    "v_bias": "attn_v.bias",
    "q_norm": "attn_q_norm.weight",
    "k_norm": "attn_k_norm.weight",
    "post_attn_norm": "post_attention_norm.weight",
    "post_mlp_norm": "post_ffw_norm.weight",
}
_ROPE_FACTORS = "rope_freqs.weight"
_PERMUTED = (LLAMA, SMOLLM3)  # families whose rows of q and k conversion reorders; the others keep theirs
_FRESH = "fetch or convert it again"


def load_gguf(path: Path, *, name: str | None = None) -> tuple[ModelConfig, Weights, TokenizerSource, str]:
    """Loads a GGUF file: configuration, weights, tokenizer source and fingerprint.

    Quantised tensors become fp32, others keep their type. The conversion is kept in the cache directory under
    the file's digest, and mapped from there the next time. Raises UnknownModelError when there is no such
    file, InvalidWeightsError and InvalidTokenizerError when it can't be used.
    """
    if not path.is_file():
        raise UnknownModelError(
            f"no model file at {path}; name a .gguf file, a model directory or a known model"
        )
    digest = file_digest(path)
    name = name or name_of_digest(digest) or path.stem
    converted = load_converted(digest, name)
    if converted is None:
        reader = _open(path)
        metadata = _metadata(path, reader)
        config, source = _described(name, metadata, reader)
        converted = save_converted(digest, config, source, _tensors(config, reader))
        if converted is None:  # the cache can't be written, or the weights are too large to keep twice
            tensors = dict(_tensors(config, reader))
            converted = config, assemble(config, tensors.__getitem__), source
    config, weights, source = converted
    return config, weights, source, fingerprint_of(digest, config, source)


class _StrictReader(gguf.GGUFReader):  # type: ignore[misc]  # the library is untyped
    """Refuses to read past the end, where the library goes on with empty arrays, up to 2^64 of them."""

    def _get(self, offset: int, dtype: Any, count: int = 1, override_order: Any = None) -> Any:
        if offset + np.dtype(dtype).itemsize * int(count) > len(self.data):
            raise ValueError(f"it ends at {len(self.data)} bytes, before its contents do")
        return super()._get(offset, dtype, count, override_order)

    def _get_field_parts(self, orig_offs: int, raw_type: int) -> Any:
        if raw_type == GGUFValueType.ARRAY:  # an element's type (4 bytes), their count (8), the elements
            element = GGUFValueType(self._get(orig_offs, np.uint32)[0])
            smallest = np.dtype(self.gguf_scalar_to_np.get(element, np.uint64)).itemsize
            self._get(orig_offs + 12, np.uint8, int(self._get(orig_offs + 4, np.uint64)[0]) * smallest)
        return super()._get_field_parts(orig_offs, raw_type)


def _open(path: Path) -> gguf.GGUFReader:
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise InvalidWeightsError(f"{path} is not a GGUF file; name a .gguf file or a model directory")
    try:
        return _StrictReader(path)
    # On damaged files the reader fails wherever it happens to be: an index, a reshape, a Unicode error.
    except (ValueError, KeyError, IndexError, TypeError, OverflowError, MemoryError) as error:
        raise InvalidWeightsError(f"{path} is truncated or damaged ({error}); {_FRESH}") from error


def _metadata(path: Path, reader: gguf.GGUFReader) -> dict[str, Any]:
    try:
        return {key: field.contents() for key, field in reader.fields.items()}
    except (ValueError, IndexError) as error:
        raise InvalidWeightsError(
            f"{path} is damaged: its metadata can't be read ({error}); {_FRESH}"
        ) from error


def _described(
    name: str, metadata: Mapping[str, Any], reader: gguf.GGUFReader
) -> tuple[ModelConfig, TokenizerSource]:
    """What the metadata says of the model and of its tokenizer."""
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    described = GgufMetadata.of(name, metadata, _rope_factors(name, tensors.get(_ROPE_FACTORS)))
    rows = _embedding_rows(name, reader)
    tokenizer = tokenizer_from_metadata(name, metadata)
    if (tokens := len(metadata["tokenizer.ggml.tokens"])) > rows:
        raise InvalidTokenizerError(
            f"model {name}: the tokenizer has {tokens} tokens, the weights embed only {rows}; "
            "they belong to different models"
        )
    tied = "output.weight" not in tensors
    return config_from_metadata(described, tokenizer, rows=rows, tie_embeddings=tied), tokenizer


def _rope_factors(name: str, entry: gguf.ReaderTensor | None) -> tuple[float, ...]:
    """Divisors of the rotary frequencies that a file of Llama 3 carries as a tensor."""
    return () if entry is None else tuple(_to_torch(name, entry).float().flatten().tolist())


def _embedding_rows(name: str, reader: gguf.GGUFReader) -> int:
    for tensor in reader.tensors:
        if tensor.name == "token_embd.weight":
            return int(tensor.shape[-1])
    raise InvalidWeightsError(f"model {name}: tensor token_embd.weight is missing; {_FRESH}")


def _tensor_names(config: ModelConfig) -> dict[str, str]:
    """Hugging Face name -> GGUF name."""
    names = {EMBED_NAME: "token_embd.weight", NORM_NAME: "output_norm.weight"}
    if not config.tie_embeddings:
        names[HEAD_NAME] = "output.weight"
    for index in range(config.layers):
        for field in layer_shapes(config):
            name = layer_name(field, post_norms=config.post_norms)
            names[f"model.layers.{index}.{name}"] = f"blk.{index}.{_LAYER_TENSORS[field]}"
    return names


def _tensors(config: ModelConfig, reader: gguf.GGUFReader) -> Iterator[tuple[str, Tensor]]:
    """Each tensor under its Hugging Face name and layout, one at a time; checked for shape and NaN.

    Norms of Gemma hold 1 + weight in these files, which is what `LayerWeights` wants.
    """
    names, shapes = _tensor_names(config), tensor_shapes(config)
    found = {tensor.name: tensor for tensor in reader.tensors}
    if missing := [gguf_name for gguf_name in names.values() if gguf_name not in found]:
        raise InvalidWeightsError(f"model {config.name}: tensor {missing[0]} is missing; {_FRESH}")
    if foreign := sorted(found.keys() - set(names.values()) - {_ROPE_FACTORS}):
        raise InvalidWeightsError(
            f"model {config.name}: tensor {foreign[0]} is no part of a {config.architecture} decoder"
        )
    for name, gguf_name in names.items():
        entry = found[gguf_name]
        check_shape(config.name, gguf_name, tuple(int(n) for n in reversed(entry.shape)), shapes[name])
        tensor = _to_torch(config.name, entry).reshape(shapes[name])
        if not is_finite(tensor):
            raise InvalidWeightsError(
                f"model {config.name}: tensor {gguf_name} holds NaN or infinity; {_FRESH}"
            )
        if config.architecture in _PERMUTED and gguf_name.endswith((".attn_q.weight", ".attn_k.weight")):
            tensor = unpermute(tensor, config.head_dim)
        yield name, tensor


def _to_torch(model: str, entry: gguf.ReaderTensor) -> Tensor:
    kind = entry.tensor_type
    if kind == GGMLQuantizationType.BF16:
        return torch.from_numpy(np.array(entry.data).view(np.int16)).view(torch.bfloat16)
    if kind == GGMLQuantizationType.F16:
        return torch.from_numpy(np.array(entry.data))
    try:
        values = gguf.quants.dequantize(entry.data, kind)
    except NotImplementedError as error:
        raise InvalidWeightsError(
            f"model {model}: tensor {entry.name} is quantised as {kind.name}, which is not supported"
        ) from error
    return torch.from_numpy(np.array(values, dtype=np.float32))


def unpermute(rows: Tensor, head_dim: int) -> Tensor:
    """Undoes the pairing of RoPE dimensions that conversion to GGUF does: [heads * head_dim, in]."""
    inner = rows.shape[1]
    paired = rows.view(-1, head_dim // 2, 2, inner)  # [heads, head_dim / 2, 2, in]
    return paired.transpose(1, 2).reshape(rows.shape).contiguous()
