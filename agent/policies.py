"""Write policies: what becomes of words before an agent's memory keeps them.

A policy sees every text that a turn is about to write: the person's message, then the reply, and whatever
tools and `Agent.remember` put in. It changes the text, tags it, sets when it expires, or drops it. What the
model reads in the turn itself is not changed, only what stays.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import PurePath
from typing import Literal, Protocol

from mnemos.errors import PolicyError
from mnemos.memory.records import Kind


@dataclass(frozen=True, slots=True)
class Draft:
    """Words that are about to be written. A policy returns it, changed with `dataclasses.replace`, or None.

    `part` is "reply" for the model's words of an exchange, whose message was written before them; tags and
    an expiry that are set then count for the whole exchange, and None leaves out the reply alone.
    """

    text: str
    part: Literal["text", "reply"] = "text"
    kind: Kind = "exchange"
    tags: tuple[str, ...] = ()
    expires_at: datetime | None = None
    title: str | None = None
    source: str | None = None
    namespace: str = ""
    session_id: str | None = None


class WritePolicy(Protocol):
    """Decides about one draft: itself, a changed one, or None, which keeps nothing of it.

    It is called in the thread of the turn and must be quick. When it raises, what it was given is not
    written.
    """

    def before_write(self, draft: Draft) -> Draft | None: ...


@dataclass(frozen=True, slots=True)
class Decision:
    """What the policies left of a draft, and the names of those that changed it."""

    draft: Draft | None
    changed_by: tuple[str, ...] = ()


def decide(policies: Sequence[WritePolicy], draft: Draft) -> Decision:
    """The draft after each policy in turn, up to one that drops it. A text left without words is dropped.

    Raises `PolicyError` when a policy raises or returns something else.
    """
    changed_by: list[str] = []
    for policy in policies:
        name = type(policy).__name__
        try:
            made = policy.before_write(draft)
        except Exception as error:
            raise _failed(name, error) from None  # what it said may hold the words that it saw
        if made is not None and not _is_sound(made):
            raise PolicyError(
                f"the write policy {name} returned {type(made).__name__} or a draft with a field of a "
                "wrong type; it has to return a Draft or None. What it was given was not stored"
            )
        if made is None or not made.text.strip():
            return Decision(None, (*changed_by, name))
        # Whose words they are, and where they belong, is not for a policy to say.
        made = replace(
            made, part=draft.part, kind=draft.kind, namespace=draft.namespace, session_id=draft.session_id
        )
        if made != draft:
            changed_by.append(name)
        draft = made
    return Decision(draft, tuple(changed_by))


def _is_sound(made: object) -> bool:
    return (
        isinstance(made, Draft)
        and isinstance(made.text, str)
        and isinstance(made.tags, tuple)
        and all(isinstance(tag, str) for tag in made.tags)
        and isinstance(made.expires_at, datetime | None)
        and isinstance(made.title, str | None)
        and isinstance(made.source, str | None)
    )


def _failed(name: str, error: Exception) -> PolicyError:
    trace, place = error.__traceback__, ""
    while trace is not None:
        place = f" ({PurePath(trace.tb_frame.f_code.co_filename).name}, line {trace.tb_lineno})"
        trace = trace.tb_next
    return PolicyError(
        f"the write policy {name} raised {type(error).__name__}{place}; what it was given was not stored. "
        "Mend the policy, or leave it out"
    )


@dataclass(frozen=True, slots=True)
class ExpireAfter:
    """Gives everything an expiry, so many seconds after it is written; an earlier one stays."""

    seconds: float

    def before_write(self, draft: Draft) -> Draft:
        moment = datetime.fromtimestamp(datetime.now(UTC).timestamp() + self.seconds, UTC)
        if draft.expires_at is not None and draft.expires_at <= moment:
            return draft
        return replace(draft, expires_at=moment) if draft.part == "text" else draft


@dataclass(frozen=True, slots=True)
class AddTags:
    """Gives everything these tags."""

    tags: tuple[str, ...]

    def before_write(self, draft: Draft) -> Draft:
        return replace(draft, tags=tuple(dict.fromkeys((*draft.tags, *self.tags))))
