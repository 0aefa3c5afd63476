"""Weights converted once and mapped from then on: a safetensors file in the cache per source digest.

The safetensors header is written by hand so that tensors stream through memory one at a time.
"""

import contextlib
import json
import math
import struct
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mnemos.attention.cache_dir import atomic_path, cache_dir
from mnemos.attention.config import ModelConfig
from mnemos.attention.tokenizer_source import TokenizerSource
from mnemos.attention.weights import Weights, assemble, tensor_shapes

FORMAT_VERSION = 2
MAX_KEPT_BYTES = 8 << 30  # larger models are converted at each start rather than kept twice on disk
_DTYPE_NAMES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


def converted_path(digest: str, version: int = FORMAT_VERSION) -> Path:
    """Where the conversion of the file with this SHA-256 is kept."""
    return cache_dir() / "converted" / f"{digest}.v{version}.safetensors"


def _remove_former(digest: str) -> None:
    """Conversions of former versions are in nobody's use, and as large as this one."""
    for version in range(1, FORMAT_VERSION):
        with contextlib.suppress(OSError):
            converted_path(digest, version).unlink(missing_ok=True)


def load_converted(digest: str, name: str) -> tuple[ModelConfig, Weights, TokenizerSource] | None:
    """The kept conversion, memory-mapped, its model called `name`; None when none can be read."""
    path = converted_path(digest)
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            described = json.loads(file.metadata()["mnemos"])
            config = ModelConfig.from_json(described["config"] | {"name": name})
            source = TokenizerSource.from_json(described["tokenizer"])
            return config, assemble(config, file.get_tensor, check_finite=False), source
    except (SafetensorError, OSError, ValueError, KeyError, TypeError):
        path.unlink(missing_ok=True)  # torn or of another make: it is made anew from the source
        return None


def save_converted(
    digest: str, config: ModelConfig, source: TokenizerSource, tensors: Iterator[tuple[str, Tensor]]
) -> tuple[ModelConfig, Weights, TokenizerSource] | None:
    """Keeps a conversion and maps it. None when it is too large to keep or the cache can't be written."""
    if sum(math.prod(shape) * 4 for shape in tensor_shapes(config).values()) > MAX_KEPT_BYTES:
        return None
    path = converted_path(digest)
    # An unwritable or full cache costs time at each start, nothing else: the caller converts in memory.
    with contextlib.suppress(OSError):
        with atomic_path(path) as temporary:
            _write(temporary, config, source, tensors)
        _remove_former(digest)
        return load_converted(digest, config.name)
    return None


def _write(
    path: Path, config: ModelConfig, source: TokenizerSource, tensors: Iterator[tuple[str, Tensor]]
) -> None:
    described = json.dumps({"config": config.to_json(), "tokenizer": source.to_json()})
    header: dict[str, object] = {"__metadata__": {"format": "pt", "mnemos": described}}
    # The header comes first but is known last; names, shapes and two offsets bound its size.
    room = len(json.dumps(header)) + sum(len(name) + 160 for name in tensor_shapes(config))
    room += -(room + 8) % 64
    with path.open("wb") as file:
        file.seek(8 + room)
        offset = 0
        for name, tensor in tensors:
            tensor.contiguous().view(torch.uint8).numpy().tofile(file)
            span = [offset, offset + tensor.nbytes]
            header[name] = {
                "dtype": _DTYPE_NAMES[tensor.dtype],
                "shape": list(tensor.shape),
                "data_offsets": span,
            }
            offset = span[1]
        file.seek(0)
        file.write(struct.pack("<Q", room) + json.dumps(header).encode().ljust(room))
