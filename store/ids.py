"""Random ids, and the rules that names and id prefixes follow."""

import base64
import re
import secrets

from mnemos.errors import InvalidNamespaceError, NotFoundError, UsageError

ID_CHARS = 26
MIN_PREFIX_CHARS = 4
NAMESPACE_CHARS = 128

_NAMESPACE = re.compile(r"[A-Za-z0-9._@-]+(?:/[A-Za-z0-9._@-]+)*")
_PREFIX = re.compile(r"[a-z2-7]+")
_LETTERS = "abcdefghijklmnopqrstuvwxyz234567"
_PAIRS = [first + second for first in _LETTERS for second in _LETTERS]
_SHIFTS = range(120, -1, -10)


def new_id() -> str:
    """128 random bits as 26 characters of lower-case base32."""
    return id_from_bytes(secrets.token_bytes(16))


def id_from_bytes(raw: bytes) -> str:
    """Lower-case base32 of 16 bytes, a pair of characters at a time: a query does this for hundreds."""
    number = int.from_bytes(raw) << 2
    return "".join([_PAIRS[number >> shift & 0x3FF] for shift in _SHIFTS])


def id_to_bytes(text: str) -> bytes:
    """The 16 bytes behind an id. Raises ValueError on anything else."""
    if len(text) != ID_CHARS:
        raise ValueError("an id has 26 characters")
    return base64.b32decode(text.upper() + "======")


def is_id(text: str) -> bool:
    """Whether it could be one."""
    return len(text) == ID_CHARS and _PREFIX.fullmatch(text) is not None


def check_namespace(name: str) -> str:
    """The name itself, or InvalidNamespaceError."""
    if not isinstance(name, str) or not 1 <= len(name) <= NAMESPACE_CHARS or not _NAMESPACE.fullmatch(name):
        raise InvalidNamespaceError(
            f"A namespace is 1 to {NAMESPACE_CHARS} characters: letters, digits and . _ @ - in parts joined "
            "by '/'."
        )
    if any(part in {".", ".."} for part in name.split("/")):
        raise InvalidNamespaceError("A part of a namespace can't be '.' or '..'; choose another name.")
    return name


def check_prefix(prefix: str, what: str = "memory") -> str:
    """The prefix in lower case. UsageError when it is too short, NotFoundError when no id can start so."""
    prefix = prefix.strip().lower()
    if len(prefix) < MIN_PREFIX_CHARS:
        raise UsageError(f"Give at least {MIN_PREFIX_CHARS} characters of the {what}'s id.")
    if len(prefix) > ID_CHARS or not _PREFIX.fullmatch(prefix):
        raise NotFoundError(f"No {what} has that id; `mnemos memory list` shows the ids.")
    return prefix
