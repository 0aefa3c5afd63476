"""The tables of `catalog.db`. Random ids, numbers, digests and sealed bytes: no word of anybody's."""

from sqlalchemy import Column, Connection, Integer, LargeBinary, MetaData, Table, Text

from mnemos.store.migrations import Migration, run_script

metadata = MetaData()

meta = Table("meta", metadata, Column("key", Text, primary_key=True), Column("value", LargeBinary))
settings = Table("settings", metadata, Column("key", Text, primary_key=True), Column("value", Text))
namespaces = Table(
    "namespaces",
    metadata,
    Column("id", Text, primary_key=True),
    Column("name_tag", LargeBinary),
    Column("name_box", LargeBinary),
    Column("key_box", LargeBinary),
    Column("batch", Integer),
    Column("state", Text),
    Column("created_us", Integer),
)
memories = Table(
    "memories",
    metadata,
    Column("id", Text, primary_key=True),
    Column("namespace_id", Text),
    Column("page_id", Integer),
    Column("slot", Integer),
    Column("is_open", Integer),
    Column("trace_fingerprint", Text),
    Column("tokens", Integer),
    Column("trace_bytes", Integer),
    Column("kv_bytes", Integer),
)
frames = Table(
    "frames",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("owner", Text),
    Column("kind", Integer),
    Column("segment", Integer),
    Column("start", Integer),
    Column("length", Integer),
    Column("digest", LargeBinary),
    Column("live", Integer),
    Column("fingerprint", Text),
)
segments = Table(
    "segments",
    metadata,
    Column("number", Integer, primary_key=True),
    Column("ends_at", Integer),
    Column("sealed", Integer),
)
key_pages = Table(
    "key_pages",
    metadata,
    Column("namespace_id", Text, primary_key=True),
    Column("id", Integer, primary_key=True),
    Column("region", Integer),
    Column("used", Integer),
    Column("length", Integer),
    Column("wrapped", LargeBinary),
)
intents = Table(
    "intents",
    metadata,
    Column("id", Text, primary_key=True),
    Column("namespace_id", Text),
    Column("created_us", Integer),
    Column("body", Text),
)
receipts = Table(
    "receipts",
    metadata,
    Column("id", Text, primary_key=True),
    Column("created_us", Integer),
    Column("body", Text),
)
audit = Table(
    "audit",
    metadata,
    Column("seq", Integer, primary_key=True),
    Column("at_us", Integer),
    Column("actor", Text),
    Column("action", Text),
    Column("subject", Text),
    Column("count", Integer),
    Column("digest", LargeBinary),
)

_FIRST = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID

CREATE TABLE settings (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID

CREATE TABLE namespaces (
  id TEXT PRIMARY KEY, name_tag BLOB UNIQUE, name_box BLOB, key_box BLOB,
  batch INTEGER NOT NULL, state TEXT NOT NULL, created_us INTEGER NOT NULL)

CREATE TABLE memories (
  id TEXT PRIMARY KEY, namespace_id TEXT NOT NULL REFERENCES namespaces(id), page_id INTEGER, slot INTEGER,
  is_open INTEGER NOT NULL, trace_fingerprint TEXT, tokens INTEGER NOT NULL, trace_bytes INTEGER NOT NULL)

CREATE INDEX memories_by_namespace ON memories (namespace_id)

CREATE INDEX memories_by_trace ON memories (trace_fingerprint, namespace_id) WHERE is_open = 0

CREATE TABLE frames (
  id INTEGER PRIMARY KEY, owner TEXT NOT NULL, kind INTEGER NOT NULL, segment INTEGER NOT NULL,
  start INTEGER NOT NULL, length INTEGER NOT NULL, digest BLOB NOT NULL, live INTEGER NOT NULL,
  fingerprint TEXT)

CREATE INDEX frames_by_owner ON frames (owner)

CREATE INDEX frames_by_place ON frames (segment, start)

CREATE INDEX frames_dead ON frames (segment) WHERE live = 0

CREATE TABLE segments (number INTEGER PRIMARY KEY, ends_at INTEGER NOT NULL, sealed INTEGER NOT NULL)

CREATE TABLE key_pages (
  namespace_id TEXT NOT NULL REFERENCES namespaces(id), id INTEGER NOT NULL, region INTEGER NOT NULL,
  used INTEGER NOT NULL, length INTEGER NOT NULL, wrapped BLOB NOT NULL, PRIMARY KEY (namespace_id, id))
  WITHOUT ROWID

CREATE TABLE intents (
  id TEXT PRIMARY KEY, namespace_id TEXT NOT NULL, created_us INTEGER NOT NULL, body TEXT NOT NULL)

CREATE TABLE receipts (id TEXT PRIMARY KEY, created_us INTEGER NOT NULL, body TEXT NOT NULL)

CREATE TABLE audit (
  seq INTEGER PRIMARY KEY, at_us INTEGER NOT NULL, actor TEXT NOT NULL, action TEXT NOT NULL,
  subject TEXT NOT NULL, count INTEGER NOT NULL, digest BLOB NOT NULL)
"""


def _first(connection: Connection) -> None:
    run_script(connection, _FIRST)


def _index_open(connection: Connection) -> None:
    run_script(connection, "CREATE INDEX memories_open ON memories (namespace_id) WHERE is_open = 1")


def _tagged_frames(connection: Connection) -> None:
    """Nothing to change: the number keeps software that can't read frames of version 2 out."""


def _branched_sessions(connection: Connection) -> None:
    """Nothing to change here: the number keeps software out that knows no branches."""


_FAINT = """
ALTER TABLE memories ADD COLUMN kv_bytes INTEGER NOT NULL DEFAULT 0

UPDATE memories SET kv_bytes = coalesce((SELECT sum(length) FROM frames WHERE owner = memories.id AND
  kind = 2 AND live = 1), 0) WHERE trace_fingerprint IS NOT NULL

CREATE INDEX memories_vivid ON memories (namespace_id, kv_bytes) WHERE kv_bytes > 0
"""


def _faint_memories(connection: Connection) -> None:
    """A memory with a trace whose `kv_bytes` are 0 is faint: it has routing keys and no KV frame."""
    run_script(connection, _FAINT)


MIGRATIONS = (
    Migration(1, "first tables", _first),
    Migration(2, "index of open exchanges", _index_open),
    Migration(3, "frames of version 2", _tagged_frames),
    Migration(4, "namespaces with branches of sessions", _branched_sessions),
    Migration(5, "faint memories", _faint_memories),
)
