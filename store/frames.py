"""The frame: one immutable, checksummed, encrypted piece of one memory.

Little-endian, 72 bytes of header, then the payload:

    offset size
     0      4   magic "MNFR"
     4      1   version: 2, or 1 in banks made before format 3
     5      1   kind: 1 text, 2 kv, 3 route, 4 prefix
     6      1   codec: 0 raw, 1 zstd
     7      1   cipher: 0 none, 1 AES-256-GCM
     8     16   memory id (random bytes; the bank's id for a prefix)
    24      8   raw length: bytes before the codec
    32      8   stored length: bytes of the payload as it lies here
    40     12   nonce, random for each frame
    52     16   checksum: first half of the frame's digest
    68      4   CRC-32 of the 68 bytes before

Bytes 0 to 51 are the associated data of the encryption. The digest is the SHA-256 of the payload as it lies
here; in an encrypted frame of version 2, of bytes 0 to 51 and the payload's last 16, the tag of AES-GCM: the
tag vouches for the whole payload, and hashing that once more would cost as much as encrypting it.
"""

import hashlib
import secrets
import struct
import threading
import zlib
from dataclasses import dataclass

import zstandard
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from mnemos.store.crypto import NONCE_BYTES, TAG_BYTES
from mnemos.store.ids import id_from_bytes, id_to_bytes
from mnemos.store.records import FrameKind

MAGIC = b"MNFR"
VERSION = 2
_VERSIONS = (1, 2)
KIND_CODES: dict[FrameKind, int] = {"text": 1, "kv": 2, "route": 3, "prefix": 4}
KIND_NAMES: dict[int, FrameKind] = {code: kind for kind, code in KIND_CODES.items()}

_HEADER = struct.Struct("<4sBBBB16sQQ12s16sI")
HEADER_BYTES = _HEADER.size
_ASSOCIATED_BYTES = 52
_CHECKED_BYTES = 68
_MIN_SAVING = 0.05
_SAMPLE_BYTES = 16 << 10
_MAX_RAW_BYTES = 1 << 32


