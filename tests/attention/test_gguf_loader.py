"""GGUF files written by the `gguf` library's own writer, against the transformers model they hold."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf.constants import GGMLQuantizationType as Kind
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mnemos.attention.cache_dir import file_digest
from mnemos.attention.config import ModelConfig
from mnemos.attention.converted import converted_path
from mnemos.attention.decoder import Decoder
from mnemos.attention.gguf_loader import load_gguf
from mnemos.errors import InvalidTokenizerError, InvalidWeightsError, ModelError, UnknownModelError

pytestmark = pytest.mark.usefixtures("cache")
PROMPT = [5, 77, 264, 31, 9, 200, 100]


def expected_state(model: Any, kind: Kind) -> dict[str, torch.Tensor]:
    """The model's tensors after a round trip through a quantisation, in Hugging Face layout.

    Quantisation works on rows, so it commutes with the reordering of rows that GGUF asks for.
    """
    state = {}
    for name, tensor in model.state_dict().items():
        values = tensor.numpy()
        if values.ndim == 2:
            values = gguf.quants.dequantize(gguf.quants.quantize(values, kind), kind)
        state[name] = torch.tensor(np.array(values, dtype=np.float32))
    return state


@pytest.mark.parametrize("kind", [Kind.F32, Kind.F16, Kind.BF16, Kind.Q8_0, Kind.Q4_0, Kind.Q4_1, Kind.Q5_0])
def test_every_tensor_is_what_was_written(
    write_gguf: Callable[..., Path], tiny_llama: Any, kind: Kind
) -> None:
    config, weights, source, _ = load_gguf(write_gguf(quantisation=kind))
    expected = expected_state(tiny_llama, kind)
    found = dict(weights.named())
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert torch.equal(tensor.float(), expected[name]), name
    assert (config.heads, config.kv_heads, config.head_dim, config.layers) == (4, 2, 16, 3)
    assert config.rms_norm_eps == 1e-5
    assert config.rope_theta == 50000.0
    assert not config.tie_embeddings
    assert (source.bos_id, source.eos_ids) == (1, (2, 0))


def test_logits_equal_those_of_transformers(write_gguf: Callable[..., Path], tiny_llama: Any) -> None:
    config, weights, _, _ = load_gguf(write_gguf())
    decoder = Decoder(config, weights)
    ours = decoder.forward_all(PROMPT, decoder.new_cache(16))
    with torch.inference_mode():
        theirs = tiny_llama(torch.tensor([PROMPT])).logits[0]
    assert (ours - theirs).abs().max() < 1e-4


def test_a_head_that_is_absent_is_the_embedding(write_gguf: Callable[..., Path]) -> None:
    config, weights, _, _ = load_gguf(write_gguf(skip={"output.weight"}))
    assert config.tie_embeddings
    assert weights.lm_head is weights.embed


def test_the_conversion_is_kept_and_equal(write_gguf: Callable[..., Path], cache: Path) -> None:
    path = write_gguf(quantisation=Kind.Q4_0)
    first = load_gguf(path)
    (kept,) = (cache / "converted").iterdir()
    stamp = kept.stat().st_mtime_ns
    second = load_gguf(path)
    assert kept.stat().st_mtime_ns == stamp
    assert first[0] == second[0]
    assert first[2:] == second[2:]
    for (name, one), (_, other) in zip(first[1].named(), second[1].named(), strict=True):
        assert torch.equal(one, other), name


def test_a_torn_conversion_is_made_anew(write_gguf: Callable[..., Path], cache: Path) -> None:
    path = write_gguf()
    _, weights, _, fingerprint = load_gguf(path)
    expected = weights.embed.clone()
    del weights
    (kept,) = (cache / "converted").iterdir()
    kept.write_bytes(kept.read_bytes()[:-1000])
    _, again, _, same = load_gguf(path)
    assert same == fingerprint
    assert torch.equal(again.embed, expected)


def test_a_former_versions_conversion_is_not_used_and_goes(
    write_gguf: Callable[..., Path], cache: Path
) -> None:
    path = write_gguf()
    config, _, source, fingerprint = load_gguf(path)
    (kept,) = (cache / "converted").iterdir()
    former = converted_path(file_digest(path), 1)
    # What is in it says so itself, and is no longer what the file becomes.
    former.write_bytes(kept.read_bytes().replace(b"bos_id", b"pos_id"))
    kept.unlink()
    again = load_gguf(path)
    assert (again[0], again[2], again[3]) == (config, source, fingerprint)
    assert [each.name for each in (cache / "converted").iterdir()] == [kept.name]


def test_without_a_writable_cache_it_loads_all_the_same(
    write_gguf: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_gguf()
    in_cache = load_gguf(path)
    blocked = tmp_path / "a file, not a directory"
    blocked.write_text("")
    monkeypatch.setenv("MNEMOS_CACHE_DIR", str(blocked))
    converted = load_gguf(path)
    assert converted[3] == in_cache[3]
    assert torch.equal(converted[1].layers[2].q, in_cache[1].layers[2].q)


def test_the_fingerprint_follows_the_content_not_the_name(
    write_gguf: Callable[..., Path], tmp_path: Path
) -> None:
    path = write_gguf()
    fingerprint = load_gguf(path)[3]
    copy = tmp_path / "another name.gguf"
    copy.write_bytes(path.read_bytes())
    assert load_gguf(copy)[3] == fingerprint
    assert load_gguf(copy)[0].name == "another name"
    # Only the file's times tell that the content changed: its size stays.
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert load_gguf(path)[3] != fingerprint


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(UnknownModelError, match=r"no model file at .*absent\.gguf"):
        load_gguf(tmp_path / "absent.gguf")


def test_not_a_gguf_file(tmp_path: Path) -> None:
    path = tmp_path / "readme.gguf"
    path.write_text("hello")
    with pytest.raises(InvalidWeightsError, match="is not a GGUF file"):
        load_gguf(path)


@pytest.mark.parametrize("keep", [0.02, 0.3, 0.6, 0.99])
def test_truncated(write_gguf: Callable[..., Path], keep: float, cache: Path) -> None:
    path = write_gguf()
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(InvalidWeightsError, match="truncated or damaged"):
        load_gguf(path)
    assert not list(cache.glob("converted/*"))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_header_is_an_error_of_ours_or_harmless(
    write_gguf: Callable[..., Path], tmp_path: Path, data: st.DataObject
) -> None:
    original = tmp_path / "tiny-F32.gguf"
    if not original.exists():
        write_gguf()
    content = bytearray(original.read_bytes())
    position = data.draw(st.integers(0, 4000))
    content[position] ^= data.draw(st.integers(1, 255))
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(content)
    try:
        config, weights, _, _ = load_gguf(damaged)
    except ModelError as error:
        assert "\n" not in str(error)
    else:
        assert len(weights.layers) == config.layers


def test_an_array_longer_than_the_file_ends_at_once(write_gguf: Callable[..., Path]) -> None:
    path = write_gguf()
    content = path.read_bytes()
    key = b"tokenizer.ggml.token_type"
    length_at = content.index(key) + len(key) + 8  # after the types of value and element
    assert int.from_bytes(content[length_at : length_at + 8], "little") == 288
    path.write_bytes(content[:length_at] + (1 << 60).to_bytes(8, "little") + content[length_at + 8 :])
    with pytest.raises(InvalidWeightsError, match="truncated or damaged"):
        load_gguf(path)


def test_refused_by_name(write_gguf: Callable[..., Path]) -> None:
    cases: list[tuple[dict[str, Any], type[ModelError], str]] = [
        ({"architecture": "phi3"}, InvalidWeightsError, r"architecture 'phi3' is not supported .*llama"),
        ({"architecture": "qwen2"}, InvalidWeightsError, r"tensor blk\.0\.attn_q\.bias is missing"),
        ({"pre": "tekken"}, InvalidTokenizerError, r"pre-tokenizer 'tekken' is not supported .*smollm"),
        ({"tokenizer_model": "t5"}, InvalidTokenizerError, "tokenizer model 't5' is not supported"),
        ({"tokenizer_model": "llama"}, InvalidTokenizerError, "its tokenizer is incomplete"),  # no scores
        ({"tokenizer_model": None}, InvalidTokenizerError, "carries no tokenizer"),
        (
            {"vocab_size": 300},
            InvalidTokenizerError,
            "the tokenizer has 300 tokens, the weights embed only 288",
        ),
        ({"skip": {"blk.1.ffn_up.weight"}}, InvalidWeightsError, r"tensor blk\.1\.ffn_up\.weight is missing"),
        ({"skip": {"token_embd.weight"}}, InvalidWeightsError, r"tensor token_embd\.weight is missing"),
        (
            {"replace": {"blk.0.attn_v.weight": np.zeros((64, 64), dtype=np.float32)}},
            InvalidWeightsError,
            r"tensor blk\.0\.attn_v\.weight has shape \[64, 64\], the configuration asks for \[32, 64\]",
        ),
        (
            {"replace": {"blk.2.attn_norm.weight": np.full(64, np.nan, dtype=np.float32)}},
            InvalidWeightsError,
            r"tensor blk\.2\.attn_norm\.weight holds NaN",
        ),
    ]
    for changes, error, message in cases:
        path = write_gguf(**changes)
        with pytest.raises(error, match=message) as caught:
            load_gguf(path)
        assert "\n" not in str(caught.value)


def test_nothing_of_a_refused_file_is_kept(write_gguf: Callable[..., Path], cache: Path) -> None:
    path = write_gguf(replace={"output_norm.weight": np.full(64, np.inf, dtype=np.float32)})
    with pytest.raises(InvalidWeightsError, match="NaN or infinity"):
        load_gguf(path)
    assert not list(cache.glob("converted/*"))


@pytest.mark.model
def test_rows_of_the_default_model_are_in_order(
    default_path: Path, default_weights: tuple[ModelConfig, Any, Any, str]
) -> None:
    """Rotary pairs lie side by side in the file, half a head apart here (spelled out row by row)."""
    tensors = {entry.name: entry for entry in gguf.GGUFReader(default_path).tensors}
    config, weights, _, _ = default_weights
    projections = ((0, "attn_q", weights.layers[0].q, 9), (29, "attn_k", weights.layers[29].k, 3))
    for layer, name, mine, heads in projections:
        entry = tensors[f"blk.{layer}.{name}.weight"]
        rows = torch.tensor(gguf.quants.dequantize(entry.data, entry.tensor_type))
        for head in range(heads):
            for pair in range(config.head_dim // 2):
                start = head * config.head_dim
                assert torch.equal(mine[start + pair], rows[start + 2 * pair])
                assert torch.equal(mine[start + pair + 32], rows[start + 2 * pair + 1])
