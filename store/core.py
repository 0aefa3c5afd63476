"""The open bank: its files, keys and lock, and the namespaces that are in use. The facade is `Store`."""

import os
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy.exc import DBAPIError

from mnemos.errors import BankKeyError, BankReadOnlyError, BankUnreadableError, NotFoundError
from mnemos.store import catalog, lookups, namespace_schema
from mnemos.store.crypto import Box, InvalidTag, PlainBox, lookup_tag, new_key, subkey
from mnemos.store.database import Database
from mnemos.store.disk import fsync_dir, storage_errors, zero_and_unlink
from mnemos.store.ids import check_namespace, new_id
from mnemos.store.keypages import KeyPages
from mnemos.store.keys import KeyProvider
from mnemos.store.lock import WriterLock
from mnemos.store.migrations import pending, upgrade, version
from mnemos.store.segments import Segments

_OPEN_NAMESPACES = 64
NAME = b"mnemos/namespace/name"
NAMESPACE_KEY = b"mnemos/namespace/key"


class Namespace:
    """One namespace of an open bank: its database, its data keys, its keyed hash."""

    def __init__(self, core: "Core", row: catalog.NamespaceRow, name: str, key: bytes) -> None:
        self.id = row.id
        self.name = name
        self.read_only = core.read_only
        self.committed = row.batch  # the last write that the catalog knows of: later rows don't count
        self._content_key = subkey(key, "content")
        self._database_key = subkey(key, "database") if core.encrypted else None
        self.database = self.database_at(core.namespace_path(row.id))
        self.keys: KeyPages | None = None
        if core.encrypted:
            self.keys = KeyPages(core.key_path(row.id), row.id, subkey(key, "pages"), core.read_only)

    def database_at(self, path: Path) -> Database:
        """A database of this namespace's words, under its key."""
        found = weakref.ref(self)  # the database must not keep alive what closes it

        def committed() -> int:
            namespace = found()
            return 0 if namespace is None else namespace.committed

        return Database(path, key=self._database_key, read_only=self.read_only, committed=committed)

    def close_when_let_go(self) -> None:
        """Closes the files once no thread uses this namespace any more."""
        weakref.finalize(self, _close, self.database, self.keys)

    def content_tag(self, content_key: bytes) -> bytes:
        return lookup_tag(self._content_key, content_key)

    def close(self) -> None:
        _close(self.database, self.keys)


def _close(database: Database, keys: KeyPages | None) -> None:
    database.close()
    if keys is not None:
        keys.close()


