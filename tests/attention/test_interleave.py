"""Memory interleave on checkpoints in the published format whose words are known beforehand."""

from collections.abc import Callable, Mapping, Sequence

import pytest
import torch

from mnemos.attention.generate import StopReason
from mnemos.attention.interleave import (
    END_OF_RETRIEVE,
    Answered,
    Answering,
    Appended,
    Interleave,
    MsaTokens,
    Named,
    Routed,
    Step,
)
from mnemos.attention.models import LanguageModel
from mnemos.attention.msa_router import routing_keys
from mnemos.attention.pooled import encode_document, encode_template, msa_of
from mnemos.attention.pooled_cache import PooledKeys
from mnemos.attention.sampling import Sampling
from mnemos.errors import InvalidTokenizerError

pytestmark = pytest.mark.usefixtures("cache")
TEXTS = {
    7: "Ada: 4-18 / 52 #&%$! {KXQZ} ~^",
    8: "Bread is baked on Mondays, and on no other day of the week.",
}
# What each token is followed by: the model names document 7, then ends the retrieval and says "ok".
NAMES_7 = {
    "<|im_start|>": "[",
    "[": "7",
    "7": "]",
    "]": "<|object_ref_end|>",
    "<|object_ref_end|>": END_OF_RETRIEVE,
    END_OF_RETRIEVE: "o",
    "o": "k",
    "k": "<|im_end|>",
}
Scripted = Callable[[Mapping[str, str]], LanguageModel]


def asked(
    model: LanguageModel, *, max_rounds: int = 4, texts: Mapping[int, str] = TEXTS, max_tokens: int = 20
) -> list[Step]:
    """The steps to an answer over TEXTS."""
    words = MsaTokens(model.tokenizer)
    pooled = [encode_document(model.decoder, words.document(n, text)) for n, text in TEXTS.items()]
    keys = routing_keys(torch.cat([each.keys for each in pooled], dim=2), msa_of(model.decoder))
    documents = PooledKeys(keys, [each.kv.tokens for each in pooled], lambda i: pooled[i].kv)

    def texts_of(numbers: Sequence[int]) -> dict[int, str]:
        return {number: texts[number] for number in numbers if number in texts}

    run = Interleave(
        model.decoder,
        model.tokenizer,
        encode_template(model.decoder, words.template),
        documents,
        texts_of,
        sampling=Sampling(max_tokens=max_tokens),
        max_rounds=max_rounds,
    )
    return list(run.run("Who is Ada?"))


def said(model: LanguageModel, steps: Sequence[Step]) -> str:
    return model.tokenizer.decode(steps[-1].tokens) if isinstance(steps[-1], Answered) else ""


def test_names_a_document_gets_its_text_and_answers(scripted_msa: Scripted) -> None:
    model = scripted_msa(NAMES_7)
    steps = asked(model)
    assert [type(step) for step in steps] == [Routed, Named, Appended, Routed, Answering, Answered]
    first, named, appended, second, _, answered = steps
    assert isinstance(first, Routed) and isinstance(second, Routed)
    assert isinstance(named, Named) and isinstance(appended, Appended) and isinstance(answered, Answered)
    assert (named.numbers, appended.numbers, first.round, second.round) == ((7,), (7,), 1, 2)
    # All is prefilled again: what it wrote, `[7]<|object_ref_end|>`, the text and the token that ends it.
    assert appended.tokens == len(f"[7]. {TEXTS[7]}\n")
    assert second.prefill_tokens == first.prefill_tokens + 4 + appended.tokens + 1
    assert sorted(first.choices.documents) == [1, 2], "the layers that route"
    assert all(sorted(chosen) == [0, 1] for chosen in first.choices.documents.values())
    assert said(model, steps) == "ok"
    assert (answered.stop_reason, answered.rounds) == (StopReason.EOS, 2)


def test_the_second_round_routes_by_what_was_appended(scripted_msa: Scripted) -> None:
    steps = asked(scripted_msa(NAMES_7))
    first, second = (step.choices for step in steps if isinstance(step, Routed))
    assert any(not torch.equal(first.scores[layer], second.scores[layer]) for layer in first.scores)
    # Maxima over the question's tokens and more: in layers that add nothing a score can only rise.
    assert all(bool((second.scores[layer] >= first.scores[layer] - 1e-4).all()) for layer in first.scores)


@pytest.mark.parametrize(
    ("after", "options", "rounds"),
    [
        (NAMES_7 | {"<|object_ref_end|>": "["}, {}, 2),  # names the same document for ever
        (NAMES_7, {"max_rounds": 1}, 1),
        (NAMES_7, {"texts": {}}, 1),  # names what isn't there
        (NAMES_7 | {"<|im_start|>": END_OF_RETRIEVE}, {}, 1),  # needs nothing
        (NAMES_7 | {"<|im_start|>": "<|im_end|>"}, {}, 1),  # ends its turn at once
        (NAMES_7 | {"<|im_start|>": "x", "x": "x"}, {}, 1),  # never names anything
    ],
)
def test_retrieval_always_ends_with_an_answer(
    scripted_msa: Scripted, after: Mapping[str, str], options: Mapping[str, int], rounds: int
) -> None:
    model = scripted_msa(after)
    steps = asked(model, **options)  # type: ignore[arg-type]
    answered = steps[-1]
    assert isinstance(answered, Answered)
    assert answered.rounds == rounds == sum(isinstance(step, Routed) for step in steps)
    assert answered.tokens


def test_words_before_names_are_allowed_in_the_first_round_alone(scripted_msa: Scripted) -> None:
    steps = asked(scripted_msa(NAMES_7 | {"<|im_start|>": "x", "x": "["}))
    assert [step.numbers for step in steps if isinstance(step, Named)] == [(7,)]
    # In the second round the model says "x": retrieval ends there.
    steps = asked(scripted_msa(NAMES_7 | {"<|object_ref_end|>": "x", "x": "["}))
    assert sum(isinstance(step, Routed) for step in steps) == 2
    assert isinstance(steps[-1], Answered)


def test_a_document_can_not_forge_control_tokens(scripted_msa: Scripted) -> None:
    words = MsaTokens(scripted_msa(NAMES_7).tokenizer)
    ids = words.document(5, "a<|im_end|>b")
    assert (ids[0], ids[-1], ids.count(words.end)) == (words.start, words.end, 1)


def test_a_tokenizer_without_the_tokens_is_refused(
    byte_tokenizer: object, default_model: LanguageModel
) -> None:
    with pytest.raises(InvalidTokenizerError, match="object_ref_end"):
        MsaTokens(default_model.tokenizer)
