"""Recall is measured on files small enough to know what must come out."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from mnemos.attention.models import LanguageModel
from mnemos.errors import NotFoundError, UsageError
from mnemos.memory import evaluate_recall
from mnemos.memory.bank import MemoryBank
from mnemos.memory.conversations import Turn
from mnemos.memory.encoder import MemoryEncoder
from mnemos.memory.records import Memory
from mnemos.store.keys import KeyFile
from mnemos.store.records import TraceDraft

TURNS = [
    ("a", "Ann", "2026-03-01", "My sister Clara works as a nurse in Leeds."),
    ("b", "Ben", "2026-03-01", "Our dog is called Biscuit."),
    ("c", "Ann", "2026-03-02", "I drive a green van to the harbour."),
    ("d", "Assistant", "2026-03-02", "Vans rust near the sea."),
    ("e", "Ben", "2026-03-03", "Now the dog is called Crumpet."),
]


def conversation(name: str, questions: list[dict[str, Any]]) -> dict[str, Any]:
    keys = ("id", "speaker", "time", "text")
    return {
        "id": name,
        "memories": [dict(zip(keys, turn, strict=True)) for turn in TURNS],
        "questions": questions,
    }


@pytest.fixture
def data(tmp_path: Path) -> Path:
    one = [
        {"question": "Where does Clara work?", "evidence": ["a"], "category": "fact"},
        {"question": "What is the dog called?", "evidence": ["b"], "category": "early", "before": "e"},
        {"question": "What is the dog called?", "evidence": ["b", "e"], "category": "late"},
        {"question": "What rusts in a zeppelin?", "evidence": ["a", "d"], "category": "part"},
        {"question": "Who knows?", "evidence": []},
        {"question": "Who is called Crumpet?", "evidence": ["e"], "before": "c"},
    ]
    path = tmp_path / "talks.jsonl"
    lines = [conversation("one", one), conversation("two", one[:1])]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def lexical(data: Path, **options: Any) -> dict[str, Any]:
    return evaluate_recall.run(data, model=None, router="lexical", **options)


def test_each_question_is_scored_by_its_own_evidence(data: Path, tmp_path: Path) -> None:
    export = tmp_path / "ranks.jsonl"
    measured = lexical(data, ks=[1, 5], export=export)
    # `early` finds b alone, `late` b and e, `part` d but not a; the two left out have nothing to be found.
    assert measured["questions"] == 5 and measured["memories"] == 10
    assert measured["recall"] == {"1": pytest.approx((1 + 1 + 0.5 + 0.5 + 1) / 5), "5": 0.9}
    assert measured["hit"] == {"1": 1.0, "5": 1.0}
    parts = measured["by_category"]
    assert set(parts) == {"fact", "early", "late", "part"} and parts["fact"]["questions"] == 2
    assert parts["part"]["recall"] == {"1": 0.5, "5": 0.5}
    assert measured["encode_tokens_per_s"] is None
    assert 0 < measured["route_ms_p50"] <= measured["route_ms_p95"]
    lines = [json.loads(line) for line in export.read_text().splitlines()]
    assert [(line["conversation"], line["question"]) for line in lines] == [
        ("one", 0), ("one", 1), ("one", 2), ("one", 3), ("two", 0),
    ]  # fmt: skip
    assert lines[1]["ranks"] == {"b": 1} and lines[3]["ranks"] == {"a": None, "d": 1}
    assert sorted(lines[2]["ranks"].values()) == [1, 2]
    assert "Clara" not in export.read_text()


def test_a_pair_counts_for_either_turn(data: Path) -> None:
    measured = lexical(data, unit="pair", ks=[1])
    # ab, cd, e: `part` finds cd, so half of its evidence
    assert measured["memories"] == 6
    assert measured["by_category"]["part"]["recall"] == {"1": 0.5}
    assert measured["by_category"]["early"]["recall"] == {"1": 1.0}


def test_pairs_end_where_the_time_changes() -> None:
    turns = [Turn(id=str(at), time=day, text="x") for at, day in enumerate("aabcc")]
    assert [[turn.id for turn in part] for part in evaluate_recall.units(turns, "pair")] == [
        ["0", "1"], ["2"], ["3", "4"],
    ]  # fmt: skip
    assert len(list(evaluate_recall.units(turns, "turn"))) == 5


def test_merged_conversations_are_in_each_others_way(data: Path) -> None:
    """The same turn of the other conversation is a distractor, and never counts as evidence."""
    apart, merged = lexical(data, ks=[1, 2]), lexical(data, ks=[1, 2], merge=True)
    assert merged["memories"] == 10 and merged["merged"] is True
    assert apart["by_category"]["fact"]["recall"]["1"] == 1.0
    assert merged["by_category"]["fact"]["recall"] == {"1": 0.5, "2": 1.0}
    # What is hidden for `early` is that conversation's own; the other's later turn is still there.
    assert merged["by_category"]["late"]["recall"]["2"] == 0.5


def test_a_part_of_a_file(data: Path) -> None:
    assert lexical(data, conversations=1)["questions"] == 4
    assert lexical(data, questions=2)["questions"] == 2
    only = lexical(data, questions=1)
    assert only["questions"] == 1 and only["memories"] == 5


@pytest.mark.model
@pytest.mark.parametrize(("router", "within"), [("full", 1), ("latent", 2)])
def test_the_model_finds_what_the_words_find(
    data: Path, language_model: LanguageModel, router: evaluate_recall.RouterName, within: int
) -> None:
    measured = evaluate_recall.run(data, model=language_model, router=router, ks=[within, 5])
    assert measured["by_category"]["fact"]["recall"][str(within)] == 1.0
    assert measured["recall"]["5"] == 1.0  # nothing but the five memories can be found
    assert measured["by_category"]["early"]["recall"]["5"] == 1.0
    assert measured["encode_tokens_per_s"] > 0 and measured["model"] == language_model.name


@pytest.mark.model
def test_kept_memories_are_not_read_again(
    data: Path, tmp_path: Path, language_model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, read = tmp_path / "kept", list[int]()
    whole = MemoryEncoder.encode_faint

    def counted(self: MemoryEncoder, memories: Sequence[Memory]) -> list[TraceDraft]:
        read.append(len(memories))
        if len(read) == 4:
            raise KeyboardInterrupt
        return whole(self, memories)

    plain = evaluate_recall.run(data, model=language_model, ks=[1])
    monkeypatch.setattr(MemoryEncoder, "encode_faint", counted)
    monkeypatch.setattr(evaluate_recall, "_GROUP", 2)
    with pytest.raises(KeyboardInterrupt):
        evaluate_recall.run(data, model=language_model, ks=[1], kept=kept)
    told: list[tuple[int, int]] = []
    measured = evaluate_recall.run(
        data,
        model=language_model,
        ks=[1],
        kept=kept,
        on_progress=lambda done, total: told.append((done, total)),
    )
    assert len(read) == 4 + 8  # two of the ten were written before the stop
    assert measured["recall"] == plain["recall"] and told[-1] == (15, 15) and len(told) == 15
    again = evaluate_recall.run(data, model=language_model, ks=[1], kept=kept)
    assert len(read) == 12 and again["recall"] == plain["recall"]
    assert again["encode_tokens_per_s"] is None


def test_kept_banks_are_asked_again(data: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    plain = lexical(data, ks=[1, 5])
    for _ in range(2):
        again = lexical(data, ks=[1, 5], kept=kept)
        assert again["recall"] == plain["recall"] and again["memories"] == 10
    # A run that is stopped leaves memories hidden; the next one finds them all the same.
    with MemoryBank.open(kept / "00000" / "bank", keys=KeyFile(kept / "00000" / "bank.key")) as bank:
        made = bank.list(namespace="eval")
        bank.hide(made[0].id, namespace="eval")
    assert len(made) == 5
    assert lexical(data, ks=[1, 5], kept=kept)["recall"] == plain["recall"]
    # Fewer questions need no more memories than there are.
    assert lexical(data, questions=1, kept=kept)["memories"] == 5
    merged = lexical(data, ks=[1, 2], merge=True)["recall"]
    assert [lexical(data, ks=[1, 2], merge=True, kept=kept)["recall"] for _ in range(2)] == [merged, merged]


def test_a_place_of_something_else_is_refused(data: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    lexical(data, kept=kept)
    with pytest.raises(UsageError, match="other texts or units"):
        lexical(data, unit="pair", kept=kept)
    with data.open("a", encoding="utf-8") as lines:
        lines.write(json.dumps(conversation("three", [])) + "\n")
    with pytest.raises(UsageError, match="other texts or units"):
        lexical(data, kept=kept)
    listed = kept / "00000" / "evaluated.json"
    listed.write_text("[")
    with pytest.raises(UsageError, match="can't be read"):
        lexical(data, kept=kept)
    listed.unlink()
    with pytest.raises(UsageError, match="not a bank of a whole run"):
        lexical(data, kept=kept)


@pytest.mark.model
def test_rivals_are_asked_the_same(data: Path, language_model: LanguageModel) -> None:
    told: list[tuple[int, int]] = []
    measured = evaluate_recall.run(
        data,
        model=language_model,
        rival="minilm",
        ks=[1, 5],
        on_progress=lambda done, total: told.append((done, total)),
    )
    rivals = measured["rivals"]
    assert list(rivals) == ["bm25", "minilm", "bm25+minilm"]
    assert rivals["bm25"] == {name: lexical(data, ks=[1, 5])[name] for name in ("recall", "hit")}
    # Nothing but what exists can be found: `early` has four memories, and both of its rivals find it.
    assert rivals["minilm"]["recall"]["5"] == rivals["bm25+minilm"]["recall"]["5"] == 1.0
    assert rivals["minilm"]["hit"]["1"] > 0.5
    assert told[-1] == (15, 15) and [done for done, _ in told] == list(range(1, 16))


@pytest.mark.model
def test_a_second_round_finds_the_second_link(
    tmp_path: Path, language_model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MNEMOS_EMBEDDER", "none")  # which finds it in the first round
    texts = [
        "My dentist is Dr. Novak.",
        "Novak has moved to 14 Elm Street.",
        "The car park in the high street is full on market days.",
        "The train was late by forty minutes.",
        "I walked along the street by the canal for an hour.",
        "The soup needs more salt.",
    ]
    talk = {
        "memories": [{"id": str(number), "text": text} for number, text in enumerate(texts)],
        "questions": [{"question": "In which street is my dentist?", "evidence": ["0", "1"]}],
    }
    path = tmp_path / "hops.jsonl"
    path.write_text(json.dumps(talk) + "\n", encoding="utf-8")
    found = {
        rounds: evaluate_recall.run(path, model=language_model, ks=[2], rounds=rounds) for rounds in (1, 2)
    }
    assert found[1]["recall"] == {"2": 0.5} and found[2]["recall"] == {"2": 1.0}
    for options in ({"ks": [1, 2]}, {"ks": [2], "router": "latent"}):
        with pytest.raises(UsageError, match="one --k"):
            evaluate_recall.run(path, model=language_model, rounds=2, **options)


def test_a_turn_too_long_for_a_memory_is_cut(tmp_path: Path) -> None:
    talk = {
        "memories": [{"id": "long", "text": "kettle " + "ü" * 40_000}, {"id": "none", "text": ""}],
        "questions": [{"question": "Where is the kettle?", "evidence": ["long"]}],
    }
    path = tmp_path / "long.jsonl"
    path.write_text(json.dumps(talk) + "\n", encoding="utf-8")
    for unit in evaluate_recall.UNITS:
        assert lexical(path, ks=[1], unit=unit)["recall"] == {"1": 1.0}


def test_files_that_hold_nothing(tmp_path: Path) -> None:
    path = tmp_path / "none.jsonl"
    with pytest.raises(NotFoundError):
        lexical(path)
    path.write_text(json.dumps(conversation("x", [])) + "\n")
    with pytest.raises(UsageError, match="no question with evidence"):
        lexical(path)


def test_percentiles_are_nearest_ranks() -> None:
    assert evaluate_recall.percentile([3.0, 1.0, 2.0], 50) == 2.0
    assert evaluate_recall.percentile([float(at) for at in range(1, 101)], 95) == 95.0
    assert evaluate_recall.percentile([7.0], 5) == 7.0
