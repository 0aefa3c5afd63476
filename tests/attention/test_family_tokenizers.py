"""Tokenizers of model directories against transformers, on words and code of many scripts; and what a model
directory or a calibration may have wrong.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from mnemos.attention.calibration import Calibration, for_model
from mnemos.attention.config import ModelConfig
from mnemos.attention.decoder import Decoder
from mnemos.attention.encode import TraceEncoder, encode_prefix
from mnemos.attention.gguf_loader import load_gguf
from mnemos.attention.hf_loader import load_directory
from mnemos.attention.kv import KVCache
from mnemos.attention.memory_codec import decode_kv
from mnemos.attention.registry import show
from mnemos.attention.tokenizer import Tokenizer
from mnemos.errors import ContextOverflowError, InvalidWeightsError, ModelError

pytestmark = pytest.mark.usefixtures("cache")
CORPUS = [
    "", " ", "  two spaces\n\n\ttab \r\n", "My sister Clara works as a nurse; she's 34, isn't she?",
    "def f(x: int) -> list[str]:\n    return [f'{x!r}' for _ in range(0x1F)]  # ok\n",
    "for (let i = 0; i < 10; ++i) { console.log(`${i}\\n`); }\r\n", "SELECT id FROM t WHERE a<>'it''s';",
    "Größe, naïve, e\u0301, Übermäßigkeit ½ Ⅳ", "Привет, как дела? 5-е число.",  # noqa: RUF001
    "你好，世界！日本語のテキスト 한국어", "مرحبا بالعالم שלום", "नमस्ते दुनिया ไทย", "🙂👩‍👩‍👧‍👦🏳️‍🌈",  # noqa: RUF001
]  # fmt: skip
CONTROL = ["<unk>", "<s>", "</s>"]
LLAMA3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def byte_level() -> tokenizers.Tokenizer:
    """In the style of Llama 3, Qwen and SmolLM."""
    built = tokenizers.Tokenizer(models.BPE(ignore_merges=True))
    built.normalizer = normalizers.NFC()
    built.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(LLAMA3_WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    built.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=CONTROL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    built.train_from_iterator(CORPUS * 3, trainer)
    return built


def byte_fallback() -> tokenizers.Tokenizer:
    """In the style of Llama 2, Mistral and Gemma."""
    built = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    built.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    built.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", left=1, right=0),
        ]
    )
    special = [*CONTROL, *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=450, special_tokens=special, show_progress=False)
    built.train_from_iterator(CORPUS[:8] * 3, trainer)
    definition = json.loads(built.to_str())  # bytes are pieces of the vocabulary and no control tokens
    definition["added_tokens"] = definition["added_tokens"][:3]
    return tokenizers.Tokenizer.from_str(json.dumps(definition))


def unigram() -> tokenizers.Tokenizer:
    built = tokenizers.Tokenizer(models.Unigram())
    built.pre_tokenizer = pre_tokenizers.Metaspace()
    built.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=300, special_tokens=CONTROL, unk_token="<unk>", show_progress=False
    )
    built.train_from_iterator(CORPUS * 3, trainer)
    return built


@pytest.mark.parametrize("build", [byte_level, byte_fallback, unigram])
def test_ids_and_text_equal_those_of_transformers(
    build: Callable[[], tokenizers.Tokenizer], family: Callable[[str], Any], tmp_path: Path
) -> None:
    from transformers import PreTrainedTokenizerFast

    directory = copied(family("llama3").directory, tmp_path)
    (directory / "tokenizer.json").unlink()
    build().save(str(directory / "tokenizer.json"))
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (directory / "tokenizer_config.json").unlink()
    (directory / "tokenizer_config.json").write_text(json.dumps(names))
    theirs = PreTrainedTokenizerFast(tokenizer_file=str(directory / "tokenizer.json"), **names)
    _, _, source, _ = load_directory(directory)
    ours = Tokenizer(source, vocab_size=1000)
    for text in [*CORPUS, "\n".join(CORPUS)]:
        ids = theirs(text, add_special_tokens=False)["input_ids"]
        assert ours.encode(text) == ids, text[:40]
        assert ours.decode(ids) == theirs.decode(
            ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
    assert source.bos_id == 1
    assert 2 in source.eos_ids


def copied(directory: Path, target: Path) -> Path:
    for file in directory.iterdir():
        (target / file.name).symlink_to(file)
    return target


def test_a_gemma_that_sees_images_is_read_for_its_text(family: Callable[[str], Any], tmp_path: Path) -> None:
    """The text model nested in config.json, its tensors below `language_model.`, what sees left alone."""
    plain = family("gemma3").directory
    state = {}
    for shard in plain.glob("*.safetensors"):
        state |= {f"language_model.{name}": tensor for name, tensor in load_file(shard).items()}
    state["vision_tower.layers.0.weight"] = torch.ones(3)
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    text = json.loads((plain / "config.json").read_text())
    nested = {"model_type": "gemma3", "text_config": text, "vision_config": {}, "eos_token_id": [2, 9]}
    (tmp_path / "config.json").write_text(json.dumps(nested))
    (tmp_path / "tokenizer.json").write_text((plain / "tokenizer.json").read_text())
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": "{{ messages[0].content }}"}))
    config, weights, source, _ = load_directory(tmp_path, name="tiny-gemma3")
    reference, known, _, _ = load_directory(plain)
    assert 9 in source.eos_ids
    assert source.chat_template == "{{ messages[0].content }}"
    assert config.sliding_layers == reference.sliding_layers
    for (name, one), (_, other) in zip(weights.named(), known.named(), strict=True):
        assert torch.equal(one, other), name


def test_a_tensor_that_would_go_unused_is_named(family: Callable[[str], Any], tmp_path: Path) -> None:
    directory = copied(family("qwen2").directory, tmp_path)
    path = directory / "config.json"
    described = json.loads(path.read_text()) | {"model_type": "llama"}
    path.unlink()
    path.write_text(json.dumps(described | {"rope_scaling": None}))
    with pytest.raises(
        InvalidWeightsError, match=r"self_attn\.[qkv]_proj\.bias is no part of a llama decoder"
    ):
        load_directory(directory)


def test_weights_are_mapped_not_copied(family: Callable[[str], Any]) -> None:
    """A matrix in the compute dtype is the file's own memory."""
    directory = family("llama3").directory
    config, weights, _, _ = load_directory(directory)
    decoder = Decoder(config, weights)
    assert decoder.layers[0].o.weight.data_ptr() == weights.layers[0].o.data_ptr()
    shards = json.loads((directory / "model.safetensors.index.json").read_text())["weight_map"]
    name = "model.layers.0.self_attn.o_proj.weight"
    with safe_open(directory / shards[name], framework="pt") as file:
        assert torch.equal(file.get_tensor(name), weights.layers[0].o)


