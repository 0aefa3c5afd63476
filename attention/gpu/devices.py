"""On which device a model runs: what was asked for, what is there, what fits."""

import importlib.util
import os
import re

import torch

from mnemos.attention.config import ModelConfig
from mnemos.attention.kernels.checks import HEAD_DIMS, MAX_GROUP
from mnemos.attention.weights import Weights
from mnemos.errors import ModelError, UsageError

DEVICE_ENV = "MNEMOS_DEVICE"
_NAMED = re.compile(r"auto|cpu|cuda(:\d+)?")
_WORK_SHARE = 1.2  # of the weights: what has to be free for them and for the least that runs beside them


def device_name(device: str | None) -> str:
    """`auto`, `cpu`, `cuda` or `cuda:N`, as asked for or as `MNEMOS_DEVICE` says. Raises UsageError."""
    named = device or os.environ.get(DEVICE_ENV) or "auto"
    if not _NAMED.fullmatch(named):
        raise UsageError(f"unknown device '{named}'; use auto, cpu, cuda or cuda:N")
    return named


def check_device(device: str | None) -> None:
    """Raises UsageError for a name that means nothing, ModelError for a GPU that isn't there; before a model
    is fetched.
    """
    named = device_name(device)
    if named.startswith("cuda"):
        _check_there(named)


def pick_device(
    device: str | None, config: ModelConfig, weights: Weights, dtype: torch.dtype
) -> torch.device:
    """The device for a model: of `auto` a GPU where it is there, its kernels fit and the weights do.

    Raises UsageError or ModelError when what is named can't be had.
    """
    named = device_name(device)
    if named == "cpu" or (named == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if named != "auto":
        _check_there(named)
    found = torch.device("cuda" if named == "auto" else named)
    problem = _problem(config, weights, dtype, found)
    if problem is None:
        return found
    if named == "auto":
        return torch.device("cpu")
    raise ModelError(f"model {config.name} can't run on {named}: {problem}; set {DEVICE_ENV}=cpu")


def gpu_dtype(name: str, fallback: torch.dtype, device: torch.device) -> torch.dtype:
    """What weights are multiplied in on a GPU: bf16 for `auto` where its hardware has it, otherwise fp32."""
    if name != "auto":
        return fallback
    with torch.cuda.device(device):
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32


def _check_there(named: str) -> None:
    if not torch.cuda.is_available():
        raise ModelError(
            f"device {named} was asked for and there is no CUDA device that PyTorch can use; check the "
            f"driver and that PyTorch is a CUDA build, or set {DEVICE_ENV}=cpu"
        )
    index, count = torch.device(named).index or 0, torch.cuda.device_count()
    if index >= count:
        raise ModelError(f"device {named} was asked for and there are {count}, counted from 0; use another")


def _problem(config: ModelConfig, weights: Weights, dtype: torch.dtype, device: torch.device) -> str | None:
    """Why the model can't run there."""
    if config.msa is not None:
        return "it reads pooled memories, which are read on the CPU"
    if config.head_dim not in HEAD_DIMS or config.heads // config.kv_heads > MAX_GROUP:
        return f"the kernels have no form for {config.heads} heads of {config.head_dim}"
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    numbers = sum(tensor.numel() for _, tensor in weights.named())
    free, _ = torch.cuda.mem_get_info(device)
    wanted = int(numbers * dtype.itemsize * _WORK_SHARE)
    if wanted > free:
        return f"it needs {wanted >> 20} MiB of the device's memory, of which {free >> 20} MiB are free"
    return None
