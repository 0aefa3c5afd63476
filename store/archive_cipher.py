"""Encryption of an archive under a passphrase: AES-256-GCM in numbered chunks.

The STREAM construction (Hoang, Reyhanitabar, Rogaway, Vizár: "Online Authenticated-Encryption and
its Nonce-Reuse Misuse-Resistance", CRYPTO 2015): the nonce of a chunk holds its number and whether it is the
last, so that chunks can't be left out, put elsewhere, repeated or cut off. docs/formats/archive.md has every
byte.
"""

import hashlib
import hmac
import secrets
import struct
from dataclasses import dataclass
from typing import Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from mnemos.errors import ArchiveError, UsageError
from mnemos.store.crypto import KEY_BYTES, TAG_BYTES, lookup_tag, subkey

MAGIC = b"MNARCHIV"
VERSION = 1
CHUNK_BYTES = 64 << 10
HEADER_BYTES = 56
_HEAD = struct.Struct("<8sBBBBB7s16sI")  # 40 bytes; the key check follows
_CHECK_BYTES = 16
_KDF_SCRYPT = 1
_LOG_N, _R, _P = 16, 8, 1  # 64 MiB of memory, about 0.2 s
_MAX_SCRYPT_BYTES = 256 << 20  # that an archive may ask for
_MAX_CHUNKS = 1 << 32


class Source(Protocol):
    def read(self, size: int = ..., /) -> bytes: ...


class Sink(Protocol):
    def write(self, data: bytes, /) -> object: ...


@dataclass(frozen=True, slots=True)
class _Header:
    raw: bytes
    prefix: bytes
    chunk_bytes: int
    key: bytes

    def nonce(self, number: int, is_last: bool) -> bytes:
        return self.prefix + struct.pack(">IB", number, is_last)


class SealingWriter:
    """Encrypts what is written to it. Nothing is whole until `close`."""

    def __init__(self, out: Sink, passphrase: str, *, chunk_bytes: int = CHUNK_BYTES) -> None:
        if not passphrase:
            raise UsageError("the archive's passphrase is empty; give one of several words")
        prefix, salt = secrets.token_bytes(7), secrets.token_bytes(16)
        head = _HEAD.pack(MAGIC, VERSION, _KDF_SCRYPT, _LOG_N, _R, _P, prefix, salt, chunk_bytes)
        key, check = _keys(passphrase, head)
        self._header = _Header(head + check, prefix, chunk_bytes, key)
        self._cipher = AESGCM(key)
        self._out = out
        self._held = bytearray()
        self._number = 0
        out.write(self._header.raw)

    def write(self, data: bytes) -> int:
        self._held += data
        # A full chunk waits for a byte behind it: it may be the last one.
        while len(self._held) > self._header.chunk_bytes:
            self._seal(is_last=False)
        return len(data)

    def flush(self) -> None:
        """Chunks are of a fixed size: nothing is sent early."""

    def close(self) -> None:
        self._seal(is_last=True)

    def _seal(self, *, is_last: bool) -> None:
        if self._number >= _MAX_CHUNKS:
            raise UsageError("the archive is too large for one file; export it in several")
        size = self._header.chunk_bytes
        chunk = bytes(self._held[:size])
        del self._held[:size]
        nonce = self._header.nonce(self._number, is_last)
        self._out.write(self._cipher.encrypt(nonce, chunk, self._header.raw))
        self._number += 1


class OpeningReader:
    """Decrypts an archive as it is read. ArchiveError for anything that is not exactly what was written."""

    def __init__(self, source: Source, passphrase: str) -> None:
        self._source = source
        self._header = _read_header(source, passphrase)
        self._cipher = AESGCM(self._header.key)
        self._number = 0
        self._ahead = _exactly(source, self._header.chunk_bytes + TAG_BYTES + 1)
        self._plain = b""
        self._is_done = False

    def read(self, size: int = -1) -> bytes:
        """Up to `size` bytes; none at the end."""
        while not self._plain and not self._is_done:
            self._open()
        size = len(self._plain) if size < 0 else size
        given, self._plain = self._plain[:size], self._plain[size:]
        return given

    def _open(self) -> None:
        whole = self._header.chunk_bytes + TAG_BYTES
        sealed, rest = self._ahead[:whole], self._ahead[whole:]
        is_last = not rest
        nonce = self._header.nonce(self._number, is_last)
        try:
            self._plain = self._cipher.decrypt(nonce, sealed, self._header.raw)
        except (InvalidTag, ValueError):
            what = "cut off or damaged" if is_last else "damaged"
            raise ArchiveError(
                f"the archive is {what} in its encrypted chunk {self._number}. Take another copy of it"
            ) from None
        self._number += 1
        self._is_done = is_last
        if not is_last:
            self._ahead = rest + _exactly(self._source, whole)


def _read_header(source: Source, passphrase: str) -> _Header:
    raw = _exactly(source, HEADER_BYTES)
    if len(raw) < HEADER_BYTES or not raw.startswith(MAGIC):
        raise ArchiveError("the archive is cut off within its first bytes. Take another copy of it")
    _, version, kdf, log_n, r, p, prefix, _salt, chunk_bytes = _HEAD.unpack_from(raw)
    if version > VERSION:
        raise ArchiveError(
            f"the archive's encryption is of version {version}; this Mnemos reads versions up to {VERSION}. "
            "Install a newer Mnemos to import it"
        )
    sound = version == VERSION and kdf == _KDF_SCRYPT and 10 <= log_n <= 24 and 1 <= r <= 32 and 1 <= p <= 4
    if not sound or (128 * r << log_n) > _MAX_SCRYPT_BYTES or not 16 <= chunk_bytes <= 1 << 24:
        raise ArchiveError("the archive's first bytes are damaged. Take another copy of it")
    key, check = _keys(passphrase, raw[: _HEAD.size])
    if not hmac.compare_digest(check, raw[_HEAD.size :]):
        raise ArchiveError(
            "the passphrase is not the archive's, or its first bytes are damaged; nothing was imported"
        )
    return _Header(raw, prefix, chunk_bytes, key)


def _keys(passphrase: str, head: bytes) -> tuple[bytes, bytes]:
    """The key of the chunks, and 16 bytes that tell a wrong passphrase from damage."""
    _, _, _, log_n, r, p, _, salt, _ = _HEAD.unpack(head)
    master = hashlib.scrypt(
        passphrase.encode("utf-8", "surrogatepass"),
        salt=salt,
        n=1 << log_n,
        r=r,
        p=p,
        maxmem=_MAX_SCRYPT_BYTES + (64 << 20),
        dklen=KEY_BYTES,
    )
    check = lookup_tag(subkey(master, "archive/check"), head)[:_CHECK_BYTES]
    return subkey(master, "archive/chunks"), check


def _exactly(source: Source, size: int) -> bytes:
    """`size` bytes, or fewer where the source ends."""
    parts: list[bytes] = []
    while size > 0:
        part = source.read(size)
        if not part:
            break
        parts.append(part)
        size -= len(part)
    return b"".join(parts)
