"""Llama checkpoints in GGUF files (format: ggml docs/gguf.md), through the `gguf` library's reader."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf.constants import GGMLQuantizationType, GGUFValueType
from torch import Tensor

from mnemos.attention.cache_dir import file_digest
from mnemos.attention.config import LLAMA, SUPPORTED_ARCHITECTURES, ModelConfig
from mnemos.attention.converted import load_converted, save_converted
from mnemos.attention.fingerprint import fingerprint_of
from mnemos.attention.gguf_tokenizer import tokenizer_from_metadata
from mnemos.attention.registry import name_of_digest
from mnemos.attention.tokenizer_source import TokenizerSource
from mnemos.attention.weights import (
    EMBED_NAME,
    HEAD_NAME,
    LAYER_NAMES,
    NORM_NAME,
    Weights,
    assemble,
    check_shape,
    is_finite,
    tensor_shapes,
)
from mnemos.errors import InvalidTokenizerError, InvalidWeightsError, UnknownModelError

_LAYER_TENSORS = {
    "attn_norm": "attn_norm",
    "q": "attn_q",
    "k": "attn_k",
    "v": "attn_v",
    "o": "attn_output",
    "mlp_norm": "ffn_norm",
    "gate": "ffn_gate",
    "up": "ffn_up",
    "down": "ffn_down",
}
_FRESH = "fetch or convert it again"


def load_gguf(path: Path, *, name: str | None = None) -> tuple[ModelConfig, Weights, TokenizerSource, str]:
    """Loads a GGUF file of the Llama family: configuration, weights, tokenizer source and fingerprint.

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
    architecture = metadata.get("general.architecture", "absent")
    if architecture not in SUPPORTED_ARCHITECTURES:
        raise InvalidWeightsError(
            f"model {name}: architecture '{architecture}' is not supported "
            f"(supported: {', '.join(SUPPORTED_ARCHITECTURES)})"
        )

    def need(key: str) -> Any:
        if f"{architecture}.{key}" not in metadata:
            raise InvalidWeightsError(
                f"model {name}: the file doesn't say its {architecture}.{key}; {_FRESH}"
            )
        return metadata[f"{architecture}.{key}"]

    tensors = {tensor.name for tensor in reader.tensors}
    scaling = metadata.get(f"{architecture}.rope.scaling.type", "none")
    if scaling != "none" or "rope_freqs.weight" in tensors:
        scaling = "llama3" if scaling == "none" else scaling
        raise InvalidWeightsError(
            f"model {name}: rope scaling '{scaling}' is not supported (supported: none)"
        )
    if metadata.get(f"{architecture}.expert_count", 0):
        raise InvalidWeightsError(f"model {name}: mixtures of experts are not supported")
    heads, hidden = int(need("attention.head_count")), int(need("embedding_length"))
    head_dim = int(metadata.get(f"{architecture}.attention.key_length", hidden // max(heads, 1)))
    for key in ("rope.dimension_count", "attention.value_length"):
        if metadata.get(f"{architecture}.{key}", head_dim) != head_dim:
            raise InvalidWeightsError(
                f"model {name}: a {key} other than the head size {head_dim} is not supported"
            )
    rows = _embedding_rows(name, reader)
    tokenizer = tokenizer_from_metadata(name, metadata)
    if (tokens := len(metadata["tokenizer.ggml.tokens"])) > rows:
        raise InvalidTokenizerError(
            f"model {name}: the tokenizer has {tokens} tokens, the weights embed only {rows}; "
            "they belong to different models"
        )
    config = ModelConfig(
        name=name,
        architecture=LLAMA,
        vocab_size=rows,
        hidden_size=hidden,
        layers=int(need("block_count")),
        heads=heads,
        kv_heads=int(metadata.get(f"{architecture}.attention.head_count_kv", heads)),
        head_dim=head_dim,
        intermediate_size=int(need("feed_forward_length")),
        # The file keeps fp32; the nearest short decimal is what the model was trained with.
        rms_norm_eps=float(f"{need('attention.layer_norm_rms_epsilon'):.6g}"),
        rope_theta=float(metadata.get(f"{architecture}.rope.freq_base", 10000.0)),
        max_positions=int(need("context_length")),
        tie_embeddings="output.weight" not in tensors,
        bos_id=tokenizer.bos_id,
        eos_ids=tokenizer.eos_ids,
    )
    return config, tokenizer


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
        for field, tensor in _LAYER_TENSORS.items():
            names[f"model.layers.{index}.{LAYER_NAMES[field]}"] = f"blk.{index}.{tensor}.weight"
    return names


def _tensors(config: ModelConfig, reader: gguf.GGUFReader) -> Iterator[tuple[str, Tensor]]:
    """Each tensor under its Hugging Face name and layout, one at a time; checked for shape and NaN."""
    names, shapes = _tensor_names(config), tensor_shapes(config)
    found = {tensor.name: tensor for tensor in reader.tensors}
    if missing := [gguf_name for gguf_name in names.values() if gguf_name not in found]:
        raise InvalidWeightsError(f"model {config.name}: tensor {missing[0]} is missing; {_FRESH}")
    if foreign := sorted(found.keys() - set(names.values()) - {"rope_freqs.weight"}):
        raise InvalidWeightsError(f"model {config.name}: tensor {foreign[0]} is no part of a Llama decoder")
    for name, gguf_name in names.items():
        entry = found[gguf_name]
        check_shape(config.name, gguf_name, tuple(int(n) for n in reversed(entry.shape)), shapes[name])
        tensor = _to_torch(config.name, entry).reshape(shapes[name])
        if not is_finite(tensor):
            raise InvalidWeightsError(
                f"model {config.name}: tensor {gguf_name} holds NaN or infinity; {_FRESH}"
            )
        if gguf_name.endswith((".attn_q.weight", ".attn_k.weight")):
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
