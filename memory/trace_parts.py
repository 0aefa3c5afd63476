"""How a memory was cut and stored: its spans, their tokens, and the bytes of its trace."""

from collections.abc import Sequence

from mnemos.attention.tokenizer import Detokenizer
from mnemos.memory.recall import Recaller
from mnemos.memory.records import Memory, SpanTokens, TraceParts
from mnemos.store.store import Store


def trace_parts(store: Store, recaller: Recaller, memory: Memory) -> TraceParts:
    """The parts of one memory's trace, as the recaller's model has them; made anew from its words."""
    spans = [
        SpanTokens(tokens=len(tokens), pieces=_pieces(recaller, tokens))
        for tokens in recaller.encoder.spans_of(memory)
    ]
    kv = store.get_kvs(memory.namespace, [memory.id]).get(memory.id, b"")
    route = store.get_routes(memory.namespace, [memory.id]).get(memory.id, b"")
    tokens = sum(span.tokens for span in spans)
    return TraceParts(
        id=memory.id,
        model=recaller.model.name,
        fidelity=memory.fidelity,
        spans=tuple(spans),
        tokens=tokens,
        kv_bytes=len(kv),
        routing_bytes=len(route),
        text_bytes=memory.text_bytes,
        bytes_per_token=round((len(kv) + len(route)) / tokens, 1),
    )


def _pieces(recaller: Recaller, tokens: Sequence[int]) -> tuple[str, ...]:
    """Each token's text; the pieces of a character stand together at its last token."""
    text = Detokenizer(recaller.model.tokenizer)
    pieces = [text.push(token) for token in tokens]
    pieces[-1] += text.finish()
    return tuple(pieces)
