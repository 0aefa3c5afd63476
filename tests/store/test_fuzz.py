"""Mutated bytes anywhere in a bank give an error of Mnemos or the right data; never a crash or other data."""

import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mnemos.errors import BankKeyError, MnemosError
from mnemos.store.frames import FrameError, decode_frame, encode_frame
from mnemos.store.ids import new_id
from mnemos.store.keypages import REGION_BYTES, KeyPages
from mnemos.store.keys import KeyFile
from mnemos.store.records import FrameKind
from mnemos.store.store import Store

OWNER = new_id()
PAYLOAD = b"My sister Clara works as a nurse. " * 5
KEY = b"k" * 32


@dataclass(frozen=True)
class Mutation:
    """Bytes overwritten at a place, and perhaps the end cut off or something put in."""

    at: float  # 0 to 1 of the length
    data: bytes
    how: str

    def of(self, good: bytes) -> bytes:
        at = int(self.at * len(good))
        if self.how == "cut":
            return good[:at]
        if self.how == "insert":
            return good[:at] + self.data + good[at:]
        if self.how == "remove":
            return good[:at] + good[at + len(self.data) :]
        return (good[:at] + self.data + good[at + len(self.data) :])[: len(good)]


mutations = st.builds(
    Mutation,
    st.floats(0, 1, exclude_max=True),
    st.binary(min_size=1, max_size=24),
    st.sampled_from(["write", "write", "write", "cut", "insert", "remove"]),
)


@pytest.mark.parametrize("key", [KEY, None], ids=["encrypted", "plain"])
@pytest.mark.parametrize("kind", ["text", "kv"])
def test_a_mutated_frame_is_an_error_or_the_same_bytes(kind: FrameKind, key: bytes | None) -> None:
    good, _ = encode_frame(kind, OWNER, PAYLOAD if kind == "text" else bytes(range(256)) * 4, key)
    payload = decode_frame(good, kind, OWNER, key)

    @settings(deadline=None, max_examples=300)
    @given(mutations)
    def check(mutation: Mutation) -> None:
        try:
            assert decode_frame(mutation.of(good), kind, OWNER, key) == payload
        except FrameError as error:
            assert "Clara" not in str(error)

    check()


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=200), st.sampled_from([KEY, None]))
def test_any_bytes_are_no_frame(data: bytes, key: bytes | None) -> None:
    with pytest.raises(FrameError):
        decode_frame(data, "text", OWNER, key)


def test_a_mutated_key_page_is_an_error_or_the_same_keys(fast_disk: Path) -> None:
    pages = KeyPages(fast_disk / "a.keys", OWNER, KEY, read_only=False)
    slots, rows = pages.allocate([], 40)
    more, changed = pages.allocate(rows, 9)
    row = changed[-1]
    keys = [slot.key for slot in (*slots, *more)]
    pages.close()
    good = (fast_disk / "a.keys").read_bytes()
    assert len(good) <= REGION_BYTES

    @settings(deadline=None, max_examples=300)
    @given(mutations)
    def check(mutation: Mutation) -> None:
        (fast_disk / "a.keys").write_bytes(mutation.of(good))
        held = KeyPages(fast_disk / "a.keys", OWNER, KEY, read_only=True)
        try:
            assert [held.key(row, number) for number in range(len(keys))] == keys
        except MnemosError:
            pass
        finally:
            held.close()

    check()


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=300))
def test_any_bytes_are_a_key_file_or_an_error(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = KeyFile(Path(folder) / "a.key")
        file.path.write_bytes(data)
        file.path.chmod(0o600)
        try:
            assert len(file.load()) == 32
        except BankKeyError as error:
            assert "backup" in str(error)


@pytest.fixture(params=[True, False], ids=["encrypted", "plain"])
def pristine(fast_disk: Path, fill: Any, request: pytest.FixtureRequest) -> Iterator[Any]:
    with Store.open(fast_disk / "pristine", encrypted=request.param) as store:
        family = fill(store)
        store.reclaim()
    yield fast_disk / "pristine", fast_disk / "bank", family


@pytest.mark.parametrize("part", ["segments", "keys", "namespaces"])
def test_a_bank_with_mutated_files_reads_right_or_says_why_and_is_mended(pristine: Any, part: str) -> None:
    source, bank, family = pristine
    files = sorted((source / part).iterdir())
    if not files:
        return  # a bank without encryption has no keys
    texts = {family.fact: "My sister Clara works as a nurse.", family.other: "The boat is painted green."}

    @settings(deadline=None, max_examples=12)
    @given(mutations)
    @example(Mutation(0.02734375, b"\x80", "write"))  # SQLite quotes it in what it says of the schema
    def check(mutation: Mutation) -> None:
        shutil.rmtree(bank, ignore_errors=True)
        shutil.copytree(source, bank)
        target = bank / part / files[0].name
        good = target.read_bytes()
        target.write_bytes(mutation.of(good))
        is_checked = part != "namespaces" or ((bank / "keys").exists() and any((bank / "keys").iterdir()))
        with Store.open(bank) as store:
            for memory_id, words in texts.items():
                try:
                    assert not is_checked or store.get("alice", memory_id).text == words
                    assert store.get_kv("alice", memory_id) == b"kv" * 3000
                    assert store.get_route("alice", memory_id) == b"route" * 50
                except MnemosError as error:
                    assert "Clara" not in str(error) and "boat" not in str(error)
            found = store.verify(deep=True)
            report = store.repair()
            assert report.after.ok, (mutation, found.problems, report.after.problems)
            assert not report.quarantined
            assert {i: store.get("alice", i).text for i in texts} == texts

    check()
