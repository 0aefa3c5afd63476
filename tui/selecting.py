"""Selectors of memories as options give them."""

from pathlib import Path


def source_as_stored(source: str | None) -> str | None:
    """The source as memories carry it: the absolute path of a file that exists, else what was given."""
    if source is None or not Path(source).expanduser().exists():
        return source
    from mnemos.memory.ingest import source_of

    return source_of(source)
