"""`load`: a model by name, GGUF file or Hugging Face directory, ready to prefill and decode."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

import torch

from mnemos.attention.chat_template import Template
from mnemos.attention.compiled import COMPILE_ENV, kernels
from mnemos.attention.config import ModelConfig
from mnemos.attention.embedder_files import fetch_if_wanted
from mnemos.attention.linear import fast_dtype
from mnemos.attention.registry import is_hub, is_path, resolve_name, weights_path
from mnemos.attention.step_compiled import PackedFormat, fits
from mnemos.attention.step_weights import StepFormat, pick_format
from mnemos.attention.tokenizer import Tokenizer
from mnemos.attention.tokenizer_source import TokenizerSource
from mnemos.attention.weights import Weights
from mnemos.errors import ModelError, UsageError

if TYPE_CHECKING:
    from mnemos.attention.calibration import Calibration
    from mnemos.attention.decoder import Decoder

_sharing = Lock()
_shared: "WeakValueDictionary[tuple[str | None, ...], LanguageModel]" = WeakValueDictionary()
PACKED: dict[str | None, PackedFormat] = {"auto": "auto", "int8": "int8", "int4": "int4"}
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


@dataclass(frozen=True, slots=True, weakref_slot=True, eq=False)
class LanguageModel:
    """A loaded model: the decoder with its weights, and all that turns words into its tokens and back."""

    name: str
    fingerprint: str
    config: ModelConfig
    decoder: "Decoder"
    tokenizer: Tokenizer
    template: Template
    calibration: "Calibration"

    def require_full_resolution(self) -> None:
        """Raises `ModelError` for a model of the pooled read mode."""
        if self.config.msa is not None:
            raise ModelError(
                f"model {self.name} reads pooled memories, chosen layer by layer; this needs a model that "
                "reads memories in full, such as the default one"
            )


def load(
    name_or_path: str | os.PathLike[str] | None = None,
    *,
    dtype: str = "auto",
    decode_weights: str | None = None,
    compile: bool | None = None,
    threads: int | None = None,
    calibration: str | os.PathLike[str] | None = None,
    device: str | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> LanguageModel:
    """Loads a model: a known name (fetched on first use), a .gguf file, a Hugging Face directory, or
    `hub:owner/name`.

    None means the `MNEMOS_MODEL` environment variable, or the default model. `dtype` is auto, bf16, fp16 or
    fp32; `decode_weights`, what one token at a time is decoded from, is auto, bf16, int8 or int4 (None means
    `MNEMOS_DECODE_WEIGHTS`, or auto with the dtype auto, and the dtype itself with another). `compile` says
    whether weights of fewer bits are multiplied by kernels compiled on this machine: None where there is a C
    compiler (or as `MNEMOS_COMPILE` says), True or UsageError, False never. `threads` sets
    torch's thread count for the whole process. `calibration` is a calibration file, or `none` for safe
    defaults; without it, `MNEMOS_CALIBRATION`, the file beside the weights, or the one that ships.
    `device` is auto, cpu, cuda or cuda:N (None means `MNEMOS_DEVICE`, or auto: a GPU where there is one that
    the model fits); on a GPU weights are in `dtype`, bf16 for auto, and `decode_weights` and `compile` are of
    no account.
    `on_progress(done_bytes, total_bytes)` is called while weights are fetched. Raises a ModelError that says
    what is wrong and what to do.
    """
    from mnemos.attention.calibration_file import calibration_of

    _check_formats(dtype, decode_weights, compile)
    if (device or os.environ.get("MNEMOS_DEVICE") or "auto") != "auto":
        from mnemos.attention.gpu.devices import check_device

        check_device(device)
    if threads is not None:
        if threads < 1:
            raise UsageError(f"threads must be at least 1, not {threads}")
        torch.set_num_threads(threads)
    config, weights, source, fingerprint = load_weights(name_or_path, on_progress=on_progress)
    tokenizer = Tokenizer(source, vocab_size=config.vocab_size)
    bos, eos = (
        _control_text(tokenizer, token) for token in (source.bos_id, next(iter(source.eos_ids), None))
    )
    template = Template(source.chat_template, name=config.name, bos=bos, eos=eos)
    decoder = make_decoder(config, weights, dtype, decode_weights, compile, device)
    weights_at = weights_path(resolve_name(name_or_path))
    chosen = calibration_of(config.name, weights_at, config, fingerprint, calibration)
    if not is_path(named := resolve_name(name_or_path)) and not is_hub(named):
        fetch_if_wanted(chosen.embedder, on_progress)
    return LanguageModel(config.name, fingerprint, config, decoder, tokenizer, template, chosen)


def load_shared(name_or_path: str | os.PathLike[str] | None = None) -> LanguageModel:
    """As `load` with its defaults; the same model as before for as long as somebody uses it."""
    variables = ("MNEMOS_DECODE_WEIGHTS", COMPILE_ENV, "MNEMOS_CALIBRATION", "MNEMOS_DEVICE")
    key = (resolve_name(name_or_path), *(os.environ.get(each) for each in variables))
    with _sharing:
        model = _shared.get(key)
        if model is None:
            model = _shared[key] = load(name_or_path)
        return model


def load_weights(
    name_or_path: str | os.PathLike[str] | None = None,
    *,
    on_progress: Callable[[int, int], None] | None = None,
) -> tuple[ModelConfig, Weights, TokenizerSource, str]:
    """Configuration, weights as stored, tokenizer source and fingerprint of what `load` would load."""
    named = resolve_name(name_or_path)
    if is_hub(named):
        return _load_from_hub(named)
    path = Path(named).expanduser()
    if is_path(named) and path.is_dir():
        from mnemos.attention.hf_loader import load_directory

        return load_directory(path)
    from mnemos.attention.gguf_loader import load_gguf

    if is_path(named):
        return load_gguf(path)
    from mnemos.attention.pull import pull

    return load_gguf(pull(named, on_progress), name=named)


def _load_from_hub(named: str) -> tuple[ModelConfig, Weights, TokenizerSource, str]:
    from mnemos.attention.hub import HubName, fetch_from_hub

    path, name = fetch_from_hub(named), HubName.parse(named).title
    if path.is_dir():
        from mnemos.attention.hf_loader import load_directory

        return load_directory(path, name=name)
    from mnemos.attention.gguf_loader import load_gguf

    return load_gguf(path, name=name)


def pick_dtypes(name: str) -> tuple[torch.dtype, torch.dtype]:
    """The dtypes of prefill and of decode weights for a name.

    `auto` prefills in what the CPU multiplies fastest and decodes from bf16 weights, the fewer bytes.
    """
    if name == "auto":
        return fast_dtype(), torch.bfloat16
    if name not in DTYPES:
        raise UsageError(f"unknown dtype '{name}'; use auto, {', '.join(DTYPES)}")
    return DTYPES[name], DTYPES[name]


def make_decoder(
    config: ModelConfig,
    weights: Weights,
    dtype: str = "auto",
    decode_weights: str | None = None,
    compile: bool | None = None,
    device: str | None = None,
) -> "Decoder":
    """The decoder that `load` makes: conversations may share it."""
    from mnemos.attention.shared_decoder import SharedDecoder

    name = decode_name(dtype, decode_weights)
    prefill_dtype, _ = pick_dtypes(dtype)
    if torch.cuda.is_available():
        found = _on_gpu(config, weights, dtype, device)
        if found is not None:
            return found
    if name in PACKED and fits(config, prefill_dtype) and (library := kernels(compile)) is not None:
        return SharedDecoder(config, weights, dtype=prefill_dtype, library=library, packed=PACKED[name])
    prefill_dtype, decode_dtype, step_format = pick_formats(dtype, decode_weights)
    return SharedDecoder(
        config, weights, dtype=prefill_dtype, decode_dtype=decode_dtype, step_format=step_format
    )


def _on_gpu(config: ModelConfig, weights: Weights, dtype: str, device: str | None) -> "Decoder | None":
    """The model on a GPU; None where it is to run on the CPU: a GPU that nobody named may run out of
    memory.
    """
    from mnemos.attention.gpu.devices import device_name, gpu_dtype, pick_device

    chosen = gpu_dtype(dtype, pick_dtypes(dtype)[0], torch.device("cuda"))
    picked = pick_device(device, config, weights, chosen)
    if picked.type == "cpu":
        return None
    from mnemos.attention.gpu.decoder import DeviceDecoder

    try:
        return DeviceDecoder(config, weights, dtype=chosen, device=picked)
    except torch.OutOfMemoryError:
        if device_name(device) == "auto":
            return None
        raise ModelError(
            f"model {config.name} does not fit the memory of {picked}; use a smaller one, or set "
            "MNEMOS_DEVICE=cpu"
        ) from None


def pick_formats(
    dtype: str = "auto", decode_weights: str | None = None
) -> tuple[torch.dtype, torch.dtype, StepFormat]:
    """The dtypes of prefill and of plain decode weights, and the format of decode weights, as in `load` where
    nothing is compiled.
    """
    prefill_dtype, decode_dtype = pick_dtypes(dtype)
    name = decode_name(dtype, decode_weights)
    if name is None:
        return prefill_dtype, decode_dtype, "plain"
    if name == "bf16":
        decode_dtype = torch.bfloat16
    return prefill_dtype, decode_dtype, pick_format(name)


def _check_formats(dtype: str, decode_weights: str | None, compile: bool | None) -> None:
    """Raises UsageError for a name that means nothing or has no kernels, before anything is fetched."""
    pick_dtypes(dtype)
    if decode_name(dtype, decode_weights) not in PACKED or kernels(compile) is None:
        pick_formats(dtype, decode_weights)


def decode_name(dtype: str, decode_weights: str | None) -> str | None:
    """The name of the decode weights; None means those of prefill."""
    if decode_weights is not None:
        return decode_weights
    return os.environ.get("MNEMOS_DECODE_WEIGHTS") or ("auto" if dtype == "auto" else None)


def _control_text(tokenizer: Tokenizer, token: int | None) -> str:
    return "" if token is None else tokenizer.decode([token], special=True)
