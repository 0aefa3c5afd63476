"""Every test runs with keys and caches of its own, never with those of the person at the keyboard."""

import json
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from hypothesis import settings

from mnemos.attention.models import LanguageModel

# How long an example takes says how busy the machine is.
settings.register_profile("mnemos", deadline=None)
settings.load_profile("mnemos")

# A runner that was started in the background ignores Ctrl+C, and the processes of tests would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def own_keys(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Master keys of this test's banks go to a directory of the test's own."""
    directory = tmp_path_factory.mktemp("keys")
    monkeypatch.setenv("MNEMOS_KEY_DIR", str(directory))
    monkeypatch.setenv("MNEMOS_CONFIG", str(directory / "config.toml"))
    for name in (
        "MNEMOS_BANK",
        "MNEMOS_NAMESPACE",
        "MNEMOS_MODEL",
        "MNEMOS_PASSPHRASE",
        "MNEMOS_CALIBRATION",
        "MNEMOS_EMBEDDER",
    ):
        monkeypatch.delenv(name, raising=False)
    return directory


@pytest.fixture(scope="session")
def language_model() -> Iterator[LanguageModel]:
    """The default model as people run it, fetched as theirs would be."""
    from mnemos.attention.models import load

    os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")
    yield load()


@pytest.fixture
def scripted_msa(tmp_path: Path) -> Callable[[Mapping[str, str]], LanguageModel]:
    """Makes MSA checkpoints in the published format whose next token follows from the last one alone.

    Called with `{token: the one after it}`. Layers route and read like any others and add nothing: what the
    model says is known, and so is every step that it takes.
    """
    count = 0

    def make(after: Mapping[str, str]) -> LanguageModel:
        nonlocal count
        count += 1
        directory = tmp_path / f"scripted-msa-{count}"
        write_scripted_msa(directory, after)
        from mnemos.attention.models import load

        return load(directory, dtype="fp32")

    return make


def write_scripted_msa(directory: Path, after: Mapping[str, str]) -> None:
    import tokenizers
    import torch
    from safetensors.torch import save_file

    control = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_end|>", "<End-of-Retrieve>"]
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: index for index, token in enumerate([*control, *letters])}
    built = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocab, merges=[]))
    built.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    built.decoder = tokenizers.decoders.ByteLevel()
    built.add_special_tokens([tokenizers.AddedToken(token, special=True) for token in control])
    size, inner, dim = len(vocab), 16, 16
    generator = torch.Generator().manual_seed(3)
    state = {
        "model.embed_tokens.weight": torch.eye(size),
        "model.norm.weight": torch.ones(size),
        "lm_head.weight": torch.zeros(size, size),
        "temperature": torch.tensor(0.1),
    }
    for token in vocab:
        state["lm_head.weight"][vocab[after.get(token, "<|im_end|>")], vocab[token]] = 1.0
    for layer in range(3):
        start = f"model.layers.{layer}"
        shapes = {"q_proj": 4 * dim, "k_proj": 2 * dim, "v_proj": 2 * dim}
        if layer > 0:
            shapes |= {"router_q_proj.0": 4 * dim, "router_k_proj.0": 2 * dim}
        for name, rows in shapes.items():
            state[f"{start}.self_attn.{name}.weight"] = torch.randn(rows, size, generator=generator)
        for name in ("q_norm", "k_norm"):
            state[f"{start}.self_attn.{name}.weight"] = torch.ones(dim)
        state[f"{start}.self_attn.o_proj.weight"] = torch.zeros(size, 4 * dim)
        for name in ("gate", "up"):
            state[f"{start}.mlp.{name}_proj.weight"] = torch.zeros(inner, size)
        state[f"{start}.mlp.down_proj.weight"] = torch.zeros(size, inner)
        for name in ("input", "post_attention"):
            state[f"{start}.{name}_layernorm.weight"] = torch.ones(size)
    config = {
        "model_type": "msa",
        "vocab_size": size,
        "hidden_size": size,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": dim,
        "intermediate_size": inner,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": False,
        "msa_config": {
            "router_layer_idx": "1,2",
            "top_k_docs": 2,
            "pooling_kernel_size": 16,
            "head_reduce_method": "mean",
            "decouple_router": True,
            "aux_loss_method": "INFONCE_DECOUPLE",
        },
    }
    template = (
        "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] "
        "+ '<|im_end|>' + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    directory.mkdir()
    save_file(state, directory / "model.safetensors")
    built.save(str(directory / "tokenizer.json"))
    (directory / "config.json").write_text(json.dumps(config))
    settings = {"eos_token": "<|im_end|>", "chat_template": template}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
