"""Pooled reading against the paper's equations (arXiv 2603.23516), written out in float64 head by head."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from mnemos.attention.config import ModelConfig
from mnemos.attention.decoder import Decoder
from mnemos.attention.hf_loader import load_directory
from mnemos.attention.msa_router import routing_keys
from mnemos.attention.pooled import encode_document, encode_template
from mnemos.attention.pooled_cache import PooledCache, PooledKeys
from mnemos.attention.pooled_codec import (
    decode_pooled_kv,
    decode_pooled_route,
    encode_pooled_kv,
    encode_pooled_route,
)
from mnemos.attention.registry import read_mode_of
from mnemos.errors import BankUnreadableError, ContextOverflowError, InvalidWeightsError, ModelMismatchError

pytestmark = pytest.mark.usefixtures("cache")
Array = NDArray[np.float64]
LAYERS, HEADS, KV_HEADS, DIM, HIDDEN, INNER, VOCAB = 4, 4, 2, 16, 48, 64, 288
POOL, TOP_K, THETA, EPS = 8, 3, 5_000_000.0, 1e-6
CONFIG = {
    "architectures": ["MSAForCausalLM"],
    "model_type": "msa",
    "hidden_act": "silu",
    "vocab_size": VOCAB,
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "head_dim": DIM,
    "intermediate_size": INNER,
    "max_position_embeddings": 512,
    "rms_norm_eps": EPS,
    "rope_theta": THETA,
    "rope_scaling": None,
    "attention_bias": False,
    "use_sliding_window": False,
    "sliding_window": None,
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MSA_4B = {
    "router_layer_idx": "2,3",
    "aux_loss": False,
    "lmloss_weigth": 1.0,
    "auxloss_weight": 0.1,
    "recloss_weight": 0.0,
    "ansloss_weight": 1.0,
    "aux_loss_method": "INFONCE_DECOUPLE",
    "decouple_router": True,
    "rewrite_position": True,
    "top_k_docs": TOP_K,
    "pooling_kernel_size": POOL,
    "infonce_loss_temp": 0.1,
    "head_reduce_method": "mean",
    "query_reduce_method": "max",
    "chunk_reduce_method": "max",
    "decouple_pooling_mode": "mean",
}
VARIANTS: dict[str, dict[str, Any]] = {
    "as MSA-4B": {},
    "cosine": {"aux_loss_method": "INFONCE"},
    "bce": {"aux_loss_method": "BCE"},
    "every layer": {"router_layer_idx": "all"},
    "a list of layers": {"router_layer_idx": [1, 3]},
    "no router of its own": {"decouple_router": False},
    "no router of its own, cosine": {"decouple_router": False, "aux_loss_method": "INFONCE"},
    "maxima and means": {"head_reduce_method": "max", "query_reduce_method": "mean"},
    "last token": {"query_reduce_method": "last", "chunk_reduce_method": "mean"},
    "more places than documents": {"top_k_docs": 16},
}
HEAD = [1, 70, 13]  # the template's three opening tokens


def tokens_of(count: int, seed: int) -> list[int]:
    found: list[int] = torch.randint(
        3, VOCAB, (count,), generator=torch.Generator().manual_seed(seed)
    ).tolist()
    return found


# Shorter than a chunk, exactly one, one over, exactly two, one token, and a long one.
DOCUMENTS = [tokens_of(n, 40 + n) for n in (POOL - 3, POOL, POOL + 1, 2 * POOL, 1, 5 * POOL - 1)]
QUESTION, TAIL = tokens_of(9, 7), [2, 13, 1]


@dataclass(frozen=True)
class Reference:
    """An MSA model in float64, from the published tensors and the paper's equations alone."""

    tensors: dict[str, Array]
    msa: dict[str, Any]

    @property
    def router_layers(self) -> list[int]:
        named = self.msa["router_layer_idx"]
        if named == "all":
            return list(range(LAYERS))
        return [int(i) for i in (named.split(",") if isinstance(named, str) else named)]

    def weight(self, layer: int, name: str) -> Array:
        return self.tensors[f"model.layers.{layer}.{name}.weight"]

    def norm(self, x: Array, weight: Array) -> Array:
        found: Array = x / np.sqrt((x * x).mean(-1, keepdims=True) + EPS) * weight
        return found

    def rope(self, x: Array, positions: list[int]) -> Array:
        """`x [tokens, dim]`, the halves of a head rotated against each other."""
        half = DIM // 2
        angle = np.outer(positions, THETA ** (-np.arange(half) * 2 / DIM))
        a, b = x[:, :half], x[:, half:]
        return np.concatenate(
            [a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)], 1
        )

    def project(self, x: Array, layer: int, name: str, heads: int) -> list[Array]:
        flat = x @ self.weight(layer, f"self_attn.{name}").T
        return [flat[:, h * DIM : (h + 1) * DIM] for h in range(heads)]

    def qkv(self, x: Array, layer: int, positions: list[int]) -> tuple[list[Array], list[Array], list[Array]]:
        q_norm, k_norm = (self.weight(layer, f"self_attn.{n}_norm") for n in "qk")
        q = [self.rope(self.norm(h, q_norm), positions) for h in self.project(x, layer, "q_proj", HEADS)]
        k = [self.rope(self.norm(h, k_norm), positions) for h in self.project(x, layer, "k_proj", KV_HEADS)]
        return q, k, self.project(x, layer, "v_proj", KV_HEADS)

    def attend(self, q: Array, k: Array, v: Array, seen: Array) -> Array:
        scores = np.where(seen, q @ k.T / np.sqrt(DIM), -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        found: Array = weights / weights.sum(-1, keepdims=True) @ v
        return found

    def rest(self, x: Array, attended: list[Array], layer: int) -> Array:
        x = x + np.concatenate(attended, 1) @ self.weight(layer, "self_attn.o_proj").T
        y = self.norm(x, self.weight(layer, "post_attention_layernorm"))
        gate = y @ self.weight(layer, "mlp.gate_proj").T
        up = y @ self.weight(layer, "mlp.up_proj").T
        return x + (gate / (1 + np.exp(-gate)) * up) @ self.weight(layer, "mlp.down_proj").T

    def pool(self, x: Array) -> Array:
        return np.stack([x[i : i + POOL].mean(0) for i in range(0, len(x), POOL)])

    def document(self, tokens: list[int]) -> dict[int, tuple[list[Array], list[Array], list[Array]]]:
        """Layer -> pooled keys, values and routing keys of each KV head."""
        x, positions = self.tensors["model.embed_tokens.weight"][tokens], list(range(len(tokens)))
        seen = np.tri(len(tokens), dtype=bool)
        kept = {}
        for layer in range(LAYERS):
            y = self.norm(x, self.weight(layer, "input_layernorm"))
            q, k, v = self.qkv(y, layer, positions)
            if layer in self.router_layers:
                raw = (
                    self.project(y, layer, "router_k_proj.0", KV_HEADS) if self.msa["decouple_router"] else k
                )
                kept[layer] = tuple([self.pool(h) for h in part] for part in (k, v, raw))
            group = HEADS // KV_HEADS
            x = self.rest(
                x, [self.attend(q[h], k[h // group], v[h // group], seen) for h in range(HEADS)], layer
            )
        return kept  # type: ignore[return-value]

    def score(self, q: list[Array], keys: list[Array]) -> float:
        """Of one document: equation 2, with the reductions that the configuration names."""
        cosine = self.msa["aux_loss_method"] == "INFONCE"
        by_head = []
        for head in range(HEADS):
            a, b = q[head], keys[head // (HEADS // KV_HEADS)]
            if cosine:
                a, b = (z / np.linalg.norm(z, axis=1, keepdims=True) for z in (a, b))
            by_head.append(a @ b.T if cosine else a @ b.T / np.sqrt(DIM))  # [tokens, chunks]
        head_reduce = {"mean": np.mean, "max": np.max}[self.msa["head_reduce_method"]]
        by_token = head_reduce(np.stack(by_head), axis=0)
        over = self.msa["query_reduce_method"]
        by_chunk = (
            by_token[-1] if over == "last" else {"mean": np.mean, "max": np.max}[over](by_token, axis=0)
        )
        return float({"mean": np.mean, "max": np.max}[self.msa["chunk_reduce_method"]](by_chunk))

    def read(
        self, tokens: list[int], question: range, documents: list[list[int]]
    ) -> tuple[Array, dict[int, list[int]], dict[int, list[float]]]:
        """Logits of each of `tokens`; the documents that each layer chose; scores."""
        kept = [self.document(d) for d in documents]
        whole = [*HEAD, *tokens]
        positions = [*range(len(HEAD)), *(len(HEAD) + self.msa["top_k_docs"] + i for i in range(len(tokens)))]
        x = self.tensors["model.embed_tokens.weight"][whole]
        local = np.tri(len(whole), dtype=bool)
        chosen: dict[int, list[int]] = {}
        scores: dict[int, list[float]] = {}
        group = HEADS // KV_HEADS
        for layer in range(LAYERS):
            y = self.norm(x, self.weight(layer, "input_layernorm"))
            q, k, v = self.qkv(y, layer, positions)
            seen = local
            if layer in self.router_layers and documents:
                raw = self.project(y, layer, "router_q_proj.0", HEADS) if self.msa["decouple_router"] else q
                rows = [len(HEAD) + i for i in question]
                scores[layer] = [self.score([h[rows] for h in raw], d[layer][2]) for d in kept]
                order = sorted(range(len(kept)), key=lambda i: -scores[layer][i])
                chosen[layer] = order[: self.msa["top_k_docs"]]
                k = [
                    np.concatenate([*(kept[i][layer][0][h] for i in chosen[layer]), k[h]])
                    for h in range(KV_HEADS)
                ]
                v = [
                    np.concatenate([*(kept[i][layer][1][h] for i in chosen[layer]), v[h]])
                    for h in range(KV_HEADS)
                ]
                chunks = len(k[0]) - len(whole)
                # The template was read before any document was chosen.
                told = np.tile(np.arange(len(whole))[:, None] >= len(HEAD), (1, chunks))
                seen = np.concatenate([told, local], axis=1)
            x = self.rest(
                x, [self.attend(q[h], k[h // group], v[h // group], seen) for h in range(HEADS)], layer
            )
        logits = self.norm(x, self.tensors["model.norm.weight"]) @ self.tensors["model.embed_tokens.weight"].T
        return logits[len(HEAD) :], chosen, scores


def write(directory: Path, tokenizer: tokenizers.Tokenizer, **changes: Any) -> Reference:
    """A small random checkpoint as MSA-4B is published: sharded, with routers and the loss's scalar."""
    msa = MSA_4B | changes
    layers = Reference({}, msa).router_layers
    generator = torch.Generator().manual_seed(5)

    def matrix(rows: int, columns: int = HIDDEN) -> torch.Tensor:
        return torch.randn(rows, columns, generator=generator) * 0.15

    def vector(size: int) -> torch.Tensor:
        return torch.rand(size, generator=generator) + 0.5

    state = {"model.embed_tokens.weight": matrix(VOCAB) * 4, "model.norm.weight": vector(HIDDEN)}
    for layer in range(LAYERS):
        start = f"model.layers.{layer}"
        for name, heads in (("q", HEADS), ("k", KV_HEADS), ("v", KV_HEADS)):
            state[f"{start}.self_attn.{name}_proj.weight"] = matrix(heads * DIM)
        if layer in layers and msa["decouple_router"]:
            state[f"{start}.self_attn.router_q_proj.0.weight"] = matrix(HEADS * DIM)
            state[f"{start}.self_attn.router_k_proj.0.weight"] = matrix(KV_HEADS * DIM)
        for name in ("q", "k"):
            state[f"{start}.self_attn.{name}_norm.weight"] = vector(DIM)
        state[f"{start}.self_attn.o_proj.weight"] = matrix(HIDDEN, HEADS * DIM)
        for name in ("gate", "up"):
            state[f"{start}.mlp.{name}_proj.weight"] = matrix(INNER)
        state[f"{start}.mlp.down_proj.weight"] = matrix(HIDDEN, INNER)
        for name in ("input", "post_attention"):
            state[f"{start}.{name}_layernorm.weight"] = vector(HIDDEN)
    state["b" if msa["aux_loss_method"] == "BCE" else "temperature"] = torch.tensor(0.1)
    directory.mkdir()
    shards: dict[str, str] = {}
    for number, names in enumerate((list(state)[::2], list(state)[1::2]), start=1):
        file = f"model-0000{number}-of-00002.safetensors"
        save_file({name: state[name] for name in names}, directory / file, metadata={"format": "pt"})
        shards |= dict.fromkeys(names, file)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    (directory / "config.json").write_text(json.dumps(CONFIG | {"msa_config": msa}))
    tokenizer.save(str(directory / "tokenizer.json"))
    return Reference({name: tensor.double().numpy() for name, tensor in state.items()}, msa)


@pytest.fixture
def checkpoint(
    tmp_path: Path, byte_tokenizer: tokenizers.Tokenizer
) -> Callable[..., tuple[Decoder, Reference]]:
    def make(**changes: Any) -> tuple[Decoder, Reference]:
        reference = write(tmp_path / "tiny-msa", byte_tokenizer, **changes)
        config, weights, _, _ = load_directory(tmp_path / "tiny-msa")
        return Decoder(config, weights), reference

    return make


def open_cache(decoder: Decoder, documents: list[list[int]], room: int) -> PooledCache:
    """A NaN-poisoned cache over pooled documents, template in place."""
    assert decoder.config.msa is not None
    pooled = [encode_document(decoder, tokens) for tokens in documents]
    keys = torch.cat([d.keys for d in pooled], dim=2) if pooled else torch.empty(0)
    found = PooledKeys(
        routing_keys(keys, decoder.config.msa), [d.kv.tokens for d in pooled], lambda i: pooled[i].kv
    )
    template = encode_template(decoder, HEAD)
    cache = PooledCache(decoder.config, len(HEAD) + room, decoder.dtype, found)
    cache.k.fill_(torch.nan)
    cache.v.fill_(torch.nan)
    cache.load_template(template)
    return cache


@pytest.mark.parametrize("variant", VARIANTS)
def test_scores_choices_logits_and_greedy_tokens_equal_the_equations(
    variant: str, checkpoint: Callable[..., tuple[Decoder, Reference]]
) -> None:
    decoder, reference = checkpoint(**VARIANTS[variant])
    prompt, new = [*QUESTION, *TAIL], 12
    cache = open_cache(decoder, DOCUMENTS, len(prompt) + new)
    cache.choose_at_prefill(range(len(QUESTION)))
    ours = decoder.forward_all(prompt, cache)
    theirs, chosen, scores = reference.read(prompt, range(len(QUESTION)), DOCUMENTS)
    assert {layer: list(found) for layer, found in cache.choices.documents.items()} == chosen
    assert sorted(chosen) == reference.router_layers
    for layer, found in scores.items():
        assert np.allclose(cache.choices.scores[layer], found, atol=1e-5)
    assert np.abs(ours.numpy() - theirs).max() < 1e-3
    without, _, _ = reference.read(prompt, range(len(QUESTION)), [])
    assert np.abs(without - theirs).max() > 0.05, "documents that change nothing would prove nothing"
    tokens, logits = list(prompt), ours[-1]
    for _ in range(new):
        tokens.append(int(logits.argmax()))
        logits = decoder.forward(tokens[-1:], cache)
    whole, _, _ = reference.read(tokens, range(len(QUESTION)), DOCUMENTS)
    assert whole[len(prompt) - 1 : -1].argmax(-1).tolist() == tokens[len(prompt) :]
    assert np.abs(logits.numpy() - whole[-1]).max() < 1e-3


@pytest.mark.parametrize("count", [1, POOL - 1, POOL, POOL + 1, 3 * POOL])
@pytest.mark.parametrize("decoupled", [True, False])
def test_a_document_is_pooled_in_chunks(
    count: int, decoupled: bool, checkpoint: Callable[..., tuple[Decoder, Reference]]
) -> None:
    decoder, reference = checkpoint(decouple_router=decoupled)
    tokens = tokens_of(count, 90)
    ours, theirs = encode_document(decoder, tokens), reference.document(tokens)
    assert ours.kv.tokens == -(-count // POOL)
    # Stored keys have the two halves of a rotary pair side by side; routing keys only where they are those.
    order = np.arange(DIM).reshape(2, -1).T.ravel()
    for row, layer in enumerate(reference.router_layers):
        keys, values, routing = theirs[layer]
        for head in range(KV_HEADS):
            assert np.allclose(ours.kv.k[row, head], keys[head][:, order], atol=1e-4)
            assert np.allclose(ours.kv.v[row, head], values[head], atol=1e-4)
            wanted = routing[head] if decoupled else routing[head][:, order]
            assert np.allclose(ours.keys[row, head], wanted, atol=1e-4)


def test_without_documents_it_is_a_model_like_any_other(
    checkpoint: Callable[..., tuple[Decoder, Reference]],
) -> None:
    decoder, reference = checkpoint()
    cache = open_cache(decoder, [], len(QUESTION))
    cache.choose_at_prefill(range(len(QUESTION)))
    ours = decoder.forward_all(QUESTION, cache)
    theirs, chosen, _ = reference.read(QUESTION, range(len(QUESTION)), [])
    assert np.abs(ours.numpy() - theirs).max() < 1e-3
    assert cache.choices.documents == chosen == {}


def test_a_cleared_cache_holds_nothing_of_the_documents(
    checkpoint: Callable[..., tuple[Decoder, Reference]],
) -> None:
    decoder, _ = checkpoint()
    cache = open_cache(decoder, DOCUMENTS, len(QUESTION))
    cache.k.zero_()
    cache.v.zero_()
    cache.choose_at_prefill(range(len(QUESTION)))
    decoder.prefill(QUESTION, cache)
    assert cache.k[2, :, : cache.reserved].any()
    cache.zero_()
    assert not cache.k.any()
    assert not cache.v.any()
    assert cache.choices.chosen == ()


def test_a_question_without_words_and_one_too_many(
    checkpoint: Callable[..., tuple[Decoder, Reference]],
) -> None:
    decoder, _ = checkpoint()
    cache = open_cache(decoder, DOCUMENTS, len(QUESTION))
    with pytest.raises(ContextOverflowError, match="question"):
        cache.choose_at_prefill([])
    with pytest.raises(ContextOverflowError):
        decoder.prefill([*QUESTION, 5], cache)


def edit(directory: Path, name: str, tensor: torch.Tensor | None) -> None:
    index = json.loads((directory / "model.safetensors.index.json").read_text())
    file = index["weight_map"].get(name, "model-00001-of-00002.safetensors")
    tensors = {key: each.clone() for key, each in load_file(directory / file).items()}
    if tensor is None:
        del tensors[name], index["weight_map"][name]
    else:
        tensors[name], index["weight_map"][name] = tensor, file
    save_file(tensors, directory / file, metadata={"format": "pt"})
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))


ROUTER = "model.layers.2.self_attn.router_q_proj.0.weight"


@pytest.mark.parametrize(
    ("name", "tensor", "said"),
    [
        (ROUTER, torch.zeros(DIM, HIDDEN), r"router_q_proj.0.weight has shape \[16, 48\]"),
        (ROUTER, None, "router_q_proj.0.weight is missing"),
        (ROUTER, torch.full((HEADS * DIM, HIDDEN), torch.nan), "router_q_proj.0.weight holds NaN"),
        ("temperature", torch.zeros(2), r"temperature has shape \[2\]"),
        ("model.layers.0.self_attn.router_k_proj.0.weight", torch.zeros(1), "no part of a msa decoder"),
    ],
)
def test_wrong_tensors_are_named(
    name: str, tensor: torch.Tensor | None, said: str, tmp_path: Path, byte_tokenizer: tokenizers.Tokenizer
) -> None:
    write(tmp_path / "tiny-msa", byte_tokenizer)
    edit(tmp_path / "tiny-msa", name, tensor)
    with pytest.raises(InvalidWeightsError, match=said):
        load_directory(tmp_path / "tiny-msa")


def test_what_is_no_msa_model_is_refused(tmp_path: Path, byte_tokenizer: tokenizers.Tokenizer) -> None:
    directory = tmp_path / "tiny-msa"
    write(directory, byte_tokenizer)
    described = json.loads((directory / "config.json").read_text())
    for changes, said in (
        ({"model_type": "llama"}, "msa_config on architecture 'llama'"),
        ({"use_sliding_window": True, "sliding_window": 24, "max_window_layers": 1}, "use_sliding_window"),
        ({"msa_config": "all"}, "msa_config in its config.json is not an object"),
    ):
        (directory / "config.json").write_text(json.dumps(described | changes))
        with pytest.raises(InvalidWeightsError, match=said):
            load_directory(directory)


def test_reading_is_part_of_the_model_s_fingerprint(
    tmp_path: Path, byte_tokenizer: tokenizers.Tokenizer
) -> None:
    directory = tmp_path / "tiny-msa"
    write(directory, byte_tokenizer)
    config, _, _, before = load_directory(directory)
    assert ModelConfig.from_json(json.loads(json.dumps(config.to_json()))) == config
    assert config.read_mode == read_mode_of(directory) == "pooled"
    described = json.loads((directory / "config.json").read_text())
    described["msa_config"]["pooling_kernel_size"] = POOL * 2
    (directory / "config.json").write_text(json.dumps(described))
    assert load_directory(directory)[3] != before


@pytest.mark.parametrize("bits", [16, 32])
def test_pooled_traces_survive_bytes(bits: Any, checkpoint: Callable[..., tuple[Decoder, Reference]]) -> None:
    decoder, _ = checkpoint()
    config = decoder.config
    assert config.msa is not None
    made = encode_document(decoder, DOCUMENTS[5])
    payload = encode_pooled_kv(made.kv, config.msa, bits)
    route = encode_pooled_route(made.keys, config.msa, bits)
    assert (payload[:4], route[:4]) == (b"MPK1", b"MPR1")
    (span,) = decode_pooled_kv(payload, config, torch.float32)
    tolerance = 0.0 if bits == 32 else 0.01
    assert torch.allclose(span.k, made.kv.k, rtol=tolerance, atol=0)
    assert torch.allclose(span.v, made.kv.v, rtol=tolerance, atol=0)
    keys = decode_pooled_route(route, config)
    assert keys.span_tokens == (made.kv.tokens,)
    assert torch.allclose(keys.keys.unflatten(0, (2, KV_HEADS)), made.keys, rtol=tolerance, atol=0)
    for broken in (b"", payload[:10], payload[:-1], payload + b"\0", b"MKV1" + payload[4:], route):
        with pytest.raises(BankUnreadableError):
            decode_pooled_kv(broken, config, torch.float32)
    other = replace(config, msa=replace(config.msa, pooling_tokens=POOL * 2))
    with pytest.raises(ModelMismatchError, match="reencode"):
        decode_pooled_kv(payload, other, torch.float32)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_reads_nearly_the_same(
    dtype: torch.dtype, tmp_path: Path, byte_tokenizer: tokenizers.Tokenizer
) -> None:
    reference = write(tmp_path / "tiny-msa", byte_tokenizer, top_k_docs=16)
    config, weights, _, _ = load_directory(tmp_path / "tiny-msa")
    decoder = Decoder(config, weights, dtype=dtype)
    cache = open_cache(decoder, DOCUMENTS, len(QUESTION))
    cache.choose_at_prefill(range(len(QUESTION)))
    ours = decoder.forward_all(QUESTION, cache)
    theirs, _, _ = reference.read(QUESTION, range(len(QUESTION)), DOCUMENTS)
    assert np.abs(ours.numpy() - theirs).mean() < 0.05 * theirs.std()
