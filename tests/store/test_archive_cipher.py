"""Encrypted archives: what was written comes back, and nothing else ever does."""

import io
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mnemos.errors import ArchiveError, UsageError
from mnemos.store import archive_cipher
from mnemos.store.archive_cipher import HEADER_BYTES, OpeningReader, SealingWriter
from mnemos.store.crypto import TAG_BYTES

CHUNK = 64


@pytest.fixture(autouse=True, scope="module")
def quick_scrypt() -> object:
    """A cheap cost for tests; what an archive asks for lies in its header either way."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(archive_cipher, "_LOG_N", 10)
        yield


def seal(plain: bytes, passphrase: str = "open sesame") -> bytes:
    out = io.BytesIO()
    writer = SealingWriter(out, passphrase, chunk_bytes=CHUNK)
    for start in range(0, len(plain), 17):
        writer.write(plain[start : start + 17])
    writer.close()
    return out.getvalue()


def unseal(sealed: bytes, passphrase: str = "open sesame") -> bytes:
    reader, parts = OpeningReader(io.BytesIO(sealed), passphrase), []
    while part := reader.read(50):
        parts.append(part)
    return b"".join(parts)


@pytest.mark.parametrize("size", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK, 1009])
def test_what_was_written_comes_back(size: int) -> None:
    plain = bytes(index % 251 for index in range(size))
    sealed = seal(plain)
    assert unseal(sealed) == plain
    chunks = max(1, -(-size // CHUNK))
    assert len(sealed) == HEADER_BYTES + size + chunks * TAG_BYTES
    assert size < 8 or plain[:8] not in sealed


def test_two_archives_of_the_same_words_share_nothing() -> None:
    first, second = seal(b"w" * 200), seal(b"w" * 200)
    assert first[13:36] != second[13:36] and first[HEADER_BYTES:] != second[HEADER_BYTES:]


def test_another_passphrase_is_told_from_damage() -> None:
    with pytest.raises(ArchiveError, match="passphrase"):
        unseal(seal(b"words"), "another")
    with pytest.raises(UsageError, match="empty"):
        seal(b"words", "")


@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_no_changed_byte_goes_unnoticed(data: st.DataObject) -> None:
    sealed = bytearray(seal(bytes(300)))
    at = data.draw(st.integers(0, len(sealed) - 1))
    sealed[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises(ArchiveError):
        unseal(bytes(sealed))


@given(cut=st.integers(0, HEADER_BYTES + 5 * (CHUNK + TAG_BYTES) - 1))
@settings(max_examples=60, deadline=None)
def test_no_cut_goes_unnoticed(cut: int) -> None:
    with pytest.raises(ArchiveError):
        unseal(seal(bytes(5 * CHUNK))[:cut])


def test_chunks_can_not_be_moved_repeated_left_out_or_added() -> None:
    sealed = seal(bytes(4 * CHUNK))
    head, step = sealed[:HEADER_BYTES], CHUNK + TAG_BYTES
    one, two, three, last = (
        sealed[HEADER_BYTES + n * step : HEADER_BYTES + (n + 1) * step] for n in range(4)
    )
    for chunks in (
        (two, one, three, last),
        (one, one, two, three, last),
        (one, three, last),
        (one, two, three),
        (one, two, three, last, last),
        (one, two, three, last, b"x"),
    ):
        with pytest.raises(ArchiveError):
            unseal(head + b"".join(chunks))
    other = seal(bytes(4 * CHUNK))
    with pytest.raises(ArchiveError):
        unseal(head + other[HEADER_BYTES:])


def test_a_header_may_not_ask_for_all_memory() -> None:
    sealed = bytearray(seal(b"words"))
    sealed[10] = 24
    with pytest.raises(ArchiveError, match="first bytes are damaged"):
        unseal(bytes(sealed))
    sealed = bytearray(seal(b"words"))
    sealed[36:40] = struct.pack("<I", 1 << 31)
    with pytest.raises(ArchiveError, match="first bytes are damaged"):
        unseal(bytes(sealed))


def test_a_newer_encryption_is_refused_by_name() -> None:
    sealed = bytearray(seal(b"words"))
    sealed[8] = 2
    with pytest.raises(ArchiveError, match="version 2"):
        unseal(bytes(sealed))
