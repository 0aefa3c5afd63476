"""The reading form of an MSA checkpoint (arXiv 2603.23516) with gradients, in fp32.

Documents are encoded alone and pooled, a question chooses among them layer by layer, and what follows reads
those chosen: the same scores, choices and logits as `pooled.py` and `pooled_cache.py` give. A choice has no
gradient: the routers learn by the scores that are returned, and by nothing else.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from mnemos.attention.config import ModelConfig
from mnemos.attention.msa_router import chunk_scores, routing_keys, top_documents
from mnemos.attention.pooled import pool
from mnemos.attention.rope import rotaries
from mnemos.attention.weights import Weights, layer_name
from mnemos.errors import ModelError

ROUTERS = ("router_q", "router_k")
READERS = ("q", "k", "v", "o")


@dataclass(frozen=True, slots=True)
class Encoded:
    """A document as the routing layers see it; the weights of the routers have no part in it."""

    k: Tensor  # [router layers, kv_heads, chunks, head_dim], after norm and RoPE
    v: Tensor  # [router layers, kv_heads, chunks, head_dim]
    states: Tensor  # [router layers, chunks, hidden], normed: a routing key is a projection of these

    @property
    def chunks(self) -> int:
        return self.states.shape[1]


@dataclass(frozen=True, slots=True)
class Reading:
    """What one prefill made of its documents."""

    scores: Tensor  # [router layers, documents], with gradients
    chosen: tuple[tuple[int, ...], ...]  # of each router layer, best first
    hidden: Tensor  # [tokens, hidden], after the last norm


class MsaReading(nn.Module):
    """The layers of a checkpoint whose routers, and if `readers` the attention of routing layers, learn."""

    def __init__(self, config: ModelConfig, weights: Weights, *, readers: bool = False) -> None:
        """Raises ModelError for a model without routers of its own, or with layers that this doesn't read."""
        super().__init__()
        if config.msa is None or not config.msa.decouple_router:
            raise ModelError(
                f"{config.name} has no routers of its own (decouple_router in msa_config): it routes by its "
                "queries and keys, and there is no router to train"
            )
        if config.activation != "silu" or config.sliding_layers or config.post_norms or config.qkv_bias:
            raise ModelError(f"{config.name} has layers that no published MSA checkpoint has; not trained")
        self.config, self.msa = config, config.msa
        self.learns = (*ROUTERS, *(READERS if readers else ()))
        self._rotaries, self._rotary_of = rotaries(config)
        self.embed = _fixed(weights.embed)
        self.head = self.embed if weights.lm_head is weights.embed else _fixed(weights.lm_head)
        self.norm = _fixed(weights.norm)
        self.layers = nn.ModuleList()
        for index, layer in enumerate(weights.layers):
            learnt = self.learns if index in self.msa.router_layers else ()
            names = ["attn_norm", "q", "k", "v", "o", "mlp_norm", "gate", "up", "down"]
            names += [*(["q_norm", "k_norm"] if config.qk_norm else []), *(ROUTERS if learnt else ())]
            held = {name: _fixed(getattr(layer, name)) for name in names}
            for name in learnt:
                held[name].requires_grad_()
            self.layers.append(nn.ParameterDict(held))

    def _layer(self, index: int) -> nn.ParameterDict:
        layer = self.layers[index]
        assert isinstance(layer, nn.ParameterDict)
        return layer

    def routers(self) -> list[nn.Parameter]:
        """The weights of the routers."""
        return [self._layer(index)[name] for index in self.msa.router_layers for name in ROUTERS]

    def readers(self) -> list[nn.Parameter]:
        """Weights of attention that learn; none unless that was asked for."""
        names = [name for name in self.learns if name in READERS]
        return [self._layer(index)[name] for index in self.msa.router_layers for name in names]

    def learnt(self) -> dict[str, Tensor]:
        """What learns, by its Hugging Face name, on the CPU."""
        return {name: weight.detach().cpu().clone() for name, weight in self.named_learnt()}

    def named_learnt(self) -> list[tuple[str, nn.Parameter]]:
        """The very parameters that learn, with their Hugging Face names."""
        return [
            (f"model.layers.{index}.{layer_name(name, post_norms=False)}", self._layer(index)[name])
            for index in self.msa.router_layers
            for name in self.learns
        ]

    def document(self, tokens: Sequence[int]) -> Encoded:
        """One document, read alone at positions from 0 and pooled."""
        x, size = self._embedded(tokens), self.msa.pooling_tokens
        mask = torch.ones(len(tokens), len(tokens), dtype=torch.bool, device=x.device).tril()
        kept: list[tuple[Tensor, Tensor, Tensor]] = []
        for index in range(self.msa.router_layers[-1] + 1):
            normed, q, k, v = self._projected(x, index, range(len(tokens)))
            if index in self.msa.router_layers:
                kept.append((pool(k, size), pool(v, size), pool(normed, size)))
            x = self._rest(x, index, q, k, v, mask)
        return Encoded(*(torch.stack(parts) for parts in zip(*kept, strict=True)))

    def read(
        self, template: Sequence[int], tokens: Sequence[int], question: int, documents: Sequence[Encoded]
    ) -> Reading:
        """`tokens`, whose first `question` choose among `documents`, behind the template."""
        ahead, count = len(template), len(template) + len(tokens)
        positions = [*range(ahead), *(at + self.msa.top_k for at in range(ahead, count))]
        x = self._embedded([*template, *tokens])
        local = torch.ones(count, count, dtype=torch.bool, device=x.device).tril()
        scores, chosen = [], []
        for index in range(self.config.layers):
            normed, q, k, v = self._projected(x, index, positions)
            mask = local
            if index in self.msa.router_layers and documents:
                row = self.msa.router_layers.index(index)
                of_layer = self._scores(index, row, normed[ahead : ahead + question], documents)
                picked = top_documents(of_layer.detach(), self.msa.top_k)
                scores.append(of_layer)
                chosen.append(tuple(picked))
                k = torch.cat([*(documents[at].k[row] for at in reversed(picked)), k], dim=1)
                v = torch.cat([*(documents[at].v[row] for at in reversed(picked)), v], dim=1)
                told = torch.arange(count, device=x.device)[:, None] >= ahead  # the template sees none
                mask = torch.cat([told.expand(-1, k.shape[1] - count), local], dim=1)
            x = self._rest(x, index, q, k, v, mask)
        hidden = _normed(x, self.norm, self.config.rms_norm_eps)[ahead:]
        return Reading(torch.stack(scores) if scores else x.new_zeros(0, 0), tuple(chosen), hidden)

    def logits(self, hidden: Tensor) -> Tensor:
        """`[tokens, vocab]`."""
        return functional.linear(hidden, self.head)

    def _scores(self, index: int, row: int, normed: Tensor, documents: Sequence[Encoded]) -> Tensor:
        """Of every document for a layer, `[documents]`; `normed [question tokens, hidden]`."""
        weights, config, msa = self._layer(index), self.config, self.msa
        states = torch.cat([each.states[row] for each in documents])  # [chunks, hidden]
        keys = torch.unflatten(functional.linear(states, weights["router_k"]), 1, (config.kv_heads, -1))
        queries = torch.unflatten(functional.linear(normed, weights["router_q"]), 1, (config.heads, -1))
        by_chunk = chunk_scores(queries.transpose(0, 1), routing_keys(keys.transpose(0, 1), msa), msa)
        parts = torch.split(by_chunk, [each.chunks for each in documents])
        best = [part.amax() if msa.chunk_reduce == "max" else part.mean() for part in parts]
        return torch.stack(best)

    def _embedded(self, tokens: Sequence[int]) -> Tensor:
        x = functional.embedding(torch.tensor(list(tokens), device=self.embed.device), self.embed)
        return x * self.config.embedding_scale

    def _projected(
        self, x: Tensor, index: int, positions: Sequence[int]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Normed input `[tokens, hidden]`; queries, keys and values `[heads, tokens, head_dim]`."""
        weights, config = self._layer(index), self.config
        normed = _normed(x, weights["attn_norm"], config.rms_norm_eps)
        q, k, v = (
            torch.unflatten(functional.linear(normed, weights[name]), 1, (-1, config.head_dim)).transpose(
                0, 1
            )
            for name in ("q", "k", "v")
        )
        if config.qk_norm:
            q = _normed(q, weights["q_norm"], config.rms_norm_eps)
            k = _normed(k, weights["k_norm"], config.rms_norm_eps)
        table = self._rotaries[self._rotary_of[index]].span(0, max(positions) + 1)
        turns = table[torch.tensor(list(positions))].to(x.device)  # [tokens, head_dim / 2]
        return normed, _turned(q, turns), _turned(k, turns), v

    def _rest(self, x: Tensor, index: int, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        """A layer from its attention on; `mask [tokens, slots]` says what is seen."""
        weights = self._layer(index)
        seen = functional.scaled_dot_product_attention(
            q[None],
            k[None],
            v[None],
            attn_mask=mask,
            scale=self.config.score_scale,
            enable_gqa=len(q) != len(k),
        )[0]
        x = x + functional.linear(seen.transpose(0, 1).flatten(1), weights["o"])
        normed = _normed(x, weights["mlp_norm"], self.config.rms_norm_eps)
        inner = functional.silu(functional.linear(normed, weights["gate"]))
        return x + functional.linear(inner * functional.linear(normed, weights["up"]), weights["down"])


def _fixed(weight: Tensor) -> nn.Parameter:
    return nn.Parameter(weight.detach().float().clone(), requires_grad=False)


def _normed(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight


def _turned(x: Tensor, turns: Tensor) -> Tensor:
    """RoPE of `[heads, tokens, head_dim]`, the halves of a head being the pairs."""
    one, other = x.chunk(2, dim=-1)
    cos, sin = turns.real, turns.imag
    return torch.cat([one * cos - other * sin, other * cos + one * sin], dim=-1)
