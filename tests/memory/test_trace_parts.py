"""How a memory was cut and stored, as the bank tells it."""

from pathlib import Path

import pytest

from mnemos.attention.models import LanguageModel
from mnemos.memory.bank import MemoryBank
from mnemos.memory.layout import render_memory


@pytest.mark.model
def test_spans_are_the_lines_and_pieces_their_text(tmp_path: Path, language_model: LanguageModel) -> None:
    with MemoryBank.open(tmp_path / "bank") as bank:
        short = bank.remember("Clara's duck is called Ünal 🦆.")
        long = bank.remember("kettle " * 900)
        pending = bank.trace_parts(short.id, model=language_model)
        assert pending.fidelity == "pending" and pending.kv_bytes == pending.routing_bytes == 0
        bank.encode_pending(language_model)
        for memory in (short, long):
            parts = bank.trace_parts(memory.id, model=language_model)
            assert "".join(piece for span in parts.spans for piece in span.pieces) == "".join(
                render_memory(memory)
            )
            held = bank.get(memory.id)
            assert parts.tokens == held.tokens == sum(span.tokens for span in parts.spans)
            assert parts.kv_bytes > 0 and parts.routing_bytes > 0
        assert len(parts.spans) == 2 and parts.spans[0].tokens == 512
        assert 5000 < parts.bytes_per_token < 8000  # int4 KV of 30 layers, and routing keys
