"""Hugging Face directories written by transformers, against transformers."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mnemos.attention.decoder import Decoder
from mnemos.attention.hf_loader import load_directory
from mnemos.attention.models import load
from mnemos.errors import InvalidTokenizerError, InvalidWeightsError, ModelError, UnknownModelError

pytestmark = pytest.mark.usefixtures("cache")
PROMPT = [1, 77, 264, 31, 9, 200, 100]


def edit_config(directory: Path, **changes: Any) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def one_shard(directory: Path) -> Path:
    return sorted(directory.glob("model-*.safetensors"))[1]


def edit_tensor(directory: Path, name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    index = json.loads((directory / "model.safetensors.index.json").read_text())
    path = directory / index["weight_map"][name]
    tensors = {key: tensor.clone() for key, tensor in load_file(path).items()}
    tensors[name] = change(tensors[name]).contiguous()
    save_file(tensors, path, metadata={"format": "pt"})


def test_logits_and_greedy_continuation_equal_transformers(hf_directory: Path, tiny_llama: Any) -> None:
    assert len(list(hf_directory.glob("model-*.safetensors"))) > 1
    config, weights, _, _ = load_directory(hf_directory)
    assert (config.kv_heads, config.tie_embeddings, config.rope_theta) == (2, False, 50000.0)
    decoder = Decoder(config, weights)
    cache = decoder.new_cache(128)
    tokens = list(PROMPT)
    ours = decoder.forward_all(PROMPT, cache)
    with torch.inference_mode():
        theirs = tiny_llama(torch.tensor([PROMPT])).logits[0]
        assert (ours - theirs).abs().max() < 1e-4
        token = int(ours[-1].argmax())
        for _ in range(64):
            assert token == int(tiny_llama(torch.tensor([tokens])).logits[0, -1].argmax())
            tokens.append(token)
            token = int(decoder.forward([token], cache).argmax())


def test_tied_single_file_of_the_older_config_form(hf_directory: Path) -> None:
    """`rope_theta` at the top level, one safetensors file, no head in it, no tokenizer_config."""
    state = {}
    for shard in hf_directory.glob("model-*.safetensors"):
        state |= load_file(shard)
        shard.unlink()
    del state["lm_head.weight"]
    save_file(state, hf_directory / "model.safetensors", metadata={"format": "pt"})
    (hf_directory / "model.safetensors.index.json").unlink()
    (hf_directory / "tokenizer_config.json").unlink()
    edit_config(hf_directory, rope_parameters=None, rope_theta=12345.0, tie_word_embeddings=True)
    config, weights, source, _ = load_directory(hf_directory)
    assert config.rope_theta == 12345.0
    assert weights.lm_head is weights.embed
    assert source.chat_template is None
    assert torch.equal(weights.layers[2].down, state["model.layers.2.mlp.down_proj.weight"])


def test_load_gives_a_model_that_speaks(hf_directory: Path) -> None:
    model = load(hf_directory, dtype="fp32")
    ids = model.template.encode([{"role": "user", "content": "hello in"}], model.tokenizer)
    assert model.decoder.forward(ids, model.decoder.new_cache(64)).shape == (288,)
    assert model.name == "tiny"
    assert model.tokenizer.eos_ids == {0, 2}
    assert not model.calibration.calibrated


def test_eos_of_every_source_counts(hf_directory: Path) -> None:
    (hf_directory / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 9]}))
    assert set(load_directory(hf_directory)[2].eos_ids) == {7, 9, 2, 0}


def test_the_template_file_wins_over_the_setting(hf_directory: Path) -> None:
    (hf_directory / "chat_template.jinja").write_text("{{ messages[0].content }}")
    assert load_directory(hf_directory)[2].chat_template == "{{ messages[0].content }}"


def test_the_fingerprint_sees_weights_and_tokenizer(hf_directory: Path) -> None:
    first = load_directory(hf_directory)[3]
    assert load_directory(hf_directory)[3] == first
    edit_tensor(hf_directory, "model.norm.weight", lambda tensor: tensor * 2)
    second = load_directory(hf_directory)[3]
    assert second != first
    path = hf_directory / "tokenizer.json"
    path.write_text(path.read_text() + "\n")
    assert load_directory(hf_directory)[3] != second


CONFIG_CASES: list[tuple[dict[str, Any], str]] = [
    (
        {"model_type": "gemma2"},
        r"'gemma2' is not supported \(supported: gemma3, llama, mistral, msa, qwen2, qwen3, smollm3\)",
    ),
    ({"rope_parameters": {"rope_type": "longrope"}}, "rope scaling 'longrope' is not supported"),
    ({"rope_scaling": {"type": "dynamic", "factor": 2.0}, "rope_parameters": None}, "rope scaling 'dynamic'"),
    ({"rope_parameters": {"rope_type": "yarn", "factor": -4.0}}, "'yarn' has the factor -4.0"),
    ({"rope_parameters": {"rope_type": "linear"}}, "config.json doesn't say its factor"),
    ({"rope_parameters": {"rope_theta": 0}}, "rope_theta is 0"),
    (
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "factor": 8,
                "low_freq_factor": 4,
                "high_freq_factor": 1,
            }
        },
        "'llama3' needs 0 < low_freq_factor < high_freq_factor",
    ),
    (
        {"model_type": "qwen3", "head_dim": 16},
        r"tensor model\.layers\.0\.self_attn\.q_norm\.weight is missing",
    ),
    (
        {"model_type": "mistral", "sliding_window": 0},
        "it has sliding layers and a sliding_window of 0",
    ),
    ({"attention_bias": True}, "attention_bias in its config.json is not supported"),
    ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config"),
    ({"hidden_act": "gelu"}, "activation 'gelu' is not supported"),
    ({"num_key_value_heads": 3}, "4 heads can't share 3 KV heads"),
    ({"num_hidden_layers": "many"}, "config.json is malformed"),
    ({"num_hidden_layers": 4}, r"tensor model\.layers\.3\.\S+ is missing"),
    (
        {"intermediate_size": 100},
        r"tensor \S+gate_proj\.weight has shape \[96, 64\], the \w+ asks for \[100, 64\]",
    ),
]


@pytest.mark.parametrize(
    ("changes", "message"), CONFIG_CASES, ids=[message[:24] for _, message in CONFIG_CASES]
)
def test_a_configuration_refused_by_name(hf_directory: Path, changes: dict[str, Any], message: str) -> None:
    edit_config(hf_directory, **changes)
    with pytest.raises(InvalidWeightsError, match=message) as caught:
        load_directory(hf_directory)
    assert "\n" not in str(caught.value)


def test_a_missing_shard_is_named(hf_directory: Path) -> None:
    shard = one_shard(hf_directory)
    shard.unlink()
    with pytest.raises(InvalidWeightsError, match=f"shard {shard.name} is missing"):
        load_directory(hf_directory)


def test_a_truncated_shard_is_named(hf_directory: Path) -> None:
    shard = one_shard(hf_directory)
    shard.write_bytes(shard.read_bytes()[:-10])
    with pytest.raises(InvalidWeightsError, match=rf"{shard.name} is truncated or damaged"):
        load_directory(hf_directory)


def test_nan_is_found_and_named(hf_directory: Path) -> None:
    def poison(tensor: torch.Tensor) -> torch.Tensor:
        tensor[3, 5] = float("nan")
        return tensor

    name = "model.layers.1.self_attn.o_proj.weight"
    edit_tensor(hf_directory, name, poison)
    with pytest.raises(InvalidWeightsError, match=f"tensor {name} holds NaN"):
        load_directory(hf_directory)


def test_an_index_can_not_reach_outside(hf_directory: Path) -> None:
    path = hf_directory / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["model.norm.weight"] = "../../elsewhere/secret.safetensors"
    path.write_text(json.dumps(index))
    with pytest.raises(InvalidWeightsError, match=r"shard secret\.safetensors is missing"):
        load_directory(hf_directory)


def test_what_a_directory_lacks(hf_directory: Path, tmp_path: Path) -> None:
    def expect(error: type[ModelError], message: str) -> None:
        with pytest.raises(error, match=message):
            load_directory(hf_directory)

    with pytest.raises(UnknownModelError, match=r"has no config\.json"):
        load_directory(tmp_path)
    (hf_directory / "model.safetensors.index.json").rename(hf_directory / "elsewhere")
    expect(InvalidWeightsError, "only safetensors are supported")
    (hf_directory / "tokenizer.json").write_text("{")
    expect(InvalidTokenizerError, "can't be read")
    (hf_directory / "tokenizer.json").unlink()
    expect(InvalidTokenizerError, r"has no tokenizer\.json")
    (hf_directory / "config.json").write_text("[]")
    expect(InvalidWeightsError, "is not a JSON object")


def test_a_tokenizer_of_another_model(hf_directory: Path) -> None:
    path = hf_directory / "tokenizer.json"
    definition = json.loads(path.read_text())
    definition["model"]["vocab"]["far"] = 400
    path.write_text(json.dumps(definition))
    with pytest.raises(InvalidTokenizerError, match="belong to different models"):
        load(hf_directory, dtype="fp32")
