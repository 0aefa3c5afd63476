"""Hybrid models: documents, steps, files, and the weights of a pretrained decoder."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mnemos.attention.models import load
from mnemos.attention.patterns.document_rows import begins_document, rows_of
from mnemos.attention.patterns.hybrid import HybridModel
from mnemos.attention.patterns.hybrid_config import HybridConfig
from mnemos.attention.patterns.mixer import PADDING, MixerConfig
from mnemos.attention.patterns.pretrained import hybrid_from
from mnemos.errors import InvalidWeightsError, ModelError, UnknownModelError, UsageError

_MIXER = MixerConfig(
    dim=16, heads=4, kv_heads=2, head_dim=8, window=6, sinks=1, block=4, document=12, pool=4, top_k=2
)


def model(*layers: str, **changes: Any) -> HybridModel:
    config = HybridConfig(vocab=40, layers=layers, mixer=_MIXER, mlp_width=24, **changes)
    return HybridModel(config).double()


def sequence(*lengths: int) -> Tensor:
    """Positions [1, tokens] of documents one after another."""
    return torch.cat([torch.arange(length) for length in lengths])[None]


def words(positions: Tensor) -> Tensor:
    return torch.randint(40, positions.shape, generator=torch.Generator().manual_seed(2))


def test_where_documents_begin() -> None:
    _ = PADDING
    positions = torch.tensor([[0, 1, _, 2, 0, _, 0, 5], [_, 3, 4, 4, 5, 9, _, _]])
    begins = begins_document(positions)
    assert begins.long().tolist() == [[1, 0, 0, 0, 1, 0, 1, 0], [0, 1, 0, 1, 0, 0, 0, 0]]
    behind = begins_document(positions, torch.tensor([5, 2]))
    assert behind.long().tolist() == [[1, 0, 0, 0, 1, 0, 1, 0], [0, 0, 0, 1, 0, 0, 0, 0]]
    rows = rows_of(positions)
    assert sorted((row.positions != PADDING).sum(dim=1).tolist() for row in rows) == [[1], [3, 2, 2, 3]]
    assert rows_of(torch.full((2, 3), PADDING)) == []


@pytest.mark.parametrize("layers", [("dense",), ("linear", "window"), ("latent", "favor")])
def test_without_a_routed_layer_a_sequence_is_one_text(layers: tuple[str, ...]) -> None:
    of = model(*layers)
    documents = sequence(5, 9, 3)
    tokens = words(documents)
    flat = torch.arange(17)[None]
    torch.testing.assert_close(of(tokens, documents).logits, of(tokens, flat).logits)
    states, parts = of.initial_state(1), []
    for start, stop in ((0, 4), (4, 5), (5, 17)):
        output = of(tokens[:, start:stop], documents[:, start:stop], states)
        states = output.states
        parts.append(output.logits)
    torch.testing.assert_close(torch.cat(parts, dim=1), of(tokens, flat).logits, atol=1e-9, rtol=1e-7)
    assert states is not None and states.bytes() > 0 and states.read.tolist() == [17]


def test_with_a_routed_layer_documents_meet_nowhere_else() -> None:
    """A document's logits don't change with its company; a question's do, by the documents it reads."""
    of = model("dense", "linear", "msa")
    positions = sequence(5, 9, 3, 6)
    tokens = words(positions)
    whole = of(tokens, positions).logits
    alone = of(tokens[:, 5:14], positions[:, 5:14]).logits
    torch.testing.assert_close(whole[:, 5:14], alone)
    assert not torch.allclose(whole[:, 17:], of(tokens[:, 17:], positions[:, 17:]).logits, atol=1e-3)
    assert [list(scores.shape) for scores in of(tokens, positions).routing] == [[1, 3]]


def test_a_question_goes_on_from_a_state_as_at_once() -> None:
    """With one routed layer, the last: what stands below it is read alike in pieces and at once."""
    first = model("window", "msa")
    positions = sequence(5, 9, 3, 6)
    tokens = words(positions)
    whole = first(tokens, positions).logits
    output = first(tokens[:, :18], positions[:, :18], first.initial_state(1))
    parts = [output.logits[:, -1:]]
    for index in range(18, 23):
        output = first(tokens[:, index : index + 1], positions[:, index : index + 1], output.states)
        parts.append(output.logits)
    torch.testing.assert_close(torch.cat(parts, dim=1), whole[:, 17:], atol=1e-9, rtol=1e-7)

    made = first.generate(tokens[0].tolist(), positions[0].tolist(), 3)
    more = torch.cat((tokens, torch.tensor([made])), dim=1)
    places = torch.cat((positions, 6 + torch.arange(3)[None]), dim=1)
    assert first(more, places).logits[0, 22:25].argmax(dim=-1).tolist() == made


