"""Models for the tests of this room: the real default model, and tiny random checkpoints made on the spot."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tokenizers
import torch

from mnemos.attention.config import ModelConfig
from mnemos.attention.models import LanguageModel, load, load_weights
from mnemos.attention.pull import pull
from mnemos.attention.tokenizer_source import TokenizerSource
from mnemos.attention.weights import Weights

try:
    import gguf
    from gguf.constants import GGMLQuantizationType
except ModuleNotFoundError:  # `make gpu` with a GPU machine's own Python: no test there writes such files
    gguf, GGMLQuantizationType = None, SimpleNamespace(F32=None)  # type: ignore[assignment,misc]

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] "
    "+ '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


@pytest.fixture(scope="session")
def default_path() -> Path:
    """The default model's weights, fetched as a user's would be."""
    return pull("smollm2-135m")


@pytest.fixture(scope="session")
def default_weights(default_path: Path) -> tuple[ModelConfig, Weights, TokenizerSource, str]:
    return load_weights(default_path)


@pytest.fixture(scope="session")
def default_model(default_path: Path) -> LanguageModel:
    """The default model in fp32 throughout."""
    return load(default_path, dtype="fp32")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache directory of this test's own."""
    directory = tmp_path / "cache"
    monkeypatch.setenv("MNEMOS_CACHE_DIR", str(directory))
    return directory


