"""The built-in redactor: what it takes out, and what it leaves."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mnemos.agent.policies import Draft
from mnemos.agent.redaction import API_KEY, CARD, PASSWORD, PRIVATE_KEY, SECRET, Redactor, passes_luhn

REDACT = Redactor().redact


def luhn_number(head: str, length: int) -> str:
    body = head[: length - 1]
    return next(body + str(d) for d in range(10) if passes_luhn([int(each) for each in f"{body}{d}"]))


cards = st.builds(
    lambda first, rest, length: luhn_number(first + rest, length),
    st.sampled_from("23456"),
    st.text("0123456789", min_size=19, max_size=19),
    st.integers(13, 19),
)


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("my card is 4111 1111 1111 1111, ok?", f"my card is {CARD}, ok?"),
        ("4111-1111-1111-1111", CARD),
        ("order 12 4111 1111 1111 1111 and 7", f"order 12 {CARD} and 7"),
        ("378282246310005", CARD),
        ("5555\u00a05555\u00a05555\u00a04444", CARD),
        ("password=hunter2", f"password={PASSWORD}"),
        ('{"password": "hunter 2", "user": "eve"}', f'{{"password": "{PASSWORD}", "user": "eve"}}'),
        ("DB_PASSWORD = 'x y'", f"DB_PASSWORD = '{PASSWORD}'"),
        ("export AWS_SECRET_ACCESS_KEY=abcDEF123/xyz", f"export AWS_SECRET_ACCESS_KEY={SECRET}"),
        ("api_key: k9x2", f"api_key: {SECRET}"),
        ("my password is Tr0ub4dor.", f"my password is {PASSWORD}."),
        ("use sk-abcdefghijklmnop1234 now", f"use {API_KEY} now"),
        ("ghp_ABCDEFGHIJKLMNOPQRSTuvwxyz0123456789", API_KEY),
        ("id AKIAIOSFODNN7EXAMPLE.", f"id {API_KEY}."),
        ("Authorization: Bearer abcdef0123456789abcdef", f"Authorization: Bearer {SECRET}"),
        ("postgres://eve:s3cret@db.example/x", f"postgres://eve:{PASSWORD}@db.example/x"),
        (
            "a\n-----BEGIN RSA PRIVATE KEY-----\nMIIE\nabc\n-----END RSA PRIVATE KEY-----\nb",
            f"a\n{PRIVATE_KEY}\nb",
        ),
        ("-----BEGIN OPENSSH PRIVATE KEY-----\ncut off", PRIVATE_KEY),
    ],
)
def test_secrets_are_taken_out(text: str, kept: str) -> None:
    assert REDACT(text) == kept
    assert REDACT(kept) == kept


@pytest.mark.parametrize(
    "text",
    [
        "My sister Clara works as a nurse in Leeds.",
        "4111 1111 1111 1112 has a wrong check digit",
        "call +44 20 7946 0958 or 0161 496 0000",
        "at 1763918400000 ms, 2026-03-01 12:30:59",
        "the password is wrong again",
        "The secret: patience.",
        "tokens: 40, passwords are hard, a pass through the hills",
        "41111111111111111111111111111111",  # longer than a card's
        "https://example.org:8080/path@x",
    ],
)
def test_what_only_looks_like_one_stays(text: str) -> None:
    assert REDACT(text) == text


@given(cards, st.text(max_size=30), st.text(max_size=30), st.sampled_from(["", " ", "-"]))
@example("4111111111111111", "0 ", " 1", " ")
def test_no_card_number_stays_whatever_stands_around_it(card: str, before: str, after: str, gap: str) -> None:
    written = gap.join(card[at : at + 4] for at in range(0, len(card), 4))
    text = f"{before}; {written}; {after}"
    assert written not in REDACT(text)


@given(st.text(max_size=200))
@example("password=password=x")
@example("token='pwd=1'")
def test_a_second_pass_finds_nothing_more(text: str) -> None:
    once = REDACT(text)
    assert REDACT(once) == once


@given(st.text(alphabet=st.characters(categories=["L", "Zs"]), max_size=200))
def test_letters_alone_stay(text: str) -> None:
    assert REDACT(text) == text


def test_each_half_can_be_left_out() -> None:
    text = "password=x1 4111111111111111"
    assert Redactor(cards=False).redact(text) == f"password={PASSWORD} 4111111111111111"
    assert Redactor(secrets=False).redact(text) == f"password=x1 {CARD}"


def test_the_title_too_and_a_tag_on_what_was_changed() -> None:
    policy = Redactor(tag="redacted")
    assert policy.before_write(Draft("hello", tags=("a",))) == Draft("hello", tags=("a",))
    made = policy.before_write(Draft("hello", title="pwd=abc1", tags=("a",)))
    assert (made.title, made.tags) == (f"pwd={PASSWORD}", ("a", "redacted"))