def test_odd_input() -> None:
    of = model("window", "msa")
    padded = torch.tensor([[PADDING, PADDING, PADDING], [0, 1, PADDING]])
    output = of(words(padded), padded)
    assert output.logits.isfinite().all()
    one = torch.zeros(1, 1, dtype=torch.int64)
    assert of(one, one).logits.shape == (1, 1, 40)
    with pytest.raises(ValueError, match="tokens and positions"):
        of(one, padded)
    with pytest.raises(ValueError, match="same places"):
        uneven = torch.tensor([[0, 1, 0], [0, 1, 2]])
        of(words(uneven), uneven, of.initial_state(2))
    for wrong in ({"layers": ()}, {"layers": ("sparse",)}, {"vocab": 0}):
        with pytest.raises(ValueError):
            HybridConfig(**{"vocab": 4, "layers": ("dense",), "mixer": _MIXER, "mlp_width": 8, **wrong})


def test_a_saved_model_is_the_same_and_a_broken_one_is_refused(tmp_path: Path) -> None:
    of = model("favor", "msa", tie_embeddings=False)
    of.save(tmp_path / "model")
    again = HybridModel.load(tmp_path / "model")
    assert again.config == of.config
    positions = sequence(5, 9)
    torch.testing.assert_close(
        again.double()(words(positions), positions).logits,
        of.float().double()(words(positions), positions).logits,
    )
    described = json.loads((tmp_path / "model" / "hybrid.json").read_text())
    for wrong in ({"version": 2}, {"layers": ["dense", "msa"]}, {"vocab": 41}, {"mixer": {}}):
        (tmp_path / "model" / "hybrid.json").write_text(json.dumps({**described, **wrong}))
        with pytest.raises(InvalidWeightsError):
            HybridModel.load(tmp_path / "model")
    (tmp_path / "model" / "hybrid.json").write_text("{")
    with pytest.raises(InvalidWeightsError):
        HybridModel.load(tmp_path / "model")
    with pytest.raises(UnknownModelError):
        HybridModel.load(tmp_path)


def test_a_dense_hybrid_of_a_checkpoint_has_the_decoders_logits(hf_directory: Path) -> None:
    decoder = load(hf_directory, dtype="fp32", compile=False).decoder
    tokens = torch.randint(3, 288, (40,), generator=torch.Generator().manual_seed(0))
    cache = decoder.new_cache(64)
    wanted = decoder.forward_all(tokens.tolist(), cache)
    dense = HybridModel.from_checkpoint(hf_directory, ["dense"] * 3)
    positions = torch.arange(40)[None]
    with torch.inference_mode():
        found = dense(tokens[None], positions).logits[0]
        wide = HybridModel.from_checkpoint(hf_directory, ["window", "dense", "window"], window=64)
        windowed = wide(tokens[None], positions).logits[0]
    torch.testing.assert_close(found, wanted, atol=2e-4, rtol=1e-4)
    torch.testing.assert_close(windowed, wanted, atol=2e-4, rtol=1e-4)


def test_what_a_checkpoint_does_not_have_is_new(hf_directory: Path) -> None:
    from mnemos.attention.models import load_weights

    config, weights, _, _ = load_weights(hf_directory)
    adopted = hybrid_from(config, weights, ["dense", "msa", "latent"], document=16, pool=4)
    parts = {name.rpartition(".mixer.")[2] for name in adopted.fresh if name.startswith("blocks.1.")}
    assert parts and all("router" in part for part in parts), parts
    assert not any(name.startswith("blocks.0.") or "mlp" in name for name in adopted.fresh)
    assert any(name.startswith("blocks.2.mixer.") for name in adopted.fresh)
    positions = sequence(16, 9, 4)
    assert math.isfinite(float(adopted.model(words(positions), positions).logits.detach().sum()))

    with pytest.raises(UsageError, match="3 layers and 2 patterns"):
        hybrid_from(config, weights, ["dense", "msa"])
    object.__setattr__(config, "qkv_bias", True)
    with pytest.raises(ModelError, match="biases"):
        hybrid_from(config, weights, ["dense"] * 3)