@pytest.fixture(scope="session")
def byte_tokenizer() -> tokenizers.Tokenizer:
    """Byte-level BPE over three control tokens, the 256 bytes and a few merges."""
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: index for index, token in enumerate([*CONTROL, *letters])}
    merges = [("h", "e"), ("l", "l"), ("he", "ll"), ("hell", "o"), ("Ġ", "w"), ("i", "n")]
    for left, right in merges:
        vocab[left + right] = len(vocab)
    built = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocab, merges=merges))
    built.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [
            tokenizers.pre_tokenizers.Digits(individual_digits=True),
            tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    built.decoder = tokenizers.decoders.ByteLevel()
    built.add_special_tokens([tokenizers.AddedToken(token, special=True) for token in CONTROL])
    return built


@pytest.fixture(scope="session")
def tiny_llama(byte_tokenizer: tokenizers.Tokenizer) -> Any:
    """A small random Llama with grouped queries and a head of its own, as transformers builds it."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(7)
    config = LlamaConfig(
        vocab_size=288,
        hidden_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=96,
        max_position_embeddings=128,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 50000.0},
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=2,
        initializer_range=0.2,
    )
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5)
    return model


@pytest.fixture
def hf_directory(tmp_path: Path, tiny_llama: Any, byte_tokenizer: tokenizers.Tokenizer) -> Iterator[Path]:
    """`tiny_llama` saved as people find models: sharded safetensors, tokenizer, chat template."""
    directory = tmp_path / "tiny"
    tiny_llama.save_pretrained(directory, max_shard_size="100KB")
    byte_tokenizer.save(str(directory / "tokenizer.json"))
    settings = {"bos_token": "<|im_start|>", "eos_token": {"content": "<|im_end|>"}, "chat_template": CHATML}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    return directory


_SIZES: dict[str, Any] = {
    "vocab_size": 288,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_LLAMA3_ROPE = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
    "rope_type": "llama3",
}
# What config.json of each family says as published (the form before transformers 5), at small sizes.
FAMILY_CONFIGS: dict[str, dict[str, Any]] = {
    "llama2": {
        "model_type": "llama",
        "num_key_value_heads": 4,
        "rope_scaling": {"type": "linear", "factor": 4.0},
        "tie_word_embeddings": False,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "pretraining_tp": 1,
    },
    "llama3": {
        "model_type": "llama",
        "rope_theta": 500000.0,
        "rope_scaling": _LLAMA3_ROPE,
        "tie_word_embeddings": True,
        "head_dim": 32,
        "eos_token_id": [2, 0],
    },
    "mistral": {
        "model_type": "mistral",
        "sliding_window": 24,
        "rope_theta": 10000.0,
        "head_dim": None,
        "tie_word_embeddings": False,
    },
    "qwen2": {
        "model_type": "qwen2",
        "rope_theta": 1000000.0,
        "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
        "use_sliding_window": True,
        "sliding_window": 24,
        "max_window_layers": 2,
        "tie_word_embeddings": True,
        "max_position_embeddings": 128,
    },
    "qwen3": {
        "model_type": "qwen3",
        "head_dim": 32,
        "rope_theta": 1000000,
        "rope_scaling": None,
        "attention_bias": False,
        "use_sliding_window": False,
        "sliding_window": None,
        "max_window_layers": 4,
        "tie_word_embeddings": False,
    },
    "gemma3": {
        "model_type": "gemma3_text",
        "head_dim": 32,
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": 24,
        "rope_theta": 1000000,
        "rope_local_base_freq": 10000,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 24,
        "sliding_window_pattern": 3,
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
    },
    "smollm3": {
        "model_type": "smollm3",
        "rope_theta": 5000000.0,
        "rope_scaling": None,
        "pad_token_id": 2,
        "no_rope_layers": [1, 1, 1, 0],
        "no_rope_layer_interval": 4,
        "use_sliding_window": False,
        "sliding_window": None,
        "attention_bias": False,
        "mlp_bias": False,
    },
}


@dataclass(frozen=True)
class Family:
    """A small random checkpoint of one family: as transformers builds it, and as people find it on disk."""

    name: str
    reference: Any
    directory: Path


@pytest.fixture(scope="session")
def family(
    tmp_path_factory: pytest.TempPathFactory, byte_tokenizer: tokenizers.Tokenizer
) -> Callable[[str], Family]:
    """The checkpoint of a family by name, made on first use."""
    made: dict[str, Family] = {}

    def make(name: str) -> Family:
        if name not in made:
            directory = tmp_path_factory.mktemp(name) / f"tiny-{name}"
            made[name] = Family(name, write_family(name, directory, byte_tokenizer), directory)
        return made[name]

    return make


def write_family(name: str, directory: Path, tokenizer: tokenizers.Tokenizer) -> Any:
    """Writes the checkpoint and returns the model that transformers makes of it."""
    from safetensors.torch import save_file
    from transformers import AutoConfig, AutoModelForCausalLM

    described = _SIZES | FAMILY_CONFIGS[name]
    config = AutoConfig.for_model(**described)
    torch.manual_seed(11)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if "norm" in parameter_name:
                parameter.uniform_(-0.5, 0.5) if name == "gemma3" else parameter.uniform_(0.5, 1.5)
            else:
                parameter.normal_(0, 0.1 if parameter.ndim == 2 else 0.5)
    state = {key: tensor.contiguous() for key, tensor in model.state_dict().items()}
    if config.tie_word_embeddings:
        state.pop("lm_head.weight", None)
    directory.mkdir()
    middle = len(state) // 2
    shards: dict[str, str] = {}
    for number, names in enumerate((list(state)[:middle], list(state)[middle:]), start=1):
        file = f"model-0000{number}-of-00002.safetensors"
        save_file({key: state[key] for key in names}, directory / file, metadata={"format": "pt"})
        shards |= dict.fromkeys(names, file)
    (directory / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": shards})
    )
    (directory / "config.json").write_text(json.dumps(described))
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {"bos_token": "<|im_start|>", "eos_token": {"content": "<|im_end|>"}, "chat_template": CHATML}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    return model


@dataclass
class GgufSpec:
    """What to write into a GGUF file; tests change one thing of it."""

    quantisation: GGMLQuantizationType = GGMLQuantizationType.F32
    architecture: str = "llama"
    pre: str = "smollm"
    tokenizer_model: str | None = "gpt2"
    vocab_size: int = 288
    skip: set[str] = field(default_factory=set)
    replace: dict[str, np.ndarray] = field(default_factory=dict)


@pytest.fixture
def write_gguf(tmp_path: Path, tiny_llama: Any, byte_tokenizer: tokenizers.Tokenizer) -> Callable[..., Path]:
    """Writes `tiny_llama` as llama.cpp's converter would: q and k rows interleaved for its RoPE."""

    def write(**changes: Any) -> Path:
        spec = GgufSpec(**changes)
        path = tmp_path / f"tiny-{spec.quantisation.name}.gguf"
        config = tiny_llama.config
        writer = gguf.GGUFWriter(path, spec.architecture)
        writer.add_context_length(config.max_position_embeddings)
        writer.add_embedding_length(config.hidden_size)
        writer.add_block_count(config.num_hidden_layers)
        writer.add_feed_forward_length(config.intermediate_size)
        writer.add_head_count(config.num_attention_heads)
        writer.add_head_count_kv(config.num_key_value_heads)
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        writer.add_rope_freq_base(50000.0)
        _write_tokenizer(writer, spec, byte_tokenizer)
        for name, values in _gguf_tensors(tiny_llama):
            if name in spec.skip:
                continue
            values = spec.replace.get(name, values)
            kind = spec.quantisation if values.ndim == 2 else GGMLQuantizationType.F32
            writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    return write


def _write_tokenizer(writer: "gguf.GGUFWriter", spec: GgufSpec, tokenizer: tokenizers.Tokenizer) -> None:
    if spec.tokenizer_model is None:
        return
    tokens = sorted(tokenizer.get_vocab().items(), key=lambda entry: entry[1])
    names = [token for token, _ in tokens]
    names += [f"<|unused{index}|>" for index in range(len(names), spec.vocab_size)]
    writer.add_tokenizer_model(spec.tokenizer_model)
    writer.add_tokenizer_pre(spec.pre)
    writer.add_token_list(names)
    types = [3 if name in CONTROL else 5 if name.startswith("<|unused") else 1 for name in names]
    writer.add_token_types(types)
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template(CHATML)


def _gguf_tensors(model: Any) -> Iterator[tuple[str, np.ndarray]]:
    names = {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.norm.weight": "output_norm.weight",
        "lm_head.weight": "output.weight",
        "input_layernorm": "attn_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "post_attention_layernorm": "ffn_norm",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    }
    heads = {"q_proj": model.config.num_attention_heads, "k_proj": model.config.num_key_value_heads}
    for name, tensor in model.state_dict().items():
        values = tensor.numpy().copy()
        for projection, count in heads.items():
            if projection in name:  # llama.cpp convert_hf_to_gguf.py, LlamaModel.permute
                split = values.reshape(count, 2, values.shape[0] // count // 2, values.shape[1])
                values = split.swapaxes(1, 2).reshape(values.shape)
        if name in names:
            yield names[name], values
        else:
            _, _, layer, rest = name.split(".", 3)
            yield f"blk.{layer}.{names[rest.removesuffix('.weight')]}.weight", values


@pytest.fixture(scope="session")
def tiny_config() -> ModelConfig:
    """A shape to build tensors by, of no real model."""
    return ModelConfig(
        name="tiny",
        architecture="llama",
        vocab_size=16,
        hidden_size=64,
        layers=2,
        heads=2,
        kv_heads=1,
        head_dim=32,
        intermediate_size=64,
        rms_norm_eps=1e-5,
        rope_theta=10000.0,
        max_positions=128,
        tie_embeddings=True,
        bos_id=None,
        eos_ids=(0,),
    )


@pytest.fixture
def write_family_gguf(
    tmp_path: Path, family: Callable[[str], Family], byte_tokenizer: tokenizers.Tokenizer
) -> Callable[[str], Path]:
    """Writes a family's checkpoint as llama.cpp's converter would."""

    def write(name: str) -> Path:
        reference = family(name).reference
        path = tmp_path / f"tiny-{name}.gguf"
        described = _SIZES | FAMILY_CONFIGS[name]
        architecture = {"gemma3_text": "gemma3"}.get(described["model_type"], described["model_type"])
        writer = gguf.GGUFWriter(path, architecture)
        config = reference.config
        writer.add_context_length(config.max_position_embeddings)
        writer.add_embedding_length(config.hidden_size)
        writer.add_block_count(config.num_hidden_layers)
        writer.add_feed_forward_length(config.intermediate_size)
        writer.add_head_count(config.num_attention_heads)
        writer.add_head_count_kv(config.num_key_value_heads)
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        writer.add_rope_freq_base(described["rope_theta"])
        if "head_dim" in described:
            writer.add_key_length(described["head_dim"])
            writer.add_value_length(described["head_dim"])
        scaling = described.get("rope_scaling") or {}
        if architecture == "gemma3":
            writer.add_sliding_window(described["sliding_window"])
            writer.add_sliding_window_pattern(described["sliding_window_pattern"])
        if "linear" in scaling.values() or "yarn" in scaling.values():
            writer.add_rope_scaling_type(gguf.RopeScalingType(scaling.get("rope_type", scaling.get("type"))))
            writer.add_rope_scaling_factor(scaling["factor"])
        if "yarn" in scaling.values():
            writer.add_rope_scaling_orig_ctx_len(scaling["original_max_position_embeddings"])
        if "llama3" in scaling.values():
            writer.add_tensor("rope_freqs.weight", _llama3_divisors(reference))
        _write_tokenizer(writer, GgufSpec(pre="qwen2" if "qwen" in name else "smollm"), byte_tokenizer)
        for tensor_name, values in _family_tensors(reference, architecture):
            writer.add_tensor(tensor_name, values)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    return write


def _llama3_divisors(model: Any) -> np.ndarray:
    """What llama.cpp divides each frequency by, out of the frequencies that transformers scaled."""
    frequencies = model.model.rotary_emb.inv_freq
    half = torch.arange(0, 2 * len(frequencies), 2, dtype=torch.float32) / (2 * len(frequencies))
    return ((1.0 / 500000.0**half) / frequencies).numpy()


def _family_tensors(model: Any, architecture: str) -> Iterator[tuple[str, np.ndarray]]:
    mapping = gguf.get_tensor_name_map(gguf.MODEL_ARCH[architecture.upper()], model.config.num_hidden_layers)
    heads = {"q_proj": model.config.num_attention_heads, "k_proj": model.config.num_key_value_heads}
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and model.config.tie_word_embeddings:
            continue
        values = tensor.numpy().copy()
        if architecture == "gemma3" and name.endswith("norm.weight"):
            values += 1.0
        for projection, count in heads.items():
            if architecture in ("llama", "smollm3") and projection in name:
                split = values.reshape(count, 2, values.shape[0] // count // 2, values.shape[1])
                values = split.swapaxes(1, 2).reshape(values.shape)
        stem, suffix = name.rsplit(".", 1)
        yield f"{mapping.get_name(stem)}.{suffix}", values