def test_memories_that_do_not_fit_leave_the_cache_as_it_was(family: Callable[[str], Any]) -> None:
    config, weights, _, _ = load_directory(family("mistral").directory)
    decoder = Decoder(config, weights)
    prefix = encode_prefix(decoder, [5, 6, 7])
    encoder = TraceEncoder(decoder, Calibration.uncalibrated(config), prefix, bits=32)
    trace = encoder.encode([[9] * 300])  # longer than the window of 256: spans, each in its first half
    spans = decode_kv(trace.kv, config, torch.float32)
    assert [span.tokens for span in spans] == [125, 125, 50]
    cache = decoder.new_cache(200)
    cache.load_prefix(prefix)
    with pytest.raises(ContextOverflowError, match="300 memory tokens do not fit: 3 of 200"):
        cache.page_in(spans)
    assert (cache.length, cache.next_position, cache.memory_tokens) == (3, 3, 0)
    narrow = KVCache(ModelConfig.from_json(config.to_json() | {"max_positions": 100}), 400, torch.float32)
    narrow.load_prefix(prefix)
    with pytest.raises(ContextOverflowError, match="memories over 125 places behind a prefix of 3"):
        narrow.page_in(spans)
    with pytest.raises(ContextOverflowError, match="too short for memories behind a prefix of 130"):
        TraceEncoder(decoder, Calibration.uncalibrated(config), encode_prefix(decoder, [5] * 130))


def test_a_calibration_of_another_model_is_refused(tiny_config: ModelConfig) -> None:
    own = Calibration.uncalibrated(tiny_config)
    own.check_fits(tiny_config, "abc")
    for changes, message in (
        ({"fingerprint": "f" * 64}, "of another model .ffffffff., not of tiny"),
        ({"key_heads": ((1, 2),)}, "head 2 of layer 1, tiny has 2 layers of 2 heads"),
        ({"hidden_layer": 2}, "hidden layer or centre"),
        ({"hidden_layer": 1, "hidden_centre": (0.5,) * 3}, "hidden layer or centre"),
    ):
        with pytest.raises(ModelError, match=message):
            own.model_copy(update=changes).check_fits(tiny_config, "abc")
    # A directory that happens to be called like a known model is not that model.
    assert not for_model("smollm2-135m", tiny_config, "abc").calibrated


def test_what_is_calibrated_says_so(family: Callable[[str], Any]) -> None:
    assert show("smollm2-135m").calibrated
    assert not show(str(family("qwen3").directory)).calibrated


@pytest.mark.model
def test_the_default_models_identity_stays(
    default_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Banks name the model of their traces by its fingerprint; the calibration that ships names it too.

    As on a new machine: a conversion that is kept already tells nothing of what the file becomes now.
    """
    (tmp_path / "no-folder").touch()
    monkeypatch.setenv("MNEMOS_CACHE_DIR", str(tmp_path / "no-folder"))
    config, _, _, fingerprint = load_gguf(default_path)
    assert fingerprint == "a8d6fb31b371187cddb825abde4a63fa9c1d891bc0c44a0a7611d60fb000e298"
    assert for_model(config.name, config, fingerprint).fingerprint == fingerprint
    assert set(config.to_json()) == {
        "name", "architecture", "vocab_size", "hidden_size", "layers", "heads", "kv_heads", "head_dim",
        "intermediate_size", "rms_norm_eps", "rope_theta", "max_positions", "tie_embeddings", "bos_id",
        "eos_ids",
    }  # fmt: skip