class Core:
    """What every operation of the store works on. Made by `opening.open_core`."""

    def __init__(
        self,
        path: Path,
        database: Database,
        lock: WriterLock,
        *,
        bank_id: str,
        encrypted: bool,
        read_only: bool,
    ) -> None:
        self.path = path
        self.catalog = database
        self.lock = lock
        self.bank_id = bank_id
        self.encrypted = encrypted
        self.read_only = read_only
        self.key_location = "none (not encrypted)"
        self.provider: KeyProvider | None = None  # of the master key, bound to this bank
        self.check = b""  # sealed under the master key that is in use here
        self.relock: Callable[[], None] | None = None  # loads the master key again
        self.segments = Segments(path / "segments", bank_id, read_only)
        self.segment_bytes: int | None = None  # the roll-over size, where it is not the usual one
        self.on_open: Callable[[Namespace], None] | None = (
            None  # puts a namespace in order when it is first used
        )
        self.is_closed = False
        self._open_namespaces: dict[str, Namespace] = {}
        self._found: set[str] = set()  # ids of namespaces that were looked up
        self._lock = threading.RLock()
        self.use_master(bytes(32))

    def use_master(self, master: bytes) -> None:
        """Derives the keys that hang on the master key itself."""
        self.master_box, self.name_box = self.boxes_of(master)
        self._lookup_key = subkey(master, "lookup")

    def boxes_of(self, master: bytes) -> tuple[Box, Box]:
        """The box of keys and the box of names under a master key."""
        if not self.encrypted:
            return PlainBox(), PlainBox()
        return Box(subkey(master, "wrap")), Box(subkey(master, "names"))

    def keep_up(self) -> bool:
        """Loads the master key again when another process rekeyed the bank; whether it did.

        Raises BankKeyError when the provider doesn't have the new key.
        """
        if self.relock is None:
            return False
        if lookups.meta(self.catalog, "check") == self.check:
            return False
        try:
            self.relock()
        except BankKeyError:
            raise BankKeyError(
                f"The bank at {self.path} was given another key by another process. Open it again with "
                "that key."
            ) from None
        return True

    def namespace_path(self, namespace_id: str) -> Path:
        return self.path / "namespaces" / f"{namespace_id}.db"

    def key_path(self, namespace_id: str) -> Path:
        return self.path / "keys" / f"{namespace_id}.keys"

    def index_path(self, namespace_id: str) -> Path:
        """The folder of a namespace's vectors; there is none while it has no vectors."""
        return self.path / "index" / namespace_id

    def name_tag(self, name: str) -> bytes:
        return lookup_tag(self._lookup_key, name.encode("utf-8"))

    # -- access

    @contextmanager
    def reading(self) -> Iterator[None]:
        self._check_open()
        with storage_errors(self.path):
            try:
                yield
            except (BankUnreadableError, DBAPIError):
                if self._has_lost_namespaces():
                    raise NotFoundError(
                        "A namespace was erased by another process while it was being read. Ask again."
                    ) from None
                raise

    def _has_lost_namespaces(self) -> bool:
        """Whether namespaces that were live when they were looked up are no longer; lets go of those."""
        with self._lock:
            found = set(self._found)
        with self.catalog.read() as connection:
            lost = found - {row.id for row in catalog.live_namespaces(connection)}
        for namespace_id in lost:
            self.release(namespace_id)
        with self._lock:
            self._found -= lost
        return bool(lost)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Holds the writer's lock."""
        self._check_open()
        if self.read_only:
            raise BankReadOnlyError(
                f"The bank at {self.path} was opened read-only; open it for writing to change it."
            )
        with storage_errors(self.path), self.lock:
            self.keep_up()
            yield

    def _check_open(self) -> None:
        if self.is_closed:
            raise BankUnreadableError(f"The bank at {self.path} was closed; open it again.")

    # -- namespaces

    def namespace_names(self) -> list[str]:
        with self.catalog.read() as connection:
            rows = catalog.live_namespaces(connection)
        try:
            return sorted(self._name(row) for row in rows)
        except BankKeyError:
            if not self.keep_up():
                raise
            return self.namespace_names()

    def live(self) -> Iterator[Namespace]:
        """Every namespace, each opened when its turn comes."""
        with self.catalog.read() as connection:
            rows = catalog.live_namespaces(connection)
        for row in rows:
            yield self._opened(row)

    def find(self, name: str) -> Namespace | None:
        """The namespace of that name, if the bank has it."""
        check_namespace(name)
        row = lookups.find_namespace(self.catalog, self.name_tag(name))
        if row is None and self.keep_up():
            return self.find(name)
        return None if row is None else self._opened(row)

    def get(self, name: str) -> Namespace:
        """The namespace of that name, or NotFoundError."""
        namespace = self.find(name)
        if namespace is None:
            raise NotFoundError(
                f"The bank has no namespace {name!r}; `mnemos memory stats` lists those it has."
            )
        return namespace

    def by_id(self, namespace_id: str) -> Namespace | None:
        row = lookups.namespace_by_id(self.catalog, namespace_id)
        if row is None or row.state != "live":
            return None
        try:
            return self._opened(row)
        except BankKeyError:
            if not self.keep_up():
                raise
            return self.by_id(namespace_id)

    def ensure(self, name: str) -> Namespace:
        """The namespace of that name, made when the bank has none. The caller holds the writer's lock."""
        found = self.find(name)
        if found is not None:
            return found
        row = catalog.NamespaceRow(new_id(), b"", b"", 0, "live")
        key = new_key()
        namespace = Namespace(self, row, name, key)
        try:
            upgrade(namespace.database, namespace_schema.MIGRATIONS)
            fsync_dir(namespace.database.path.parent)
            with self.catalog.write() as connection:
                catalog.add_namespace(
                    connection,
                    row.id,
                    self.name_tag(name),
                    self.name_box.seal(name.encode("utf-8"), NAME + row.id.encode("ascii")),
                    self.master_box.seal(key, NAMESPACE_KEY + row.id.encode("ascii")),
                )
        except BaseException:
            namespace.close()
            self.remove_database(row.id)
            raise
        with self._lock:
            self._open_namespaces[row.id] = namespace
        return namespace

    def remove_database(self, namespace_id: str) -> None:
        """Zeroes and removes a namespace's database with its side files."""
        path = self.namespace_path(namespace_id)
        path.with_name(path.name + "-shm").unlink(missing_ok=True)
        for name in (path.name + "-wal", path.name):
            zero_and_unlink(path.with_name(name))
        fsync_dir(path.parent)

    def index_files(self, namespace_id: str) -> list[Path]:
        """Of a namespace's vectors. Folders are other programs': file servers keep some in every folder."""
        folder = self.index_path(namespace_id)
        return [folder / name for name in self.index_names(namespace_id)]

    def index_names(self, namespace_id: str) -> list[str]:
        """The names of `index_files`: of a large namespace's hundreds, each erase asks for them twice."""
        try:
            with os.scandir(self.index_path(namespace_id)) as found:
                return sorted(entry.name for entry in found if not entry.is_dir())
        except (FileNotFoundError, NotADirectoryError):
            return []

    def remove_index(self, namespace_id: str) -> None:
        """Zeroes and removes a namespace's folder of vectors; it stays where another program has folders of
        its own in it.
        """
        folder = self.index_path(namespace_id)
        if folder.is_dir():
            for path in self.index_files(namespace_id):
                zero_and_unlink(path)
            if not any(folder.iterdir()):
                folder.rmdir()
            fsync_dir(folder.parent)

    def remove_keys(self, namespace_id: str) -> None:
        """Zeroes and removes a namespace's file of data keys."""
        self.release(namespace_id)
        zero_and_unlink(self.key_path(namespace_id))
        fsync_dir(self.key_path(namespace_id).parent)

    def release(self, namespace_id: str) -> None:
        """Closes a namespace's files."""
        with self._lock:
            self._found.discard(namespace_id)
            namespace = self._open_namespaces.pop(namespace_id, None)
        if namespace is not None:
            namespace.close()

    def _name(self, row: catalog.NamespaceRow) -> str:
        try:
            return self.name_box.open(row.name_box, NAME + row.id.encode("ascii")).decode("utf-8")
        except InvalidTag:
            raise BankKeyError(
                f"A namespace's name does not open under the key from {self.key_location}."
            ) from None

    def _opened(self, row: catalog.NamespaceRow) -> Namespace:
        with self._lock:
            self._found.add(row.id)
            held = self._open_namespaces.get(row.id)
            if held is not None:
                held.committed = max(held.committed, row.batch)
                return held
            if not self.namespace_path(row.id).exists():
                raise BankUnreadableError(
                    f"{self.namespace_path(row.id)} is missing. Restore it from a copy, or run `mnemos bank "
                    "verify --repair`."
                )
            namespace = self.made(row)
            try:
                self._bring_up(namespace)
            except BaseException:
                namespace.close()
                raise
            if len(self._open_namespaces) >= _OPEN_NAMESPACES:
                self._open_namespaces.pop(next(iter(self._open_namespaces))).close_when_let_go()
            self._open_namespaces[row.id] = namespace
            return namespace

    def made(self, row: catalog.NamespaceRow) -> Namespace:
        """The namespace of a catalog row, whatever its files are like. Raises BankKeyError."""
        try:
            key = self.master_box.open(row.key_box, NAMESPACE_KEY + row.id.encode("ascii"))
        except InvalidTag:
            raise BankKeyError(
                f"The key of namespace {row.id} does not open under the key from {self.key_location}."
            ) from None
        return Namespace(self, row, self._name(row), key)

    def _bring_up(self, namespace: Namespace) -> None:
        if not version(namespace.database):
            raise BankUnreadableError(
                f"{namespace.database.path} is empty. Restore it from a copy, or run `mnemos bank verify "
                "--repair`."
            )
        if pending(namespace.database, namespace_schema.MIGRATIONS):
            if self.read_only:
                raise BankReadOnlyError(
                    f"The bank at {self.path} is of an older format; open it once for writing to upgrade it."
                )
            with self.lock:
                upgrade(namespace.database, namespace_schema.MIGRATIONS)
        if not self.read_only and self.on_open is not None:
            self.on_open(namespace)

    def forget_keys(self) -> None:
        """Drops every data key held in this process's memory."""
        with self._lock:
            for namespace in self._open_namespaces.values():
                if namespace.keys is not None:
                    namespace.keys.forget()

    def close(self) -> None:
        if self.is_closed:
            return
        self.is_closed = True
        with self._lock:
            for namespace in self._open_namespaces.values():
                namespace.close()
            self._open_namespaces.clear()
        self.catalog.close()
        self.segments.close()
