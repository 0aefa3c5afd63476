"""One SQLite or SQLCipher file behind one SQLAlchemy engine, with every transaction spelled out."""

import os
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import sqlcipher3.dbapi2
from sqlalchemy import Connection, create_engine, event, text
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import StaticPool

_BUSY_MS = 5000
_SHARED_PIECE_BYTES = 32 << 10  # of which SQLite's shared memory is made
_SHARED_BYTES = 4 * _SHARED_PIECE_BYTES  # that must be free: one for each of a few databases
_CACHE_KIB = 64 << 10  # at most; a page that is not held has to be decrypted again


class Database:
    """A database of the bank. Thread-safe: one connection, one transaction at a time, none left open.

    With a key the file is SQLCipher's; without one it is plain SQLite.
    """

    def __init__(
        self,
        path: Path,
        *,
        key: bytes | None = None,
        read_only: bool = False,
        committed: Callable[[], int] | None = None,
    ) -> None:
        """`committed` answers the SQL function of that name: the last write that counts."""
        self.path = path
        self.actor = "api"  # who writes here, for the audit log
        self._committed = committed
        self._key = key
        self._read_only = read_only
        self._lock = threading.RLock()
        self._raw: Any = None  # the driver's connection, once there is one
        self._engine = create_engine(
            "sqlite://",
            module=sqlcipher3.dbapi2,
            creator=self._connect,
            poolclass=StaticPool,
            hide_parameters=True,
            skip_autocommit_rollback=False,
        )
        event.listen(self._engine, "begin", _begin)
        event.listen(self._engine, "handle_error", _explain)

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A connection in a read transaction that ends with the block."""
        with self._lock, self._engine.connect() as connection:
            yield connection

    def rows(self, statement: str, values: Sequence[Any] | Mapping[str, Any] = ()) -> list[tuple[Any, ...]]:
        """What one statement reads, in a transaction of its own.

        It goes straight to the driver, in a tenth of the time: for the few that every call begins with.
        """
        with self._lock:
            if self._raw is None:
                self._engine.connect().close()
            return _rows(self._raw, statement, values)

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """A connection in a transaction that is durable when the block ends, and undone when it raises."""
        with (
            self._lock,
            self._engine.connect().execution_options(
                mnemos_write=True, mnemos_actor=self.actor
            ) as connection,
            connection.begin(),
        ):
            yield connection

    def truncate_wal(self, wait_ms: int = 1000) -> bool:
        """Moves everything into the file and cuts the log to nothing. False when a reader is in the way."""
        with self._lock, self._engine.connect() as connection:
            raw = connection.connection.dbapi_connection
            assert raw is not None
            cursor = raw.cursor()
            try:
                cursor.execute(f"PRAGMA busy_timeout = {wait_ms}")
                row = cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
                if row is not None and row[0] != 0:
                    return False
                self._sync_wal()
                return True
            except sqlcipher3.dbapi2.OperationalError as error:
                if "locked" in str(error):
                    return False
                raise
            finally:
                cursor.execute(f"PRAGMA busy_timeout = {_BUSY_MS}")
                cursor.close()

    def rewrite(self) -> None:
        """Writes every page anew. The caller holds the writer's lock.

        Where rows were moved from one page to another, SQLite leaves copies of them in the unused middle of
        the old one, which its secure-delete does not reach when a row is deleted later.
        """
        with self._lock, self._engine.connect() as connection:
            raw = connection.connection.dbapi_connection
            assert raw is not None
            raw.execute("VACUUM").close()

    def _sync_wal(self) -> None:
        """SQLite cuts the log without syncing it: after a power cut its former content could be back."""
        with suppress(FileNotFoundError):
            fd = os.open(self.path.with_name(self.path.name + "-wal"), os.O_RDONLY)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)

    def close(self) -> None:
        with self._lock:
            self._engine.dispose()
            self._raw = None

    def _connect(self) -> Any:
        mode = "rwc"
        if self._read_only:
            mode = "ro" if _can_share_memory(self.path) else self._unshared()
        connection = sqlcipher3.dbapi2.connect(
            f"file:{quote(str(self.path))}?mode={mode}",
            uri=True,
            check_same_thread=False,
            isolation_level=None,
            timeout=_BUSY_MS / 1000,
        )
        try:
            self._prepare(connection)
        except UnicodeDecodeError as error:
            connection.close()
            raise _garbled() from error
        except BaseException:
            connection.close()
            raise
        self._raw = connection
        return connection

    def _unshared(self) -> str:
        """How to read where the shared memory beside a write-ahead log can't be made.

        No other process has the database open then, or there would be one; and without room for it none can
        write, so the file may be taken as it is, and a log indexed in this process's own memory.
        """
        wal = self.path.with_name(self.path.name + "-wal")
        return "ro&vfs=unix-none" if wal.exists() and wal.stat().st_size else "ro&immutable=1"

    def _prepare(self, connection: Any) -> None:
        if self._key is not None:
            connection.execute(f"PRAGMA key = \"x'{self._key.hex()}'\"")
        if not self._read_only:
            connection.execute("PRAGMA journal_mode = WAL")
        elif not _can_share_memory(self.path):
            connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA secure_delete = ON")
        connection.execute("PRAGMA temp_store = MEMORY")
        connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
        connection.execute("PRAGMA trusted_schema = OFF")
        if self._committed is not None:
            connection.create_function("committed", 0, self._committed, deterministic=True)
        connection.create_function("contains", 2, _contains, deterministic=True)


def rows_of(
    connection: Connection, statement: str, values: Sequence[Any] | Mapping[str, Any] = ()
) -> list[tuple[Any, ...]]:
    """What one statement reads within a transaction, straight from the driver: for hundreds of rows."""
    return _rows(connection.connection.dbapi_connection, statement, values)


def _rows(raw: Any, statement: str, values: Sequence[Any] | Mapping[str, Any]) -> list[tuple[Any, ...]]:
    try:
        found: list[tuple[Any, ...]] = raw.execute(statement, values).fetchall()
    except sqlcipher3.dbapi2.Error as error:
        raise _wrapped(error, statement) from error
    except UnicodeDecodeError as error:
        raise _wrapped(_garbled(), statement) from error
    return found


def _garbled() -> Exception:
    """What SQLite says of a damaged file can quote it, in bytes that are no text."""
    error: Exception = sqlcipher3.dbapi2.DatabaseError("database disk image is malformed")
    return error


def _wrapped(error: Exception, statement: str | None) -> Exception:
    wrapped: Exception = DBAPIError.instance(
        statement, None, error, sqlcipher3.dbapi2.Error, hide_parameters=True
    )
    return wrapped


def _explain(context: ExceptionContext) -> None:
    if isinstance(context.original_exception, UnicodeDecodeError):
        raise _wrapped(_garbled(), context.statement) from context.original_exception


def _contains(haystack: str | None, folded: str) -> int:
    """The SQL function `contains`: a case-insensitive substring in any script, which LIKE is not."""
    return int(haystack is not None and folded in haystack.casefold())


def _can_share_memory(path: Path) -> bool:
    """Whether the file of shared memory that reading a write-ahead log needs is there, or can be made."""
    shared = path.with_name(path.name + "-shm")
    if shared.exists() and shared.stat().st_size >= _SHARED_PIECE_BYTES:
        return True
    return os.access(path.parent, os.W_OK) and shutil.disk_usage(path.parent).free >= _SHARED_BYTES


def _begin(connection: Connection) -> None:
    is_write = connection.get_execution_options().get("mnemos_write", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if is_write else "BEGIN")


def opens(database: Database) -> bool:
    """Whether the file is a database that the key opens. Raises DBAPIError when the disk is what hinders."""
    try:
        with database.read() as connection:
            connection.execute(text("SELECT count(*) FROM sqlite_master")).scalar_one()
    except DBAPIError as error:
        said = str(error.orig).lower()
        if any(words in said for words in ("full", "i/o", "unable to open", "locked", "readonly")):
            raise
        return False
    return True
