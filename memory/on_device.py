"""What a recaller keeps on the device that its model runs on."""

from collections.abc import Sequence

import torch

from mnemos.attention.gpu.host_pool import HostPool
from mnemos.attention.gpu.pool import DevicePool
from mnemos.attention.gpu.resident_keys import ResidentKeys
from mnemos.attention.models import LanguageModel
from mnemos.memory.device_pager import DevicePager
from mnemos.memory.pager import DEFAULT_BUDGET_BYTES
from mnemos.memory.reviving import KVSource

_TRACE_BITS = 4  # of the traces that `MemoryEncoder` makes
_POOL_SHARE = 0.25  # of the device's free memory
_POOL_BYTES = 4 << 30  # at most
_KEYS_SHARE = 0.25
_HOST_BYTES = 512 << 20  # where there is no device memory to ask about: a model forced here by a test


def pager_for(model: LanguageModel, source: KVSource) -> DevicePager:
    """Over a pool of a part of what the device has free, and pinned memory of what `Pager` may have."""
    device = model.decoder.device
    budget = min(_POOL_BYTES, int(_POOL_SHARE * _free_bytes(device)))
    host = HostPool(model.config, _TRACE_BITS, budget_bytes=DEFAULT_BUDGET_BYTES, device=device)
    pool = DevicePool(model.config, _TRACE_BITS, budget_bytes=budget, device=device, host=host)

    def read_many(namespace: str, ids: Sequence[str]) -> dict[str, bytes]:
        return source.read_many(namespace, ids, bytes)

    return DevicePager(pool, source.read, read_many)


def resident_keys_for(model: LanguageModel) -> ResidentKeys:
    device = model.decoder.device
    return ResidentKeys(device, budget_bytes=int(_KEYS_SHARE * _free_bytes(device)))


def _free_bytes(device: torch.device) -> int:
    if device.type != "cuda":
        return _HOST_BYTES
    free, _ = torch.cuda.mem_get_info(device)
    return int(free)
