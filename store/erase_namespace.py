"""The steps of an erase of a whole namespace: its key goes, and with it all that hangs on it."""

from sqlalchemy import update

from mnemos.store import catalog, catalog_schema
from mnemos.store.core import Core
from mnemos.store.intents import Intent, note_places, raise_epoch


def bury(core: Core, intent: Intent) -> None:
    """Name and key go in one transaction: from here on nothing of the namespace can be read."""
    core.release(intent.namespace_id)
    table = catalog_schema.namespaces
    with core.catalog.write() as connection:
        connection.execute(
            update(table)
            .where(table.c.id == intent.namespace_id)
            .values(state="erased", name_tag=None, name_box=None, key_box=None)
        )
    raise_epoch(core, intent)


def destroy_keys(core: Core, intent: Intent) -> None:
    core.catalog.truncate_wal()
    core.remove_keys(intent.namespace_id)


def remove_database(core: Core, intent: Intent) -> None:
    core.remove_database(intent.namespace_id)
    core.remove_index(intent.namespace_id)
    if "ranges" not in intent.body:
        with core.catalog.write() as connection:
            note_places(connection, intent)
            intent.save(connection)


def remove_rows(core: Core, intent: Intent) -> None:
    with core.catalog.write() as connection:
        catalog.remove_namespace(connection, intent.namespace_id)
