"""Whether a trace that comes with an archive can be what it says, as far as its bytes tell."""

import struct

from mnemos.store.archive_records import ArchivedTrace

# The heads of the payloads, as `attention/memory_codec.py` has them.
_KV_HEAD, _ROUTE_HEAD = struct.Struct("<4sBHHHH"), struct.Struct("<4sHHHH")


def is_sound_trace(trace: ArchivedTrace) -> bool:
    """Whether the payloads begin as a trace's do and hold the tokens that are said; loads no torch."""
    if len(trace.kv) < _KV_HEAD.size or len(trace.route) < _ROUTE_HEAD.size:
        return False
    kv_magic, _, _, _, _, kv_spans = _KV_HEAD.unpack_from(trace.kv)
    route_magic, _, _, _, route_spans = _ROUTE_HEAD.unpack_from(trace.route)
    if kv_magic != b"MKV1" or route_magic != b"MRT1" or kv_spans != route_spans:
        return False
    counts = struct.Struct(f"<{kv_spans}I")
    if len(trace.kv) < _KV_HEAD.size + counts.size or len(trace.route) < _ROUTE_HEAD.size + counts.size:
        return False
    kv_tokens = counts.unpack_from(trace.kv, _KV_HEAD.size)
    return kv_tokens == counts.unpack_from(trace.route, _ROUTE_HEAD.size) and sum(kv_tokens) == trace.tokens
