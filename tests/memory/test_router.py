"""What the router makes of words, names and neighbours, on a small random model."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from mnemos import MemoryBank
from mnemos.attention.models import LanguageModel
from mnemos.memory.records import RecalledMemory
from mnemos.memory.role_cues import assistant_signal
from mnemos.memory.router import (
    fuse,
    named_among_the_first,
    neighbours_of,
    standardised,
    word_share,
)
from mnemos.store.nearby import Place
from mnemos.store.records import MemoryDraft

TALK = [
    ("Ann", "It rained all morning."),
    ("Ben", "The quince tree was planted by my aunt."),
    ("Ann", "She must have loved it."),
    ("User", "The kettle is new."),
    ("Ben", "Monday suits me."),
    (None, "A note of nobody."),
]


@pytest.fixture
def bank(tmp_path: Path) -> Iterator[MemoryBank]:
    with MemoryBank.open(tmp_path / "bank") as opened:
        opened.remember_many([MemoryDraft(text, speaker=speaker) for speaker, text in TALK])
        yield opened


def by_text(found: "list[RecalledMemory]") -> dict[str, RecalledMemory]:
    return {each.memory.text: each for each in found}


def test_neighbours_gain_by_a_good_candidate() -> None:
    places = {
        "a": Place("a", None, None, "b"),
        "b": Place("b", None, "a", "c"),
        "c": Place("c", None, "b", "x"),  # x is no candidate
    }
    before, after = neighbours_of(["c", "a", "b"], places)
    assert (before.tolist(), after.tolist()) == ([2, 3, 1], [3, 2, 0])
    lexical = torch.tensor([9.0, 0.0, 3.0])
    scores = standardised(lexical).clamp_min(0)  # of c, a, b: 1.09, 0, 0
    fused, gained, own = fuse({"lexical": lexical}, {"lexical": 1.0, "neighbours": 0.5}, before, after)
    assert torch.allclose(gained, torch.stack([scores[2], scores[2], scores[1] + scores[0]]))
    assert torch.allclose(own, standardised(lexical)) and torch.allclose(fused, own + 0.5 * gained)
    alone = fuse({"lexical": torch.tensor([1.0])}, {"neighbours": 1.0}, *neighbours_of(["z"], {}))
    assert [part.tolist() for part in alone] == [[0.0]] * 3


def test_a_long_message_goes_less_by_its_words() -> None:
    question = "Where did we put the spare key of the boat?"
    assert word_share("") == word_share(question) == word_share(" ".join(["word"] * 20)) == 1.0
    shares = [word_share(" ".join(["word"] * count)) for count in (21, 40, 80, 10_000)]
    assert shares == sorted(shares, reverse=True) and shares[1] == 0.25 and shares[-1] > 0
    places = {"a": Place("a", None, None, "b"), "b": Place("b", None, "a", None)}
    beside = neighbours_of(["a", "b", "c"], places)
    lexical, vector = torch.tensor([3.0, 0.0, 0.0]), torch.tensor([0.0, 0.0, 2.0])
    weights = {"lexical": 1.0, "vector": 0.9, "speaker": 1.0, "neighbours": 0.5}
    signals = {"lexical": lexical, "vector": vector}
    assert fuse(signals, weights, *beside)[0].argmax() == 0
    fused, gained, _ = fuse(signals, weights, *beside, worded=0.25)
    assert fused.argmax() == 2
    assert torch.allclose(
        fused, 0.25 * standardised(lexical) + 0.9 * standardised(vector) + 0.25 * 0.5 * gained
    )
    # Without a vector there is nothing else to go by.
    alone = {"lexical": lexical}
    assert torch.equal(fuse(alone, weights, *beside, worded=0.25)[0], fuse(alone, weights, *beside)[0])


def test_many_masses_fuse_as_each_alone() -> None:
    places = {
        "a": Place("a", None, None, "b"),
        "b": Place("b", None, "a", None),
        "c": Place("c", None, None, None),
    }
    beside = neighbours_of(["a", "b", "c"], places)
    mass, lexical = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8]]).log(), torch.tensor([0.0, 2.0, 1.0])
    weights = {"mass": 1.0, "lexical": 0.6, "neighbours": 0.2}
    together = fuse({"mass": mass, "lexical": lexical}, weights, *beside)
    for row, one in zip(mass, together[0], strict=True):
        assert torch.allclose(fuse({"mass": row, "lexical": lexical}, weights, *beside)[0], one)


def test_who_is_named_and_what_stands_beside(bank: MemoryBank, tiny_model: LanguageModel) -> None:
    found = by_text(list(bank.search("What did ben say of the quince?", model=tiny_model)))
    assert len(found) == len(TALK)
    named = {text for text, each in found.items() if each.signals["speaker"] == 1.0}
    assert named == {TALK[1][1], TALK[4][1]}
    hit = found[TALK[1][1]]
    assert hit.rank == 1 and hit.signals["lexical"] > 0
    beside = {text: each.signals["neighbours"] for text, each in found.items()}
    assert beside[TALK[0][1]] > 0 and beside[TALK[2][1]] > 0
    assert beside[TALK[4][1]] < beside[TALK[2][1]]


def test_roles_name_nobody_and_latent_knows_no_names(bank: MemoryBank, tiny_model: LanguageModel) -> None:
    found = bank.search("Which kettle does the user own?", model=tiny_model)
    assert not any(each.signals["speaker"] for each in found)
    latent = bank.search("What did Ben say?", model=tiny_model, router="latent")
    assert all(set(each.signals) == {"mass", "neighbours"} for each in latent)


def test_what_is_gone_gives_its_neighbours_nothing(bank: MemoryBank, tiny_model: LanguageModel) -> None:
    """After an erase each memory scores as in a bank that never held what was erased."""
    query = "What did ben say of the quince?"
    bank.search(query, model=tiny_model)
    bank.forget(bank.plan_forget(matching="quince"))
    after = by_text(list(bank.search(query, model=tiny_model)))
    with MemoryBank.open(bank.path.parent / "other") as other:
        drafts = [MemoryDraft(text, speaker=speaker) for speaker, text in TALK if "quince" not in text]
        other.remember_many(drafts)
        fresh = by_text(list(other.search(query, model=tiny_model)))
    assert set(after) == set(fresh)
    for text, each in fresh.items():
        assert after[text].signals == pytest.approx(each.signals, abs=1e-4)
        assert after[text].score == pytest.approx(each.score, abs=1e-4)


def test_neighbours_of_words_far_back_are_candidates(
    bank: MemoryBank, tiny_model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mnemos.memory.router.RECENT_CANDIDATES", 1)
    found = by_text(list(bank.search("quince", model=tiny_model)))
    assert set(found) == {TALK[0][1], TALK[1][1], TALK[2][1], TALK[5][1]}


def test_what_the_assistant_said_stands_behind_unless_it_is_asked_for(
    tmp_path: Path, tiny_model: LanguageModel
) -> None:
    said = "Oats need an hour to soak."
    with MemoryBank.open(tmp_path / "chat") as chat:
        chat.remember_many([MemoryDraft(said, speaker=speaker) for speaker in ("Assistant", "User")])
        found = chat.search("How long do oats soak?", model=tiny_model)
        assert [each.signals.get("assistant") for each in found] == [0.0, 1.0]
        asked = chat.search("How long did you say that oats soak?", model=tiny_model)
        assert all("assistant" not in each.signals for each in asked)
        assert all(
            "assistant" not in each.signals for each in chat.search("oats", model=tiny_model, router="latent")
        )


@pytest.mark.parametrize(
    ("query", "is_put_aside"),
    [
        ("Where do I work?", True),
        ("Do you know where I work?", True),
        ("What did you recommend for my back?", False),
        ("Which plan had you suggested?", False),
        ("the book you\u2019ve mentioned", False),
        ("your packing list", False),
        ("YOUR ADVICE", False),
    ],
)
def test_which_queries_ask_for_what_was_said(query: str, is_put_aside: bool) -> None:
    places = {"a": Place("a", "ASSISTANT", None, None), "b": Place("b", None, None, None)}
    found = assistant_signal(query, ["a", "b", "gone"], places)
    assert (found is not None) == is_put_aside
    if found is not None:
        assert found.tolist() == [1.0, 0.0, 0.0]
    assert assistant_signal(query, ["b"], places) is None


def test_a_pair_of_rare_words_outweighs_the_same_words_apart(
    bank: MemoryBank, tiny_model: LanguageModel
) -> None:
    bank.remember_many(
        [
            MemoryDraft("Copper is dear and the market is shut, copper and market both."),
            MemoryDraft("Somewhere in a long note about nothing much at all is the copper market named."),
            *(MemoryDraft(f"Filler number {number} about the weather.") for number in range(40)),
        ]
    )
    found = bank.search("Where is the copper market?", model=tiny_model)
    assert "named" in found[0].memory.text and found[0].signals["phrase"] > 0.5
    assert all(each.signals["phrase"] == 0 for each in found[1:])


def test_of_several_things_that_are_named_none_is_crowded_out() -> None:
    ids = [*"abcdefg", "x", "y", "z"]
    fused = torch.tensor([9.0, 8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0, 0.5])
    raised, marks = named_among_the_first(fused, ids, [("x", "y"), ("z",), ("gone",)])
    order = [ids[at] for at in raised.argsort(descending=True).tolist()]
    assert order == [*"abc", "x", "z", *"defg", "y"], "of a pair the best one alone"
    assert marks.tolist() == [0.0] * 7 + [1.0, 0.0, 1.0]
    same, none = named_among_the_first(fused, ids, [("a",), ("gone",)])
    assert torch.equal(same, fused) and not none.any(), "what leads already stays as it is"
    few, none = named_among_the_first(fused[:3], ids[:3], [("c",)])
    assert torch.equal(few, fused[:3]) and not none.any()


def test_what_a_question_names_is_found_among_others_like_it(
    bank: MemoryBank, tiny_model: LanguageModel
) -> None:
    things = ["copper market", "silent orchard", "hollow bridge", "golden chapel"]
    padding = [
        "it went on for a long while about rain, wind and the way home in the dark of November",
        "nobody had asked for more than bread, soup, cheese or a place near enough to some fire",
        "her cousin wrote that trains were late again because of snow on every line up north",
        "they painted three doors green before lunch, then slept until somebody rang the bell",
    ]
    bank.remember_many(
        [
            *(
                MemoryDraft(f"{padding[at]}: {padding[at]} of the {thing}.")
                for at, thing in enumerate(things)
            ),
            # All the words of the question, and none of its pairs.
            *(
                MemoryDraft(
                    f"Secret {at}: market copper, orchard silent, bridge hollow, chapel golden numbers",
                    speaker=f"Decoy {at}",
                )
                for at in range(9)
            ),
            *(MemoryDraft(f"Filler {number} about the weather.") for number in range(200)),
        ]
    )
    listed = ", the ".join(things)
    found = bank.search(f"What are the secret numbers of the {listed}?", model=tiny_model, limit=8)
    assert sum(f"of the {thing}." in each.memory.text for each in found for thing in things) == len(things)
    assert sum(each.signals["named"] for each in found) >= 2
