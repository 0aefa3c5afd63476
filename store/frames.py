"""The frame: one immutable, checksummed, encrypted piece of one memory.

Little-endian, 72 bytes of header, then the payload:

    offset size
     0      4   magic "MNFR"
     4      1   version (1)
     5      1   kind: 1 text, 2 kv, 3 route, 4 prefix
     6      1   codec: 0 raw, 1 zstd
     7      1   cipher: 0 none, 1 AES-256-GCM
     8     16   memory id (random bytes; the bank's id for a prefix)
    24      8   raw length: bytes before the codec
    32      8   stored length: bytes of the payload as it lies here
    40     12   nonce, random for each frame
    52     16   checksum: first half of the SHA-256 of the payload as it lies here
    68      4   CRC-32 of the 68 bytes before

Bytes 0 to 51 are the associated data of the encryption.
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
VERSION = 1
KIND_CODES: dict[FrameKind, int] = {"text": 1, "kv": 2, "route": 3, "prefix": 4}
KIND_NAMES: dict[int, FrameKind] = {code: kind for kind, code in KIND_CODES.items()}

_HEADER = struct.Struct("<4sBBBB16sQQ12s16sI")
HEADER_BYTES = _HEADER.size
_ASSOCIATED_BYTES = 52
_CHECKED_BYTES = 68
_MIN_SAVING = 0.05
_SAMPLE_BYTES = 64 << 10
_MAX_RAW_BYTES = 1 << 32


class FrameError(ValueError):
    """A frame that is not what it should be. `kind` is the name of the finding."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(detail)
        self.kind = kind


@dataclass(frozen=True, slots=True)
class Header:
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


def encode_frame(kind: FrameKind, owner: str, payload: bytes, key: bytes | None) -> tuple[bytes, bytes]:
    """The frame and the SHA-256 of its payload as stored. `key` None leaves the payload readable."""
    codec, body = _compress(kind, payload)
    cipher = 0 if key is None else 1
    nonce = bytes(NONCE_BYTES) if key is None else secrets.token_bytes(NONCE_BYTES)
    stored_length = len(body) + (0 if key is None else TAG_BYTES)
    fields = (
        MAGIC,
        VERSION,
        KIND_CODES[kind],
        codec,
        cipher,
        id_to_bytes(owner),
        len(payload),
        stored_length,
        nonce,
    )
    if key is not None:
        associated = _HEADER.pack(*fields, bytes(16), 0)[:_ASSOCIATED_BYTES]
        body = AESGCM(key).encrypt(nonce, body, associated)
    digest = hashlib.sha256(body).digest()
    head = _HEADER.pack(*fields, digest[:16], 0)[:_CHECKED_BYTES]
    return head + struct.pack("<I", zlib.crc32(head)) + body, digest


def _compress(kind: FrameKind, payload: bytes) -> tuple[int, bytes]:
    compressor = _zstd.text if kind == "text" else _zstd.fast
    if len(payload) > 4 * _SAMPLE_BYTES:
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
    if version != VERSION or kind not in KIND_NAMES or codec > 1 or cipher > 1 or raw > _MAX_RAW_BYTES:
        raise FrameError("corrupt-frame", "the frame is of a form this version does not know")
    return Header(KIND_NAMES[kind], codec, cipher, id_from_bytes(owner), raw, stored, nonce, checksum)


def check_frame(data: bytes, kind: FrameKind, owner: str) -> Header:
    """Header, kind, owner, length and checksum; needs no key. Raises FrameError."""
    header = decode_header(data)
    if header.kind != kind or header.owner != owner:
        raise FrameError("corrupt-frame", "another frame lies where this one should be")
    if header.frame_length != len(data):
        raise FrameError("missing-frame", "the frame is cut short")
    if hashlib.sha256(memoryview(data)[HEADER_BYTES:]).digest()[:16] != header.checksum:
        raise FrameError("corrupt-frame", "the frame's checksum does not match")
    return header


def decode_frame(data: bytes, kind: FrameKind, owner: str, key: bytes | None) -> bytes:
    """The payload, or FrameError when anything at all is off: never other bytes than were written."""
    header = check_frame(data, kind, owner)
    if (header.cipher == 1) != (key is not None):
        raise FrameError("undecryptable", "the frame and the bank disagree about encryption")
    body = data[HEADER_BYTES:]
    if key is not None:
        try:
            body = AESGCM(key).decrypt(header.nonce, body, data[:_ASSOCIATED_BYTES])
        except InvalidTag:
            raise FrameError("undecryptable", "the frame does not open under its key") from None
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
