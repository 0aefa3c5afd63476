"""The tables of `namespaces/<id>.db`, where the words are: encrypted as a whole, index included."""

from sqlalchemy import Connection

from mnemos.store.migrations import Migration, run_script

_FIRST = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID

INSERT INTO meta VALUES ('batch', 0)

CREATE TABLE memory (
  ordinal INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, kind TEXT NOT NULL, text TEXT NOT NULL, reply TEXT,
  speaker TEXT, title TEXT, source TEXT, session_id TEXT, created_us INTEGER NOT NULL, expires_us INTEGER,
  tags TEXT NOT NULL, status TEXT NOT NULL, pinned INTEGER NOT NULL DEFAULT 0,
  hidden INTEGER NOT NULL DEFAULT 0, erased INTEGER NOT NULL DEFAULT 0, content_tag BLOB UNIQUE,
  text_bytes INTEGER NOT NULL,
  batch INTEGER NOT NULL, born INTEGER NOT NULL)

CREATE INDEX memory_by_session ON memory (session_id) WHERE session_id IS NOT NULL

CREATE INDEX memory_by_source ON memory (source) WHERE source IS NOT NULL

CREATE INDEX memory_by_expiry ON memory (expires_us) WHERE expires_us IS NOT NULL

CREATE INDEX memory_by_batch ON memory (batch)

CREATE INDEX memory_counts ON memory (erased, born, hidden, text_bytes)

CREATE TABLE session (
  id TEXT PRIMARY KEY, title TEXT, created_us INTEGER NOT NULL, updated_us INTEGER NOT NULL)

CREATE TABLE use (
  reply_id TEXT NOT NULL, memory_id TEXT NOT NULL, rank INTEGER NOT NULL, score REAL NOT NULL, signals TEXT
  NOT NULL, attention REAL, cited INTEGER NOT NULL, PRIMARY KEY (reply_id, memory_id)) WITHOUT ROWID

CREATE INDEX use_by_memory ON use (memory_id)

CREATE VIRTUAL TABLE words USING fts5(
  text, reply, title, tags, source, content='memory', content_rowid='ordinal',
  tokenize="porter unicode61 remove_diacritics 2")

INSERT INTO words (words, rank) VALUES ('secure-delete', 1)

INSERT INTO words (words, rank) VALUES ('automerge', 2)

CREATE TRIGGER memory_added AFTER INSERT ON memory BEGIN
  INSERT INTO words (rowid, text, reply, title, tags, source)
  VALUES (new.ordinal, new.text, new.reply, new.title, new.tags, new.source);
END

CREATE TRIGGER memory_removed AFTER DELETE ON memory BEGIN
  INSERT INTO words (words, rowid, text, reply, title, tags, source)
  VALUES ('delete', old.ordinal, old.text, old.reply, old.title, old.tags, old.source);
END

CREATE TRIGGER memory_changed AFTER UPDATE OF text, reply, title, tags, source ON memory BEGIN
  INSERT INTO words (words, rowid, text, reply, title, tags, source)
  VALUES ('delete', old.ordinal, old.text, old.reply, old.title, old.tags, old.source);
  INSERT INTO words (rowid, text, reply, title, tags, source)
  VALUES (new.ordinal, new.text, new.reply, new.title, new.tags, new.source);
END
"""


def _first(connection: Connection) -> None:
    run_script(connection, _FIRST)


_BRANCHES = """
ALTER TABLE session ADD COLUMN parent TEXT

ALTER TABLE session ADD COLUMN branched_at INTEGER

ALTER TABLE session ADD COLUMN is_closed INTEGER NOT NULL DEFAULT 0

CREATE INDEX session_by_parent ON session (parent) WHERE parent IS NOT NULL
"""


def _branches(connection: Connection) -> None:
    """`branched_at` is the ordinal of the last memory of the parent that counts."""
    run_script(connection, _BRANCHES)


_SHARDS = """
CREATE TABLE shard (
  block INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, form TEXT NOT NULL, stride INTEGER NOT NULL,
  entries INTEGER NOT NULL, key BLOB)
"""


def _shards(connection: Connection) -> None:
    """Names and keys of the files that vectors lie in."""
    run_script(connection, _SHARDS)


MIGRATIONS = (
    Migration(1, "first tables", _first),
    Migration(2, "branches of sessions", _branches),
    Migration(3, "shards of the vector index", _shards),
)
