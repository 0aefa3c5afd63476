"""How large one memory may be."""

from mnemos.errors import InvalidTextError

MAX_TEXT_BYTES = 64 * 1024  # of one memory: some 16,000 tokens of KV


def check_size(text: str) -> None:
    """Raises `InvalidTextError` when a text is too large to be one memory."""
    size = len(text.encode("utf-8", "surrogatepass"))
    if size > MAX_TEXT_BYTES:
        raise InvalidTextError(
            f"the text has {size:,} bytes, one memory takes {MAX_TEXT_BYTES:,}; put it in a file and "
            "`mnemos ingest` it, which cuts it into passages. Nothing was stored"
        )
