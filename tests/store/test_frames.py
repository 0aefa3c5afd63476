from typing import Any

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from mnemos.store.crypto import new_key
from mnemos.store.frames import HEADER_BYTES, FrameError, decode_frame, decode_header, encode_frame
from mnemos.store.ids import new_id

KINDS = st.sampled_from(["text", "kv", "route", "prefix"])
KEYS = st.one_of(st.none(), st.binary(min_size=32, max_size=32))


@given(kind=KINDS, payload=st.binary(max_size=3000), key=KEYS, repeat=st.integers(1, 40))
def test_round_trip(kind: Any, payload: bytes, key: bytes | None, repeat: int) -> None:
    owner = new_id()
    frame, digest = encode_frame(kind, owner, payload * repeat, key)
    assert decode_frame(frame, kind, owner, key) == payload * repeat
    header = decode_header(frame)
    assert (header.kind, header.owner, header.frame_length) == (kind, owner, len(frame))
    assert header.checksum == digest[:16]


@given(payload=st.binary(max_size=400), key=KEYS, data=st.data())
def test_a_changed_byte_is_an_error_and_never_other_data(
    payload: bytes, key: bytes | None, data: st.DataObject
) -> None:
    owner = new_id()
    frame = bytearray(encode_frame("text", owner, payload, key)[0])
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(frame) - 1))
        frame[at] ^= data.draw(st.integers(1, 255))
    original = encode_frame("text", owner, payload, None)[0]
    if bytes(frame) == original:
        return
    try:
        assert decode_frame(bytes(frame), "text", owner, key) == payload
    except FrameError:
        return


@given(payload=st.binary(min_size=1, max_size=400), key=KEYS, data=st.data())
def test_a_cut_or_grown_frame_is_an_error(payload: bytes, key: bytes | None, data: st.DataObject) -> None:
    owner = new_id()
    frame = encode_frame("text", owner, payload, key)[0]
    wrong = frame[: data.draw(st.integers(0, len(frame) - 1))] if data.draw(st.booleans()) else frame + b"\0"
    with pytest.raises(FrameError):
        decode_frame(wrong, "text", owner, key)


@given(rubbish=st.binary(max_size=300))
def test_rubbish_is_an_error(rubbish: bytes) -> None:
    with pytest.raises(FrameError):
        decode_frame(rubbish, "text", new_id(), None)


def test_another_owner_kind_or_key_is_an_error() -> None:
    owner, key = new_id(), new_key()
    frame = encode_frame("text", owner, b"words", key)[0]
    for kind, who, under in (
        ("kv", owner, key),
        ("text", new_id(), key),
        ("text", owner, new_key()),
        ("text", owner, None),
    ):
        with pytest.raises(FrameError):
            decode_frame(frame, kind, who, under)  # type: ignore[arg-type]


def test_a_header_field_is_bound_to_the_ciphertext() -> None:
    """Owner and kind are associated data: a frame re-labelled with good checksums still does not open."""
    import struct
    import zlib

    owner, other, key = new_id(), new_id(), new_key()
    frame = encode_frame("text", owner, b"words", key)[0]
    forged = frame[:8] + encode_frame("text", other, b"", None)[0][8:24] + frame[24:68]
    forged += struct.pack("<I", zlib.crc32(forged)) + frame[HEADER_BYTES:]
    with pytest.raises(FrameError) as caught:
        decode_frame(forged, "text", other, key)
    assert caught.value.kind == "corrupt-frame"


def test_compression_is_used_where_it_saves() -> None:
    noise = b"".join(new_key() for _ in range(40_000))
    assert decode_header(encode_frame("kv", new_id(), noise, None)[0]).codec == 0
    assert decode_header(encode_frame("text", new_id(), b"words " * 100, None)[0]).codec == 1
    assert decode_header(encode_frame("text", new_id(), b"", None)[0]).codec == 0


def test_nonces_do_not_repeat() -> None:
    key, owner = new_key(), new_id()
    assert (
        len({decode_header(encode_frame("text", owner, b"same", key)[0]).nonce for _ in range(2000)}) == 2000
    )


def test_a_frame_that_claims_to_unpack_to_more_than_it_says() -> None:
    bomb = zstandard.ZstdCompressor().compress(bytes(50_000_000))
    frame = bytearray(encode_frame("text", new_id(), b"x" * 100, None)[0])
    header = decode_header(bytes(frame))
    assert header.codec == 1
    import hashlib
    import struct
    import zlib

    frame[32:40] = struct.pack("<Q", len(bomb))
    frame[52:68] = hashlib.sha256(bomb).digest()[:16]
    frame[68:72] = struct.pack("<I", zlib.crc32(bytes(frame[:68])))
    with pytest.raises(FrameError):
        decode_frame(bytes(frame[:72]) + bomb, "text", header.owner, None)
