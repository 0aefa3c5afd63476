"""Repeats, updates and near-ties of a ranking."""

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from mnemos.memory.router import Scored
from mnemos.memory.settling import NEWER, Statement, settled

START = datetime(2026, 1, 1, tzinfo=UTC)


def ranking(*lines: tuple[str, float, int], query: str = "", speaker: str = "User") -> list[Scored]:
    """Of (text, score, day), settled; ids are the texts' places."""
    said = {
        str(at): Statement(text, speaker, START + timedelta(days=day))
        for at, (text, _, day) in enumerate(lines)
    }
    scored = [Scored(str(at), score, {}, 0.0, (), score) for at, (_, score, _) in enumerate(lines)]
    return settled(sorted(scored, key=lambda each: -each.score), said, query)


def ids(found: list[Scored]) -> list[str]:
    return [each.id for each in found]


def test_the_same_words_stand_once_the_newest_in_the_best_place() -> None:
    found = ranking(("We met Ann.", 3.0, 0), ("Something else", 2.0, 0), ("we met ann", 1.0, 5))
    assert ids(found) == ["2", "1"] and found[0].score == 3.0


def test_a_newer_statement_comes_before_the_older_one() -> None:
    found = ranking(
        ("I live in Porto.", 3.0, 0),
        ("My dog is called Rex.", 2.5, 1),
        ("I live in Leeds now.", 2.0, 9),
        query="Where do I live?",
    )
    assert ids(found) == ["2", "0", "1"]
    assert found[0].score == 3.0 and found[0].signals[NEWER] == 1.0
    assert sorted((each.score for each in found), reverse=True) == [each.score for each in found]


def test_an_older_one_that_answers_what_is_asked_stays() -> None:
    found = ranking(
        ("I have a dog called Rex.", 3.0, 0), ("I have a cat called Tom.", 2.0, 9), query="my dog?"
    )
    assert ids(found) == ["0", "1"]


def test_an_older_statement_never_passes_a_newer_one() -> None:
    found = ranking(("I live in Leeds now.", 3.0, 9), ("I live in Porto.", 2.0, 0), query="Where do I live?")
    assert ids(found) == ["0", "1"] and NEWER not in found[0].signals


def test_of_near_ties_one_that_says_something_new_goes_first() -> None:
    found = ranking(
        ("the train to Leeds leaves at nine", 2.0, 0),
        ("the train to Leeds leaves at nine today", 1.999, 0),
        ("Clara meets us there", 1.998, 0),
        ("and brings the keys", 1.0, 0),
    )
    assert ids(found) == ["0", "2", "1", "3"]


def test_what_is_unknown_is_left_out() -> None:
    assert settled([Scored("a", 1.0, {}, 0.0, (), 1.0)], {}, "x") == []


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["a b c d", "a b c e", "a b c f g", "x", "", "y z"]),
            st.floats(-5, 5),
            st.integers(0, 9),
        ),
        max_size=9,
    )
)
def test_nothing_but_repeats_is_lost(lines: list[tuple[str, float, int]]) -> None:
    found = ranking(*lines, query="a b")
    kept = {lines[int(each.id)][0] for each in found}
    assert kept == {text for text, _, _ in lines}
    assert len(found) == len(set(ids(found)))