class FrameError(ValueError):
    """A frame that is not what it should be. `kind` is the name of the finding."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(detail)
        self.kind = kind


@dataclass(frozen=True, slots=True)
class Header:
    version: int
    kind: FrameKind
    codec: int
    cipher: int
    owner: str
    raw_length: int
    stored_length: int
    nonce: bytes
    checksum: bytes

    @property
    def frame_length(self) -> int:
        return HEADER_BYTES + self.stored_length


class _Compressors(threading.local):
    def __init__(self) -> None:
        self.fast = zstandard.ZstdCompressor(level=1)
        self.text = zstandard.ZstdCompressor(level=3)
        self.expand = zstandard.ZstdDecompressor()


_zstd = _Compressors()


@dataclass(frozen=True, slots=True)
class Frame:
    """A frame that is about to be written, compressed and not yet encrypted."""

    kind: FrameKind
    owner: str
    codec: int
    raw_length: int
    body: bytes
    key: bytes | None

    @property
    def length(self) -> int:
        """Bytes of the whole frame."""
        return HEADER_BYTES + len(self.body) + (0 if self.key is None else TAG_BYTES)

    def write(self, into: memoryview) -> bytes:
        """Writes the frame into exactly `length` bytes; its digest."""
        nonce = bytes(NONCE_BYTES) if self.key is None else secrets.token_bytes(NONCE_BYTES)
        _HEADER.pack_into(
            into,
            0,
            MAGIC,
            VERSION,
            KIND_CODES[self.kind],
            self.codec,
            0 if self.key is None else 1,
            id_to_bytes(self.owner),
            self.raw_length,
            self.length - HEADER_BYTES,
            nonce,
            bytes(16),
            0,
        )
        associated = bytes(into[:_ASSOCIATED_BYTES])
        if self.key is None:
            into[HEADER_BYTES:] = self.body
            digest = hashlib.sha256(self.body).digest()
        else:
            AESGCM(self.key).encrypt_into(nonce, self.body, associated, into[HEADER_BYTES:])
            digest = hashlib.sha256(associated + bytes(into[-TAG_BYTES:])).digest()
        into[_ASSOCIATED_BYTES:_CHECKED_BYTES] = digest[:16]
        into[_CHECKED_BYTES:HEADER_BYTES] = struct.pack("<I", zlib.crc32(into[:_CHECKED_BYTES]))
        return digest


def prepare_frame(kind: FrameKind, owner: str, payload: bytes, key: bytes | None) -> Frame:
    """The frame of a payload. `key` None leaves it readable."""
    codec, body = _compress(kind, payload)
    return Frame(kind, owner, codec, len(payload), body, key)


def encode_frame(kind: FrameKind, owner: str, payload: bytes, key: bytes | None) -> tuple[bytes, bytes]:
    """A frame as bytes, and its digest."""
    frame = prepare_frame(kind, owner, payload, key)
    data = bytearray(frame.length)
    digest = frame.write(memoryview(data))
    return bytes(data), digest


def _compress(kind: FrameKind, payload: bytes) -> tuple[int, bytes]:
    compressor = _zstd.text if kind == "text" else _zstd.fast
    if len(payload) > 16 * _SAMPLE_BYTES:
        sample = payload[:_SAMPLE_BYTES]
        if len(compressor.compress(sample)) > len(sample) * (1 - _MIN_SAVING):
            return 0, payload
    packed = compressor.compress(payload)
    return (1, packed) if len(packed) <= len(payload) * (1 - _MIN_SAVING) else (0, payload)


def decode_header(data: bytes) -> Header:
    """Raises FrameError unless `data` starts with a whole, undamaged header."""
    if len(data) < HEADER_BYTES:
        raise FrameError("missing-frame", "the frame is cut short")
    if data[:HEADER_BYTES] == bytes(HEADER_BYTES):
        raise FrameError("missing-frame", "there are zeros where a frame should be")
    magic, version, kind, codec, cipher, owner, raw, stored, nonce, checksum, crc = _HEADER.unpack_from(data)
    if magic != MAGIC or zlib.crc32(data[:_CHECKED_BYTES]) != crc:
        raise FrameError("corrupt-frame", "the frame's header is damaged")
    is_known = version in _VERSIONS and kind in KIND_NAMES and codec <= 1 and cipher <= 1
    if not is_known or raw > _MAX_RAW_BYTES:
        raise FrameError("corrupt-frame", "the frame is of a form this version does not know")
    return Header(
        version, KIND_NAMES[kind], codec, cipher, id_from_bytes(owner), raw, stored, nonce, checksum
    )


def check_frame(data: bytes, kind: FrameKind, owner: str) -> Header:
    """Header, kind, owner, length and digest; needs no key. Raises FrameError."""
    header = decode_header(data)
    if header.kind != kind or header.owner != owner:
        raise FrameError("corrupt-frame", "another frame lies where this one should be")
    if header.frame_length != len(data):
        raise FrameError("missing-frame", "the frame is cut short")
    if frame_digest(header, data)[:16] != header.checksum:
        raise FrameError("corrupt-frame", "the frame's checksum does not match")
    return header


def frame_digest(header: Header, data: bytes) -> bytes:
    """The digest of a whole frame."""
    view = memoryview(data)
    if header.version == 1 or header.cipher == 0:
        return hashlib.sha256(view[HEADER_BYTES:]).digest()
    return hashlib.sha256(bytes(view[:_ASSOCIATED_BYTES]) + bytes(view[-TAG_BYTES:])).digest()


def decode_frame(data: bytes, kind: FrameKind, owner: str, key: bytes | None) -> bytes:
    """The payload, or FrameError when anything at all is off: never other bytes than were written."""
    return bytes(open_frame(data, kind, owner, key))


def open_frame(
    data: bytes, kind: FrameKind, owner: str, key: bytes | None, *, writable: bool = False
) -> bytes | bytearray:
    """As `decode_frame`. `writable` asks for bytes that can be overwritten, where that takes no copy."""
    header = check_frame(data, kind, owner)
    if (header.cipher == 1) != (key is not None):
        raise FrameError("undecryptable", "the frame and the bank disagree about encryption")
    body: bytes | bytearray = data[HEADER_BYTES:] if key is None else b""
    if key is not None:
        try:
            sealed = memoryview(data)[HEADER_BYTES:]
            if writable and len(sealed) >= TAG_BYTES:
                body = bytearray(len(sealed) - TAG_BYTES)
                AESGCM(key).decrypt_into(header.nonce, sealed, data[:_ASSOCIATED_BYTES], body)
            else:
                body = AESGCM(key).decrypt(header.nonce, sealed, data[:_ASSOCIATED_BYTES])
        except InvalidTag:
            kind_of_damage = "undecryptable" if header.version == 1 else "corrupt-frame"
            raise FrameError(kind_of_damage, "the frame is damaged, or not under its memory's key") from None
    if header.codec == 1:
        try:
            if zstandard.frame_content_size(body) != header.raw_length:
                raise FrameError("corrupt-frame", "the frame's length does not match")
            body = _zstd.expand.decompress(body)
        except zstandard.ZstdError:
            raise FrameError("corrupt-frame", "the frame does not decompress") from None
    if len(body) != header.raw_length:
        raise FrameError("corrupt-frame", "the frame's length does not match")
    return body
