"""The few cryptographic moves of the bank, all from the `cryptography` library.

One key, one purpose: each is derived from (HKDF-SHA256) or wrapped by (AES-256-GCM) the one above it.
"""

import hashlib
import hmac
import secrets

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

KEY_BYTES = 32
NONCE_BYTES = 12
TAG_BYTES = 16

__all__ = [
    "KEY_BYTES",
    "NONCE_BYTES",
    "TAG_BYTES",
    "Box",
    "InvalidTag",
    "PlainBox",
    "lookup_tag",
    "new_key",
    "subkey",
]


def new_key() -> bytes:
    return secrets.token_bytes(KEY_BYTES)


def subkey(key: bytes, purpose: str) -> bytes:
    """A 32-byte key for one purpose (RFC 5869)."""
    return HKDF(
        algorithm=SHA256(), length=KEY_BYTES, salt=None, info=b"mnemos/" + purpose.encode("ascii")
    ).derive(key)


def lookup_tag(key: bytes, value: bytes) -> bytes:
    """HMAC-SHA256: equal values give equal tags, and without the key a tag tells nothing."""
    return hmac.new(key, value, hashlib.sha256).digest()


class Box:
    """Seals small values under one key: nonce (12 bytes) + ciphertext + tag (16 bytes)."""

    def __init__(self, key: bytes) -> None:
        self._cipher = AESGCM(key)

    def seal(self, plain: bytes, context: bytes) -> bytes:
        nonce = secrets.token_bytes(NONCE_BYTES)
        return nonce + self._cipher.encrypt(nonce, plain, context)

    def open(self, sealed: bytes, context: bytes) -> bytes:
        """Raises InvalidTag when the key is another one or a bit was changed."""
        if len(sealed) < NONCE_BYTES + TAG_BYTES:
            raise InvalidTag
        return self._cipher.decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], context)


class PlainBox(Box):
    """The box of a bank that is not encrypted: what goes in comes out."""

    def __init__(self) -> None:
        super().__init__(bytes(KEY_BYTES))

    def seal(self, plain: bytes, context: bytes) -> bytes:
        return plain

    def open(self, sealed: bytes, context: bytes) -> bytes:
        return sealed
