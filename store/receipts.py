"""Signed receipts of erasure, and the hash-chained audit log. Ids, counts and digests only."""

import base64
import hashlib
import json
import os
from collections.abc import Mapping
from typing import Any, NoReturn

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from sqlalchemy import Connection, insert, select

from mnemos.errors import UsageError
from mnemos.store import catalog_schema as schema
from mnemos.store.catalog import now_us
from mnemos.store.crypto import KEY_BYTES

RECEIPT_VERSION = 2
_UNSIGNED = ("signature",)
_MAX_RECEIPT_BYTES = 256 << 20
_COMMON: dict[str, type | tuple[type, ...]] = {
    "id": str,
    "bank": str,
    "namespace": str,
    "started_us": int,
    "finished_us": int,
    "whole_namespace": bool,
    "cascade": str,
    "erased": list,
    "rewritten": dict,
    "memories": int,
    "frames": int,
    "bytes": int,
    "ciphertext_sha256": str,
    "erase_epoch": int,
    "steps": list,
    "checks": dict,
    "public_key": str,
    "signature": str,
}
_FIELDS: dict[int, dict[str, type | tuple[type, ...]]] = {
    1: _COMMON,
    2: {**_COMMON, "cleared_sha256": str, "page_copies": str, "audit": dict},
}


def new_signing_key() -> bytes:
    """32 bytes of a new Ed25519 private key."""
    return Ed25519PrivateKey.generate().private_bytes(Encoding.Raw, PrivateFormat.Raw, NoEncryption())


def public_key(signing_key: bytes) -> str:
    key = Ed25519PrivateKey.from_private_bytes(signing_key).public_key()
    return base64.b64encode(key.public_bytes(Encoding.Raw, PublicFormat.Raw)).decode("ascii")


def sign(body: Mapping[str, Any], signing_key: bytes) -> dict[str, Any]:
    """The receipt with its public key and its Ed25519 signature (RFC 8032) over the rest as JSON."""
    receipt = {**body, "public_key": public_key(signing_key)}
    signature = Ed25519PrivateKey.from_private_bytes(signing_key).sign(_canonical(receipt))
    return {**receipt, "signature": base64.b64encode(signature).decode("ascii")}


def verify_receipt(receipt: Mapping[str, Any], public: str | None = None) -> bool:
    """Whether the signature is good, offline. `public` pins the key expected; else the one inside is used."""
    try:
        key_text, signature = receipt["public_key"], base64.b64decode(receipt["signature"], validate=True)
        if public is not None and key_text != public:
            return False
        key = Ed25519PublicKey.from_public_bytes(base64.b64decode(key_text, validate=True))
        key.verify(signature, _canonical(receipt))
    except (InvalidSignature, KeyError, ValueError, TypeError):
        return False
    return True


