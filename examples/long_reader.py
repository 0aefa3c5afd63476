"""Reads a book once, and is asked about it over days without reading it again.

    python examples/long_reader.py [BANK [TEXT-FILE [QUESTION ...]]]

The default text is a chapter of Alice in Wonderland. Each question is a session of its own. It prints
the passages that the reply was made with, and the time to the first token: with the passages paged in, and
with the same passages read again as text. Run it again on the same bank: nothing is read a second time.
"""

import sys
import time
from pathlib import Path
from tempfile import mkdtemp

from mnemos import Agent, MemoryBank
from mnemos.agent.reread import reread_ms
from mnemos.attention.sampling import Sampling
from mnemos.memory.ingest import ingest

BOOK = Path(__file__).parent / "data" / "alice.md"
READER = "reader"
BRIEF = Sampling(max_tokens=24, repetition_penalty=1.1)
DAYS = (
    "What did the Hatter's watch tell?",
    "Why is it always six o'clock at the tea-party?",
    "What did the Dormouse's three sisters live on in the well?",
)


def read(bank: MemoryBank, book: Path) -> None:
    started = time.perf_counter()
    report = ingest(bank, book, namespace=READER)
    encoded = bank.encode_pending(namespace=READER)
    took = time.perf_counter() - started
    stats = bank.stats(READER)
    print(
        f"{book.name}: {report.added} passages read in {took:.1f} s, {report.skipped} known already; "
        f"{encoded} encoded, {stats.tokens} tokens in all, {stats.trace_bytes / 1e6:.1f} MB"
    )


def ask(bank: MemoryBank, question: str) -> None:
    agent = Agent(bank, namespace=READER, sampling=BRIEF, k=2)
    reply = agent.run_sync(question, incognito=True)
    print(f"\n{question}\n{' '.join(reply.text.split())}")
    for recalled in reply.memories:
        passage = recalled.memory
        words = " ".join(passage.text.split())
        print(f"  {recalled.score:5.2f}  {passage.title}: {words[:70]}...")
    usage, again = reply.usage, reread_ms(agent, question, reply)
    print(
        f"  first token after {usage.first_token_ms:.0f} ms with {usage.paged_tokens} tokens paged in; "
        f"{again:.0f} ms when they are read again"
    )


def main(path: str, book: Path = BOOK, *questions: str) -> None:
    with MemoryBank.open(path) as bank:
        bank.recaller()  # loads the model, so that it is not part of the times
        read(bank, book)
    for day, question in enumerate(questions or DAYS, 1):
        with MemoryBank.open(path) as bank:  # another day: all that is known comes from the bank
            print(f"\nday {day}", end="")
            ask(bank, question)


if __name__ == "__main__":
    bank_path, *rest = sys.argv[1:] or [mkdtemp(prefix="mnemos-")]
    main(bank_path, Path(rest[0]) if rest else BOOK, *rest[1:])
