"""`Redactor`: the write policy that keeps secrets and card numbers out of the memory.

It knows forms, not meanings: keys of well-known services, private keys, `password=...` and card numbers whose
check digit is right. A password told in free words ("it is swordfish") stays.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from mnemos.agent.policies import Draft

CARD = "[redacted card number]"
PRIVATE_KEY = "[redacted private key]"
API_KEY = "[redacted API key]"
PASSWORD = "[redacted password]"
SECRET = "[redacted secret]"

_PRIVATE_KEY = re.compile(
    r"-----BEGIN (?:[A-Z0-9]+ ){0,4}PRIVATE KEY(?: BLOCK)?-----"
    r".*?(?:-----END (?:[A-Z0-9]+ ){0,4}PRIVATE KEY(?: BLOCK)?-----|\Z)",
    re.DOTALL,
)
_API_KEY = re.compile(
    r"(?<![A-Za-z0-9_-])(?:"
    r"sk-[A-Za-z0-9_-]{16,}"  # OpenAI, Anthropic and those that follow them
    r"|(?:sk|rk|pk|whsec)_(?:live_|test_)?[A-Za-z0-9]{16,}"  # Stripe
    r"|gh[oprsu]_[A-Za-z0-9]{20,}|github_pat_[A-Za-z0-9_]{20,}|glpat-[A-Za-z0-9_-]{16,}"
    r"|xox[abeprs]-[A-Za-z0-9-]{10,}"  # Slack
    r"|(?:AKIA|ASIA|ABIA|ACCA)[A-Z0-9]{16}(?![A-Z0-9])"  # AWS
    r"|AIza[A-Za-z0-9_-]{30,}|ya29\.[A-Za-z0-9_-]{20,}"  # Google
    r"|hf_[A-Za-z0-9]{20,}|npm_[A-Za-z0-9]{30,}|pypi-[A-Za-z0-9_-]{30,}|dop_v1_[a-f0-9]{32,}"
    r"|SG\.[A-Za-z0-9_-]{16,}\.[A-Za-z0-9_-]{16,}"
    r"|eyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}"  # a JSON web token
    r")"
)
_BEARER = re.compile(r"(?i)\b(authorization\s*[:=]\s*)?((?:bearer|basic)\s+)([A-Za-z0-9._~+/=-]{16,})")
_URL_PASSWORD = re.compile(r"(?i)\b([a-z][a-z0-9+.-]*://[^\s:/@]{1,256}:)([^\s/@]{1,256})(@)")
_NAMED = re.compile(
    r"(?i)(?<![A-Za-z0-9])"
    r"((?:[A-Za-z0-9]{1,40}[_-]){0,6}"  # as in DB_PASSWORD, aws_secret_access_key
    r"(pass(?:word|wd|phrase|code)?|pwd|secret|token|api[_-]?key|access[_-]?key|secret[_-]?key|private[_-]?key"
    r"|client[_-]?secret|auth[_-]?token|credentials?)"
    r"(?:[_-][A-Za-z0-9]{1,40}){0,2}['\"]?\s{0,3}(?:=>|:=|=|:)\s{0,3})"
    r"(\"[^\"\n]{1,4096}\"|'[^'\n]{1,4096}'|[^\s,;'\"]{1,4096})"
)
_TOLD = re.compile(
    r"(?i)\b((?:password|passphrase|passcode|pin(?: code)?)\s{1,3}is\s{1,3}(?:now\s{1,3})?)(\S{4,256})"
)
_DIGITS = re.compile(r"\d+(?:[ \u00a0\u202f._\u2010-\u2014-]{1,2}\d+)*")
_GROUP = re.compile(r"\d+")
_SHORTEST_CARD, _LONGEST_CARD = 13, 19
_MARKER = re.compile(r"\[redacted [A-Za-z ]+\]")


@dataclass(frozen=True, slots=True)
class Redactor:
    """Puts markers such as `[redacted card number]` in the place of secrets. An agent uses it when it is told
    to: `Agent(policies=[Redactor()])`.

    `tag` is added to what was changed, so that it can be found.
    """

    secrets: bool = True
    cards: bool = True
    tag: str | None = None

    def before_write(self, draft: Draft) -> Draft:
        text, title = self.redact(draft.text), None if draft.title is None else self.redact(draft.title)
        if (text, title) == (draft.text, draft.title):
            return draft
        tags = draft.tags if self.tag is None else tuple(dict.fromkeys((*draft.tags, self.tag)))
        return replace(draft, text=text, title=title, tags=tags)

    def redact(self, text: str) -> str:
        """The text with a marker for each secret that was found. A second pass finds nothing more."""
        if self.secrets:
            text = _PRIVATE_KEY.sub(PRIVATE_KEY, text)
            text = _API_KEY.sub(API_KEY, text)
            text = _BEARER.sub(lambda found: f"{found[1] or ''}{found[2]}{SECRET}", text)
            text = _URL_PASSWORD.sub(lambda found: f"{found[1]}{PASSWORD}{found[3]}", text)
            text = _NAMED.sub(_named, text)
            text = _TOLD.sub(_told, text)
        return _in_digits(text, _without_cards) if self.cards else text


def _named(found: re.Match[str]) -> str:
    """`name=` with a marker for the value, which keeps its quotes."""
    value = found[3]
    quote = value[0] if value[0] in "'\"" else ""
    if _MARKER.match(value.strip("'\"") + (found.string[found.end() : found.end() + 40])):
        return found[0]
    is_password = found[2].lower().startswith(("pass", "pwd"))
    if not is_password and not quote and value.rstrip(".!?").isalpha() and "=" not in found[1]:
        return found[0]  # prose: "the secret: patience"
    marker = PASSWORD if is_password else SECRET
    return f"{found[1]}{quote}{marker}{quote}"


def _told(found: re.Match[str]) -> str:
    """A word that follows "password is" is one only where it looks like none of a language."""
    value = found[2].rstrip(".,;:!?)\"'")
    if len(value) < 4 or value.isalpha() or value.startswith("["):
        return found[0]
    return f"{found[1]}{PASSWORD}{found[2][len(value) :]}"


def _in_digits(text: str, change: Callable[[str], str]) -> str:
    return _DIGITS.sub(lambda found: change(found[0]), text)


def _without_cards(run: str) -> str:
    """A run of digit groups, with a marker for each stretch of whole groups that is a card number."""
    groups = [found.span() for found in _GROUP.finditer(run)]
    made, at, first = "", 0, 0
    while first < len(groups):
        last = next(
            (end for end in _ends(groups, first) if _is_card(run, groups[first][0], groups[end][1])), None
        )
        if last is None:
            first += 1
            continue
        made += run[at : groups[first][0]] + CARD
        at, first = groups[last][1], last + 1
    return made + run[at:]


def _ends(groups: list[tuple[int, int]], first: int) -> Iterator[int]:
    """Groups at which a card number could end that begins with the group `first`; the longest first."""
    digits, ends = 0, []
    for index in range(first, len(groups)):
        digits += groups[index][1] - groups[index][0]
        if digits > _LONGEST_CARD:
            break
        if digits >= _SHORTEST_CARD:
            ends.append(index)
    return reversed(ends)


def _is_card(run: str, start: int, end: int) -> bool:
    digits = [int(each) for each in run[start:end] if each.isdecimal()]
    return 2 <= digits[0] <= 6 and passes_luhn(digits)


def passes_luhn(digits: list[int]) -> bool:
    """Whether the last digit is the check digit of those before it (ISO/IEC 7812-1)."""
    total = 0
    for place, digit in enumerate(reversed(digits)):
        doubled = digit * 2 if place % 2 else digit
        total += doubled - 9 if doubled > 9 else doubled
    return total % 10 == 0
