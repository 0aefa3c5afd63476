"""A small random model, made on the spot, and uncalibrated."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import tokenizers
import torch
from safetensors.torch import save_file

from mnemos.attention.models import LanguageModel, load

CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "vocab_size": 264,
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 1024,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "torch_dtype": "float32",
}
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] "
    "+ '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def _tokenizer() -> tokenizers.Tokenizer:
    """Byte-level BPE over three control tokens and the 256 bytes."""
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: index for index, token in enumerate([*CONTROL, *letters])}
    built = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocab, merges=[]))
    built.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [
            tokenizers.pre_tokenizers.Digits(individual_digits=True),
            tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    built.decoder = tokenizers.decoders.ByteLevel()
    built.add_special_tokens([tokenizers.AddedToken(token, special=True) for token in CONTROL])
    return built


def _shapes() -> Iterator[tuple[str, tuple[int, ...]]]:
    yield "model.embed_tokens.weight", (264, 128)
    yield "model.norm.weight", (128,)
    for layer in range(2):
        start = f"model.layers.{layer}"
        for name, rows in (("q", 128), ("k", 64), ("v", 64), ("o", 128)):
            yield f"{start}.self_attn.{name}_proj.weight", (rows, 128)
        for name, shape in (("gate", (64, 128)), ("up", (64, 128)), ("down", (128, 64))):
            yield f"{start}.mlp.{name}_proj.weight", shape
        for name in ("input", "post_attention"):
            yield f"{start}.{name}_layernorm.weight", (128,)


def write_tiny(directory: Path) -> Path:
    """Two layers, 4 heads over 2 KV heads, random weights."""
    generator = torch.Generator().manual_seed(11)
    directory.mkdir(parents=True)
    weights = {
        name: torch.randn(shape, generator=generator) * 0.2 if len(shape) > 1 else torch.ones(shape)
        for name, shape in _shapes()
    }
    save_file(weights, directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps(CONFIG))
    _tokenizer().save(str(directory / "tokenizer.json"))
    settings = {"bos_token": "<|im_start|>", "eos_token": {"content": "<|im_end|>"}, "chat_template": CHATML}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    return directory


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LanguageModel]:
    """The model of `write_tiny`, in fp32."""
    yield load(write_tiny(tmp_path_factory.mktemp("models") / "tiny"), dtype="fp32")
