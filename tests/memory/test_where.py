"""The text of selectors: read, written, and refused with the place where reading stopped."""

import re
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mnemos.errors import InvalidSelectorError
from mnemos.memory.where import parse_where, print_where
from mnemos.store import selectors as s

VALUES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12) | st.sampled_from(
    ["or", "not", "and", 'a"b', "\\", 'x\\"', "a b", "(", "tag:x", "@2", "ß", "\n", "not:", "a@b"]
)
IDS = st.text("abcdefgh234567", min_size=4, max_size=8)
MOMENTS = st.datetimes(
    datetime(1900, 1, 2),
    datetime(2200, 1, 1),
    timezones=st.sampled_from([UTC, timezone(timedelta(hours=-7))]),
)
LEAVES: st.SearchStrategy[s.Condition] = st.one_of(
    st.lists(IDS, min_size=1, max_size=3).map(lambda ids: s.Ids(tuple(ids))),
    VALUES.map(s.Session),
    VALUES.map(s.Tag),
    VALUES.map(s.Matching),
    VALUES.map(s.Source),
    MOMENTS.map(s.Since),
    MOMENTS.map(s.Before),
    st.sampled_from(s.KINDS).map(s.OfKind),
    st.sampled_from(s.MARKS).map(s.Marked),
    st.builds(s.Like, VALUES, st.none() | st.floats(allow_nan=False, allow_infinity=False)),
)
CONDITIONS = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        inner.map(s.Not),
        st.lists(inner, min_size=2, max_size=4).map(lambda parts: s.And(tuple(parts))),
        st.lists(inner, min_size=2, max_size=4).map(lambda parts: s.Or(tuple(parts))),
    ),
    max_leaves=12,
)


@given(CONDITIONS)
@settings(max_examples=200, deadline=None)
def test_what_is_printed_is_read_back(condition: s.Condition) -> None:
    text = print_where(condition)
    assert parse_where(text) == condition
    assert print_where(parse_where(text)) == text


@given(
    st.text(max_size=60)
    | st.lists(
        st.sampled_from(
            [
                "tag:",
                "x",
                " ",
                "(",
                ")",
                "not",
                "and",
                "or",
                '"',
                "\\",
                "like:",
                "@",
                "1",
                "since:",
                "id:",
                ",",
                "is:",
            ]
        ),
        max_size=14,
    ).map("".join)
)
@settings(max_examples=300, deadline=None)
def test_junk_is_read_or_refused_with_a_place(text: str) -> None:
    try:
        condition = parse_where(text)
    except InvalidSelectorError as error:
        place = re.search(r"at character (\d+)", str(error))
        assert place is not None and 1 <= int(place[1]) <= len(text) + 1
    else:
        assert parse_where(print_where(condition)) == condition


def test_the_operators_bind_as_documented() -> None:
    a, b, c = s.Tag("a"), s.Tag("b"), s.Tag("c")
    assert parse_where("tag:a or tag:b and tag:c") == a | (b & c)
    assert parse_where("(tag:a or tag:b) and tag:c") == (a | b) & c
    assert parse_where("not tag:a and tag:b") == ~a & b
    assert parse_where("NOT (tag:a Or tag:b)AND(tag:c)") == ~(a | b) & c
    assert parse_where(" not not tag:a ") == ~~a


def test_every_field() -> None:
    text = (
        'id:abcd,efgh and session:3f2a and match:"Clara \\"C\\" \\\\" and source:/a/b.md and kind:note '
        "and is:pinned"
    )
    assert parse_where(text) == s.And(
        (
            s.Ids(("abcd", "efgh")),
            s.Session("3f2a"),
            s.Matching('Clara "C" \\'),
            s.Source("/a/b.md"),
            s.OfKind("note"),
            s.Marked("pinned"),
        )
    )
    assert parse_where('like:"my ex"@2.5 or like:ex') == s.Like("my ex", 2.5) | s.Like("ex")
    assert parse_where("like:me@2.5") == s.Like("me@2.5")


def test_moments_are_those_of_the_options() -> None:
    day = datetime(2026, 1, 1).astimezone(UTC)
    assert parse_where("before:2026-01-01") == s.Before(day)
    assert parse_where("since:2026-01-01") == s.Since(day)
    assert parse_where("until:2026-01-01") == s.Before(datetime(2026, 1, 2).astimezone(UTC))
    aged = parse_where("since:3d")
    assert isinstance(aged, s.Since)
    assert abs(datetime.now(UTC) - timedelta(days=3) - aged.moment) < timedelta(minutes=1)


@pytest.mark.parametrize(
    ("text", "character", "says"),
    [
        ("", 1, "expected a condition"),
        ("quincetree", 1, "expected a condition"),
        ("tag:x quincetree", 7, "`and`, `or`"),
        ("tag:x and", 10, "expected a condition"),
        ("not", 4, "expected a condition"),
        ("(tag:x or tag:y", 16, "character 1"),
        ("tag:x)", 6, "`and`, `or`"),
        ("quincetree:x", 1, "no such field; there are id, session"),
        ("tag: x", 5, "right after the colon"),
        ('tag:""', 5, "empty"),
        ('match:"quincetree', 7, "nothing closes"),
        ("since:quincetree", 7, "no date"),
        ("kind:quincetree", 6, "exchange, note"),
        ("is:quincetree", 4, "pinned, hidden"),
        ('like:"x"@quince', 9, "number"),
        ('like:"x"@inf', 6, "number"),
        ("id:abcd,", 4, "empty"),
        ("(" * 70 + "tag:x" + ")" * 70, 61, "deep"),
        ("not " * 5000 + "tag:x", 241, "deep"),
    ],
)
def test_what_can_not_be_read(text: str, character: int, says: str) -> None:
    with pytest.raises(InvalidSelectorError) as caught:
        parse_where(text)
    message = str(caught.value)
    assert f"at character {character}:" in message and says in message
    assert "quincetree" not in message


def test_a_text_without_end_is_refused_at_once() -> None:
    with pytest.raises(InvalidSelectorError, match="over"):
        parse_where("tag:x or " * 20_000 + "tag:x")
    with pytest.raises(InvalidSelectorError, match="too large"):
        parse_where(" or ".join(["tag:x"] * 301))
