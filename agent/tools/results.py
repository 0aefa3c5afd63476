"""What a tool returned or raised, as text that a model reads."""

import base64
from typing import Any

from pydantic_core import to_json

_ERROR_CHARS = 500


def text_of(value: Any, most_chars: int) -> str:
    """A tool's result as text of `most_chars` characters at most; a note behind it says what was cut.

    Texts stand as they are, bytes as UTF-8 with U+FFFD for what isn't, None as an empty text, anything else
    as JSON. Raises ValueError when that can't be written.
    """
    if isinstance(value, str):
        text = value
    elif isinstance(value, bytes | bytearray | memoryview):
        text, is_cut = _decoded(bytes(value[: 4 * most_chars + 4])), len(value) > 4 * most_chars + 4
        if is_cut:
            return f"{text[:most_chars]}\n[cut: the result has {len(value):,} bytes]"
    elif value is None:
        text = ""
    else:
        text = to_json(_jsonable_bytes(value), fallback=str, inf_nan_mode="constants").decode()
    return cut(storable(text), most_chars)


def error_text(error: BaseException) -> str:
    """An error as the model reads it."""
    try:
        words = str(error)
    except Exception:  # the error's own code; its name has to do
        words = ""
    name = type(error).__name__
    return cut(storable(f"{name}: {words}" if words else name), _ERROR_CHARS)


def cut(text: str, most_chars: int) -> str:
    """`text`, or its beginning and a note that says how much there is."""
    if len(text) <= most_chars:
        return text
    return f"{text[:most_chars]}\n[cut: the first {most_chars:,} of {len(text):,} characters]"


def storable(text: str) -> str:
    """Without surrogates, which UTF-8 has no form for."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _decoded(value: bytes) -> str:
    return value.decode("utf-8", "replace")


def _jsonable_bytes(value: Any) -> Any:
    """Bytes inside plain containers as text: UTF-8, or base64 where they are not."""
    if isinstance(value, bytes | bytearray):
        try:
            return bytes(value).decode("utf-8")
        except UnicodeDecodeError:
            return base64.b64encode(value).decode("ascii")
    if isinstance(value, dict):
        return {_jsonable_bytes(key): _jsonable_bytes(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable_bytes(item) for item in value]
    return value
