"""Signed receipts of erasure, and the hash-chained audit log. Ids, counts and digests only."""

import base64
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from sqlalchemy import Connection, insert, select

from mnemos.store import catalog_schema as schema
from mnemos.store.catalog import now_us

RECEIPT_VERSION = 1
_UNSIGNED = ("signature",)


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


def note(connection: Connection, action: str, subject: str, count: int = 1, actor: str = "api") -> None:
    """Adds a line to the audit log: who, what, when. `subject` is an id, never words."""
    c = schema.audit.c
    last = connection.execute(select(c.seq, c.digest).order_by(c.seq.desc()).limit(1)).one_or_none()
    seq, previous = (1, bytes(32)) if last is None else (last[0] + 1, last[1])
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
    """The first line of the audit log that does not follow from the one before; None when the chain holds."""
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
