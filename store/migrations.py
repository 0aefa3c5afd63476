"""Numbered, named, atomic steps from one schema to the next, for the catalog and for the namespace databases.

The number a database stands at is SQLite's own `user_version`, so it changes in the same
transaction as the schema.
"""

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Connection, text

from mnemos.errors import BankVersionError
from mnemos.store.database import Database
from mnemos.store.disk import fsync_dir, zero_and_unlink


@dataclass(frozen=True, slots=True)
class Migration:
    number: int
    name: str
    apply: Callable[[Connection], None]


def version(database: Database) -> int:
    with database.read() as connection:
        return _version(connection)


def pending(database: Database, migrations: Sequence[Migration]) -> list[Migration]:
    """The steps that `upgrade` would take, in order; changes nothing. BankVersionError when newer."""
    at = version(database)
    newest = migrations[-1].number
    if at > newest:
        raise BankVersionError(
            f"{database.path.name} is of format {at}; this Mnemos knows formats up to {newest}. Install a "
            "newer Mnemos to open the bank."
        )
    return [migration for migration in migrations if migration.number > at]


def upgrade(database: Database, migrations: Sequence[Migration]) -> list[str]:
    """Takes every pending step, all or none. An existing database is copied, until that has succeeded."""
    todo = pending(database, migrations)
    if not todo:
        return []
    copy = _keep_copy(database) if version(database) else None
    with database.write() as connection:
        at = _version(connection)
        for migration in todo:
            if migration.number > at:
                migration.apply(connection)
                connection.execute(text(f"PRAGMA user_version = {migration.number:d}"))
    if copy is not None:
        zero_and_unlink(copy)
    return [migration.name for migration in todo]


def _version(connection: Connection) -> int:
    return int(connection.execute(text("PRAGMA user_version")).scalar_one())


def _keep_copy(database: Database) -> Path:
    """The file as it lies on the disk: encrypted where the database is."""
    database.truncate_wal()
    copy = database.path.with_name(f"{database.path.name}.before-upgrade")
    shutil.copyfile(database.path, copy)
    copy.chmod(0o600)
    fd = os.open(copy, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
    fsync_dir(copy.parent)
    return copy


def run_script(connection: Connection, script: str) -> None:
    """Statements apart by blank lines, each run by itself so that the transaction stays ours."""
    for statement in script.split("\n\n"):
        if statement.strip():
            connection.exec_driver_sql(statement)
