"""The training form of an MSA checkpoint against its reading form."""

from pathlib import Path

import pytest
import tokenizers
import torch
from tests.attention.test_msa import DOCUMENTS, HEAD, QUESTION, TAIL, VARIANTS, open_cache, write

from mnemos.attention.decoder import Decoder
from mnemos.attention.hf_loader import load_directory
from mnemos.attention.training.msa_reading import MsaReading
from mnemos.errors import ModelError

OWN = [name for name, changes in VARIANTS.items() if changes.get("decouple_router", True)]


@pytest.mark.parametrize("variant", OWN)
def test_scores_choices_and_logits_are_those_of_reading(
    variant: str, tmp_path: Path, byte_tokenizer: tokenizers.Tokenizer
) -> None:
    write(tmp_path / "tiny", byte_tokenizer, **VARIANTS[variant])
    config, weights, _, _ = load_directory(tmp_path / "tiny")
    model = MsaReading(config, weights)
    decoder = Decoder(config, weights)
    prompt = [*QUESTION, *TAIL]
    cache = open_cache(decoder, DOCUMENTS, len(prompt))
    cache.choose_at_prefill(range(len(QUESTION)))
    logits = decoder.forward_all(prompt, cache)
    reading = model.read(HEAD, prompt, len(QUESTION), [model.document(each) for each in DOCUMENTS])
    assert reading.chosen == tuple(cache.choices.documents.values())
    assert torch.allclose(reading.scores, torch.stack([*cache.choices.scores.values()]), atol=1e-4)
    assert torch.allclose(model.logits(reading.hidden), logits, atol=1e-3)
    assert all(each.requires_grad == (name in model.learnt()) for name, each in model.named_learnt())


def test_only_routers_learn_unless_more_is_asked_for(
    tmp_path: Path, byte_tokenizer: tokenizers.Tokenizer
) -> None:
    write(tmp_path / "tiny", byte_tokenizer)
    config, weights, _, _ = load_directory(tmp_path / "tiny")
    for readers in (False, True):
        model = MsaReading(config, weights, readers=readers)
        learns = {id(each) for each in model.parameters() if each.requires_grad}
        assert learns == {id(each) for each in (*model.routers(), *model.readers())}
        assert len(learns) == (12 if readers else 4)
        documents = [model.document(each) for each in DOCUMENTS]
        reading = model.read(HEAD, [*QUESTION, *TAIL], len(QUESTION), documents)
        reading.scores.logsumexp(1).sum().backward(retain_graph=True)  # type: ignore[no-untyped-call]
        assert all(each.grad is not None and bool(each.grad.any()) for each in model.routers())
        if readers:
            model.zero_grad(set_to_none=True)
            model.logits(reading.hidden).logsumexp(1).sum().backward()  # type: ignore[no-untyped-call]
            assert all(each.grad is None for each in model.routers()), "a choice has no gradient"
            assert all(each.grad is not None and bool(each.grad.any()) for each in model.readers())


def test_a_model_without_routers_is_refused(tmp_path: Path, byte_tokenizer: tokenizers.Tokenizer) -> None:
    write(tmp_path / "tiny", byte_tokenizer, decouple_router=False)
    config, weights, _, _ = load_directory(tmp_path / "tiny")
    with pytest.raises(ModelError, match="no router to train"):
        MsaReading(config, weights)