def read_receipt(data: bytes) -> dict[str, Any]:
    """The receipt in a file's bytes, its form checked but not its signature.

    Raises UsageError for what is no receipt, or is one of a newer Mnemos.
    """
    try:
        if len(data) > _MAX_RECEIPT_BYTES:
            raise ValueError
        receipt: dict[str, Any] = json.loads(
            data.decode("utf-8"), object_pairs_hook=_once, parse_constant=_no_constant
        )
        if not isinstance(receipt, dict):
            raise ValueError
        if "version" not in receipt and isinstance(receipt.get("receipt"), dict):
            receipt = receipt["receipt"]  # as `memory forget --json` and `receipt show --json` print it
    except (ValueError, RecursionError):
        raise UsageError("This is not a receipt: it is not a JSON document of that form.") from None
    number = receipt.get("version")
    if type(number) is not int or number < 1:
        raise UsageError("This is not a receipt: it has no version.")
    if number > RECEIPT_VERSION:
        raise UsageError(
            f"The receipt is of version {number}; this Mnemos knows versions up to {RECEIPT_VERSION}. "
            "Install a newer one to verify it."
        )
    for name, kind in _FIELDS[number].items():
        value = receipt.get(name)
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise UsageError(f"This is not a receipt: its field {name} is missing or of another kind.")
    return receipt


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """No name twice: the two readings of such a document could not both be what was signed."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError
    return found


def _no_constant(_: str) -> NoReturn:
    raise ValueError


def same_key(text: str, public: str) -> bool:
    """Whether a key that somebody typed, in hexadecimal or base64, is this public key."""
    try:
        wanted = bytes.fromhex(text)
    except ValueError:
        try:
            wanted = base64.b64decode(text, validate=True)
        except ValueError:
            wanted = b""
    if len(wanted) != KEY_BYTES:
        raise UsageError("A receipt's key is 32 bytes: 64 hexadecimal digits, or base64.")
    return base64.b64encode(wanted).decode("ascii") == public


def _canonical(receipt: Mapping[str, Any]) -> bytes:
    body = {key: value for key, value in receipt.items() if key not in _UNSIGNED}
    return json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode(
        "ascii"
    )


def all_receipts(connection: Connection) -> list[dict[str, Any]]:
    """Oldest first."""
    table = schema.receipts
    rows = connection.execute(select(table.c.body).order_by(table.c.created_us, table.c.id)).scalars()
    return [json.loads(body) for body in rows]


def os_user() -> str:
    """The user of the operating system that this process runs as: a name, or a number that has none."""
    try:
        import pwd

        return pwd.getpwuid(os.getuid()).pw_name
    except (ImportError, KeyError):
        return str(getattr(os, "getuid", lambda: "unknown")())


def audit_head(connection: Connection) -> tuple[int, bytes]:
    """Number and digest of the last line of the audit log; (0, zeros) when it is empty."""
    c = schema.audit.c
    last = connection.execute(select(c.seq, c.digest).order_by(c.seq.desc()).limit(1)).one_or_none()
    return (0, bytes(32)) if last is None else (last[0], last[1])


def note(connection: Connection, action: str, subject: str, count: int = 1, actor: str | None = None) -> None:
    """Adds a line to the audit log: who, what, when. `subject` is an id, never words."""
    seq, previous = audit_head(connection)
    seq += 1
    actor = actor or str(connection.get_execution_options().get("mnemos_actor", "api"))
    at_us = now_us()
    digest = _link(previous, seq, at_us, actor, action, subject, count)
    connection.execute(
        insert(schema.audit).values(
            seq=seq, at_us=at_us, actor=actor, action=action, subject=subject, count=count, digest=digest
        )
    )


def audit_lines(connection: Connection) -> list[dict[str, Any]]:
    """The audit log, oldest first."""
    rows = connection.execute(select(schema.audit).order_by(schema.audit.c.seq))
    return [
        {
            "seq": row.seq,
            "at_us": row.at_us,
            "actor": row.actor,
            "action": row.action,
            "subject": row.subject,
            "count": row[5],
            "digest": row.digest.hex(),
        }
        for row in rows
    ]


def broken_link(connection: Connection) -> int | None:
    """The first line of the audit log that is not what it was; None when the chain holds.

    Each line follows from the one before. A tail that is cut off shows where a signed receipt vouches for a
    line of it: for the head at its signing, and for the line that says it was signed.
    """
    broken = _first_that_does_not_follow(connection)
    if broken is not None:
        return broken
    lines = audit_lines(connection)
    signed = {line["subject"] for line in lines if line["action"] == "erased"}
    for receipt in all_receipts(connection):
        head = receipt.get("audit")
        if head is not None and head["seq"]:
            seq = int(head["seq"])
            if seq > len(lines) or lines[seq - 1]["digest"] != head["digest"]:
                return min(seq, len(lines) + 1)
        if receipt["id"] not in signed:
            return len(lines) + 1
    return None


def _first_that_does_not_follow(connection: Connection) -> int | None:
    previous = bytes(32)
    expected = 1
    for line in audit_lines(connection):
        digest = _link(
            previous,
            line["seq"],
            line["at_us"],
            line["actor"],
            line["action"],
            line["subject"],
            line["count"],
        )
        if line["seq"] != expected or digest.hex() != line["digest"]:
            return int(line["seq"])
        previous, expected = digest, expected + 1
    return None


def _link(previous: bytes, seq: int, at_us: int, actor: str, action: str, subject: str, count: int) -> bytes:
    line = json.dumps([seq, at_us, actor, action, subject, count], separators=(",", ":")).encode("ascii")
    return hashlib.sha256(previous + line).digest()
