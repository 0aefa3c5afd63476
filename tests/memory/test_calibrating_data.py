"""Splits and cuts of calibration data: conversations are held out whole, and cut to what they can answer."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mnemos.errors import NotFoundError, UsageError
from mnemos.memory.calibrating_data import Parts, Piece, cut, fair_shares, make_parts
from mnemos.memory.conversations import Conversation


def conversation(name: str, turns: int = 8, questions: int = 3, **changes: Any) -> dict[str, Any]:
    """Question i is answered by turn 2 i."""
    return {
        "id": name,
        "memories": [
            {"id": f"{name}.{i}", "speaker": "Ann", "text": f"{name} turn {i}"} for i in range(turns)
        ],
        "questions": [
            {"question": f"What is {i}?", "answer": f"turn {i}", "evidence": [f"{name}.{2 * i}"], **changes}
            for i in range(questions)
        ],
    }


def write(path: Path, *conversations: dict[str, Any]) -> Path:
    with gzip.open(path, "wt") if path.suffix == ".gz" else path.open("w") as file:
        file.writelines(json.dumps(each) + "\n" for each in conversations)
    return path


def parts(data: list[Path], held_out: list[Path] | None = None, **changes: Any) -> Parts:
    options = {"conversations": 12, "questions": 60, "tokens": 10_000, "seed": 0, **changes}
    return make_parts(data, held_out or [], size=len, **options)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sizes=st.lists(st.integers(2, 9), min_size=1, max_size=3),
    seed=st.integers(0, 99),
    most=st.integers(2, 20),
)
def test_no_conversation_is_in_both_parts(tmp_path: Path, sizes: list[int], seed: int, most: int) -> None:
    files = [
        write(tmp_path / f"{at}.jsonl.gz", *(conversation(f"c{at}.{i}") for i in range(size)))
        for at, size in enumerate(sizes)
    ]
    made = parts(files, seed=seed, conversations=most)
    training, held_out = ({piece.digest for piece in part} for part in (made.training, made.held_out))
    assert training and held_out and not training & held_out
    shown = [
        {turn.text for p in part for turn in p.conversation.memories}
        for part in (made.training, made.held_out)
    ]
    assert not shown[0] & shown[1]
    assert {piece.file for piece in made.held_out} == {piece.file for piece in made.training}
    assert made == parts(files, seed=seed, conversations=most)
    assert set(made.data) == {f"{at}.jsonl.gz" for at in range(len(sizes))} and not made.held_out_data


def test_a_conversation_of_two_files_is_taken_once(tmp_path: Path) -> None:
    some = [conversation(f"c{i}") for i in range(6)]
    one, two = write(tmp_path / "one.jsonl", *some[:4]), write(tmp_path / "two.jsonl", *some[2:])
    made = parts([one, two])
    digests = [piece.digest for piece in (*made.training, *made.held_out)]
    assert len(digests) == len(set(digests)) == 6
    apart = parts([one], [two])
    known = {piece.digest for piece in apart.training}
    assert len(known) == 4 and len(apart.held_out) == 2
    assert not known & {piece.digest for piece in apart.held_out}
    assert set(apart.held_out_data) == {"two.jsonl"}
    with pytest.raises(UsageError, match="isn't in the training data"):
        parts([one], [write(tmp_path / "same.jsonl", *some[:2])])


def test_two_files_of_one_name_keep_their_digests(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    one = write(tmp_path / "talk.jsonl", conversation("a"), conversation("b"))
    two = write(tmp_path / "other" / "talk.jsonl", conversation("c"), conversation("d"))
    assert len(set(parts([one, two]).data.values())) == 2


def test_questions_are_shared_out_among_files(tmp_path: Path) -> None:
    many = write(tmp_path / "many.jsonl", *(conversation(f"m{i}", 40, 20) for i in range(4)))
    few = write(tmp_path / "few.jsonl", *(conversation(f"f{i}", 8, 3) for i in range(4)))
    made = parts([many, few], questions=12)
    asked = {
        name: sum(len(p.conversation.questions) for p in made.training if p.file == name)
        for name in ("many.jsonl", "few.jsonl")
    }
    assert asked == {"many.jsonl": 6, "few.jsonl": 6}


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "no conversation with a question"),
        ([conversation("a", questions=0), conversation("b", questions=0)], "no conversation with a question"),
        ([conversation("a")], "two are needed"),
        ([conversation("a", before="a.0")], "no conversation with a question"),
    ],
)
def test_data_that_will_not_do(tmp_path: Path, lines: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parts([write(tmp_path / "data.jsonl", *lines)])


def test_files_that_can_not_be_read(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no file"):
        parts([tmp_path / "none.jsonl"])
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"memories": 3}\n')
    with pytest.raises(UsageError, match=r"Line 1 of broken\.jsonl"):
        parts([broken])
    short = write(tmp_path / "short.jsonl", conversation("a"), conversation("b"))
    with pytest.raises(UsageError, match="raise --tokens"):
        parts([short], tokens=4)


@given(st.lists(st.integers(0, 50), min_size=1, max_size=8), st.integers(0, 300))
def test_fair_shares(sizes: list[int], room: int) -> None:
    shares = fair_shares(sizes, room)
    assert sum(shares) <= room and all(0 <= share <= size for share, size in zip(shares, sizes, strict=True))
    if sum(sizes) <= room:
        assert shares == sizes
    else:
        assert sum(shares) == room
        wanting = [share for share, size in zip(shares, sizes, strict=True) if share < size]
        assert max(wanting) - min(wanting) <= 1 and min(wanting) >= max(shares) - 1


def one_piece(**changes: Any) -> Piece:
    return Piece("f", "d", Conversation.model_validate(conversation("a", 10, 0) | changes))


def test_a_stretch_holds_the_most_questions_it_can() -> None:
    asked = [
        {"question": "near", "evidence": ["a.6"]},
        {"question": "half", "evidence": ["a.5", "a.1"]},
        {"question": "third", "evidence": ["a.0", "a.1", "a.6"]},
        {"question": "early", "evidence": ["a.7"], "before": "a.3"},
        {"question": "late", "evidence": ["a.7"], "before": "a.9"},
    ]
    piece = cut(one_piece(questions=asked), 5, [1] * 10)
    assert [turn.id for turn in piece.conversation.memories] == ["a.3", "a.4", "a.5", "a.6", "a.7"]
    found = {each.question: each.evidence for each in piece.conversation.questions}
    assert found == {"near": ("a.6",), "half": ("a.5",), "late": ("a.7",)}
    whole = cut(one_piece(questions=asked), 10, [1] * 10)
    assert len(whole.conversation.memories) == 10 and len(whole.conversation.questions) == 4


def test_a_memory_larger_than_the_room_is_left_out() -> None:
    piece = cut(
        one_piece(questions=[{"question": "q", "evidence": ["a.6"]}]), 4, [1, 1, 9, 9, 1, 1, 1, 1, 9, 1]
    )
    assert [turn.id for turn in piece.conversation.memories] == ["a.4", "a.5", "a.6", "a.7"]
    assert (
        cut(one_piece(questions=[{"question": "q", "evidence": ["a.2"]}]), 4, [9] * 10).conversation.questions
        == ()
    )
