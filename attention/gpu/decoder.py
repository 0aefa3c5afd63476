"""A decoder whose weights, working memory and paged memories are on a device."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from mnemos.attention.config import ModelConfig
from mnemos.attention.decoder import Collect, Layer
from mnemos.attention.gpu.cache import DeviceCache, Scratch
from mnemos.attention.gpu.captured import Step
from mnemos.attention.gpu.decode import DecodeLoop
from mnemos.attention.kv import KVCache
from mnemos.attention.linear import Projection
from mnemos.attention.rope import Rotary
from mnemos.attention.shared_decoder import SharedDecoder
from mnemos.attention.step_weights import PlainWeight
from mnemos.attention.weights import Weights
from mnemos.errors import ContextOverflowError


class DeviceDecoder(SharedDecoder):
    """As `SharedDecoder`, on a device: passes over many tokens are torch's, steps are those of `DecodeLoop`.

    Logits stay on the device; what a pass collects comes to the host.
    """

    reads_pages = True

    def __init__(
        self,
        config: ModelConfig,
        weights: Weights,
        *,
        dtype: torch.dtype,
        device: torch.device | str,
        make_runner: Callable[[Step], Step] | None = None,
    ) -> None:
        """Raises torch.OutOfMemoryError when the weights don't fit the device. `make_runner` is for tests."""
        super().__init__(config, weights, dtype=dtype)
        self.device = torch.device(device)
        is_tied = self.lm_head.weight.data_ptr() == self.embed.data_ptr()
        self.embed = self.embed.to(self.device)
        self.norm = self.norm.to(self.device)
        _replace(self.lm_head, self.embed if is_tied else self.lm_head.weight.to(self.device))
        for layer in self.layers:
            _move(layer, self.device)
        self.host_rotaries = self.rotaries
        self.rotaries = [_DeviceRotary(rotary, self.device) for rotary in self.host_rotaries]
        self._layer_rotaries = [self.rotaries[layer.rotary] for layer in self.layers]
        self._scratch = Scratch(config, dtype, self.device)
        self.loop = DecodeLoop(self, make_runner)

    def new_cache(self, capacity: int) -> DeviceCache:
        return DeviceCache(
            self.config,
            capacity,
            self.dtype,
            self.device,
            self._layer_rotaries,
            self._scratch,
            self.loop.forget,
        )

    def _run(self, tokens: Sequence[int], cache: KVCache, collect: Collect | None, layers: int) -> Tensor:
        try:
            found = super()._run(tokens, cache, collect, layers)
        except torch.OutOfMemoryError:
            raise ContextOverflowError(
                f"the device has no memory left to read {len(tokens)} tokens; shorten the message, end other "
                "sessions, or set MNEMOS_DEVICE=cpu"
            ) from None
        finally:
            if cache.memory_tokens:
                self._scratch.zero_()
        if collect is not None:
            for kept in (collect.queries, collect.hidden):
                for layer, states in kept.items():
                    kept[layer] = states.cpu()
            if collect.mass is not None:
                collect.mass = collect.mass.cpu()
        return found

    def _attend(
        self, q: Tensor, cache: KVCache, layer: int, end: int, mask: Tensor | None, collect: Collect | None
    ) -> Tensor:
        heads, count, dim = q.shape
        if cache.memory_tokens or mask is None:
            return super()._attend(q, cache, layer, end, mask, collect)
        # Fused attention takes a mask, or groups of heads, not both; so each head has its keys.
        group = heads // self.config.kv_heads
        k, v = (part.repeat_interleave(group, dim=0) for part in cache.seen(layer, 0, end))
        is_causal = count == end and (self.window is None or not self.layers[layer].is_local)
        out = functional.scaled_dot_product_attention(
            q[None], k[None], v[None], attn_mask=None if is_causal else mask, is_causal=is_causal,
            scale=self.scale,
        )[0]  # [heads, tokens, dim]  # fmt: skip
        return out.transpose(0, 1).reshape(count, heads * dim)

    def _many(self, rows: Sequence[tuple[Sequence[int], KVCache]]) -> Sequence[Tensor]:
        caches = []
        for _, cache in rows:
            assert isinstance(cache, DeviceCache), "a cache of this decoder"
            caches.append(cache)
        return list(torch.split(self.loop.step([tokens[0] for tokens, _ in rows], caches), 1))

    def _one(self, tokens: Sequence[int], cache: KVCache) -> Tensor:
        return self._many([(tokens, cache)])[0]


class _DeviceRotary(Rotary):
    """A rotary whose table is on a device."""

    def __init__(self, host: Rotary, device: torch.device) -> None:
        self._host, self._device = host, device
        self._table = torch.empty(0, device=device)

    def _upto(self, end: int) -> Tensor:
        table = self._table
        if end > len(table):
            self._table = table = self._host._upto(end).to(self._device)
        return table


def _move(layer: Layer, device: torch.device) -> None:
    for name in Layer.__slots__:
        part = getattr(layer, name, None)
        if isinstance(part, Projection):
            _replace(part, part.weight.to(device))
        elif isinstance(part, Tensor):
            setattr(layer, name, part.to(device))


def _replace(projection: Projection, weight: Tensor) -> None:
    projection.weight = weight
    projection.step = PlainWeight(weight)
