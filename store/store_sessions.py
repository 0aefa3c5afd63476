"""What the store does about sessions."""

import builtins

from mnemos.errors import NotFoundError, UsageError
from mnemos.store import branches, reading, words
from mnemos.store.core import Core
from mnemos.store.ids import new_id
from mnemos.store.records import MemoryRecord, SessionRecord
from mnemos.store.words import Filter


class SessionStore:
    """A part of `Store`, which has the bank open."""

    _core: Core

    def create_session(self, namespace: str, title: str | None = None) -> SessionRecord:
        with self._core.writing():
            found = self._core.ensure(namespace)
            session_id = new_id()
            with found.database.write() as connection:
                words.add_session(connection, session_id, title)
                return words.sessions(connection, namespace, session_id)[0]

    def sessions(self, namespace: str) -> builtins.list[SessionRecord]:
        """Latest change first."""
        with self._core.reading():
            found = self._core.find(namespace)
            if found is None:
                return []
            with found.database.read() as connection:
                return words.sessions(connection, namespace)

    def get_session(self, namespace: str, session_id: str) -> SessionRecord:
        """By id or prefix. NotFoundError, AmbiguousIdError."""
        with self._core.reading():
            found = self._core.get(namespace)
            with found.database.read() as connection:
                full_id = words.full_session_id(connection, session_id)
                return words.sessions(connection, namespace, full_id)[0]

    def rename_session(self, namespace: str, session_id: str, title: str | None) -> SessionRecord:
        with self._core.writing():
            found = self._core.get(namespace)
            with found.database.write() as connection:
                full_id = words.full_session_id(connection, session_id)
                words.rename_session(connection, full_id, title)
                return words.sessions(connection, namespace, full_id)[0]

    def history(
        self, namespace: str, session_id: str, *, limit: int | None = None, include_hidden: bool = False
    ) -> builtins.list[MemoryRecord]:
        """The latest exchanges of a session, of what it branched from too, oldest first. `session_id` is a
        whole id; one that the namespace lacks has none.
        """
        with self._core.reading():
            found = self._core.find(namespace)
            if found is None:
                return []
            rows = branches.history(found.database, session_id, limit, include_hidden=include_hidden)
            return reading.records(self._core, found, rows)

    def branch_session(
        self,
        namespace: str,
        session_id: str,
        *,
        at: str | None = None,
        before: str | None = None,
        title: str | None = None,
    ) -> SessionRecord:
        """A new session whose past is the session's own up to the exchange `at`, up to the one that stands
        before `before`, or up to now.

        NotFoundError, AmbiguousIdError; UsageError for an exchange that isn't of the session.
        """
        with self._core.writing():
            found = self._core.get(namespace)
            with found.database.write() as connection:
                parent = words.full_session_id(connection, session_id)
                past = branches.history(found.database, parent, None, include_hidden=True)
                named = at if before is None else before
                if named is not None:
                    (row,) = words.select_rows(connection, Filter(ids=[words.full_id(connection, named)]))
                    if row.ordinal not in {each.ordinal for each in past}:
                        raise UsageError(
                            f"memory {row.id} is no exchange of session {parent}; a branch begins at one of "
                            "its own. `mnemos memory list --session` shows them."
                        )
                    ordinal = row.ordinal
                    if before is not None:
                        ordinal = max((each.ordinal for each in past if each.ordinal < ordinal), default=0)
                else:
                    ordinal = past[-1].ordinal if past else 0
                new = new_id()
                branches.add_branch(connection, new, title, parent, ordinal)
                return words.sessions(connection, namespace, new)[0]

    def close_session(self, namespace: str, session_id: str) -> None:
        """Takes a session off the list and lets its memories be. NotFoundError, AmbiguousIdError."""
        with self._core.writing():
            found = self._core.get(namespace)
            with found.database.write() as connection:
                branches.close_session(connection, words.full_session_id(connection, session_id))

    def remove_session(self, namespace: str, session_id: str) -> None:
        """Takes a session that holds no memories out; nothing where there is none. UsageError when it holds
        some, which are for an erase to take.
        """
        with self._core.writing():
            found = self._core.get(namespace)
            with found.database.write() as connection:
                try:
                    full_id = words.full_session_id(connection, session_id)
                except NotFoundError:
                    return  # it went with its last memory
                if words.count_rows(connection, Filter(session_id=full_id)):
                    raise UsageError(f"session {full_id} holds memories; forget those first")
                branches.remove_sessions(connection, [full_id])
