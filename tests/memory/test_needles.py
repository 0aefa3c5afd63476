import random
from itertools import chain
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mnemos.errors import NotFoundError, UsageError
from mnemos.memory.needles import DEPTHS, TASKS, VALUES, Needle, hide, make_questions, placed
from mnemos.memory.passages import cut, edited, passages, question_about


def test_every_task_value_and_depth_is_asked_and_no_two_ask_the_same() -> None:
    made = make_questions(2)
    assert len(made) == 2 * len(TASKS) * len(VALUES) * len(DEPTHS)
    assert len({each.question for each in made}) == len(made)
    needles = list(chain.from_iterable((*each.needles, *each.others) for each in made))
    assert len({needle.sentence for needle in needles}) == len(needles)
    assert made == make_questions(2) != make_questions(2, seed=1)
    for each in made:
        assert all(needle.value in needle.sentence for needle in each.needles)
        assert all(needle.value not in each.question for needle in each.needles)
        assert each.needles[0].depth == each.depth
        assert len(each.needles) == (4 if each.task in ("multi-value", "multi-query") else 1)
        assert bool(each.others) == (each.task == "multi-key")
    with pytest.raises(UsageError, match="too few"):
        make_questions(50)


@given(st.lists(st.floats(0, 1), max_size=30), st.integers(30, 90))
def test_needles_lie_near_their_depth_and_never_together(depths: list[float], memories: int) -> None:
    needles = [Needle(str(at), "", depth) for at, depth in enumerate(depths)]
    found = placed(needles, memories)
    assert sorted(needle.sentence for needle in found.values()) == sorted(n.sentence for n in needles)
    assert all(0 <= at < memories for at in found)
    assert all(abs(at - needle.depth * (memories - 1)) <= len(needles) for at, needle in found.items())


def test_too_many_needles_are_an_error() -> None:
    with pytest.raises(UsageError, match="take more tokens"):
        placed([Needle(str(n), "", 0.0) for n in range(3)], 2)


@pytest.mark.parametrize("passage", ["One. Two? Three! Four", "one two three", "word", ""])
def test_a_needle_stands_whole_in_its_passage(passage: str) -> None:
    needle = Needle("The secret word is x.", "x", 0.0)
    hidden = hide(passage, needle, random.Random(1))
    assert needle.sentence in hidden
    assert hidden.replace(needle.sentence, " ").split() == passage.split()


def test_passages_of_a_file_come_again_with_other_words(tmp_path: Path) -> None:
    path = tmp_path / "books.jsonl"
    text = " ".join(f"word{n}" for n in range(100))
    path.write_text('{"text": "' + text + '"}\n', encoding="utf-8")
    made = passages(path, 50)
    first = [next(made) for _ in range(3)]
    assert " ".join(first) in text and all(len(each) >= 210 for each in first)
    again = next(made)
    assert again != first[0] and len(set(again.split()) & set(first[0].split())) > 10


def test_without_a_file_words_are_made_up_and_the_same_each_time() -> None:
    made, again = passages(None, 40), passages(None, 40)
    assert [next(made) for _ in range(3)] == [next(again) for _ in range(3)]
    assert len(next(made).split()) == 15


@pytest.mark.parametrize(
    ("content", "said"),
    [("not json", "can't be read"), ('{"words": 1}', "`text`"), ('{"text": "a"}', "no text")],
)
def test_a_file_that_is_none_is_told(tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "odd.jsonl"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(UsageError, match=said):
        next(passages(path, 50))
    with pytest.raises(NotFoundError):
        next(passages(tmp_path / "none.jsonl", 50))


@given(st.text(alphabet="ab .\n", max_size=300), st.integers(1, 40))
def test_cut_keeps_words_whole_and_in_order(text: str, size: int) -> None:
    joined = " ".join(" ".join(cut(text, size)).split())
    words = iter(text.split())
    assert all(word in words for word in joined.split())


@given(st.lists(st.text("abc", min_size=1, max_size=5), min_size=1, max_size=60))
def test_edits_and_questions_keep_to_the_passage(words: list[str]) -> None:
    passage = " ".join(words)
    assert len(edited(passage, random.Random(2)).split(" ")) == len(words)
    asked = question_about(passage, random.Random(3))
    assert asked.removeprefix("What was said about ").removesuffix("?") in passage
