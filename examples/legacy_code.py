"""Answers questions about COBOL and Fortran sources with the file, the line and the paragraph or subroutine.

    python examples/legacy_code.py [BANK [DIRECTORY [QUESTION ...]]]

The default directory ships with the example: a payroll and a ledger in COBOL, a tide table in Fortran. Each
paragraph (COBOL) and each program unit (Fortran, fixed form) becomes a memory of its own.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import mkdtemp

from mnemos import Agent, MemoryBank
from mnemos.attention.sampling import Sampling
from mnemos.store.records import MemoryDraft

SOURCES = Path(__file__).parent / "data" / "legacy"
NAMESPACE = "legacy"
BRIEF = Sampling(max_tokens=24, repetition_penalty=1.1)
QUESTIONS = (
    "From how many hours on is overtime paid?",
    "What happens to a posting without a voucher?",
    "At which height of the tide is there a flood warning?",
)
COBOL = (".cob", ".cbl", ".cpy")
FORTRAN = (".f", ".for", ".f77")
PARAGRAPH = re.compile(r"^.{6} ([A-Z0-9][A-Z0-9-]*)(?: SECTION)?\.", re.I)  # begins in area A
PROCEDURE = re.compile(r"^.{6} PROCEDURE\s+DIVISION", re.I)
UNIT = re.compile(r"^ {6}\s*((?:[A-Z*0-9 ]+ )?FUNCTION|SUBROUTINE|PROGRAM)\s+([A-Z]\w*)", re.I)


def units(file: Path) -> Iterator[tuple[str, int, str]]:
    """(what it is called, its first line, its text) of each part of a source file."""
    lines = file.read_text(encoding="latin-1").splitlines()
    is_cobol = file.suffix.lower() in COBOL
    marks = [(0, "declarations")]  # what stands before the first paragraph or unit
    start = next((at for at, line in enumerate(lines) if PROCEDURE.match(line)), 0)
    for at, line in enumerate(lines[start:], start):
        if found := (PARAGRAPH if is_cobol else UNIT).match(line):
            kind = "paragraph" if is_cobol else found[1].split()[-1].lower()
            marks.append((at, f"{kind} {found[1] if is_cobol else found[2]}"))
    for (first, name), (end, _) in zip(marks, [*marks[1:], (len(lines), "")], strict=True):
        text = "\n".join(lines[first:end]).strip("\n")
        if text.strip():
            yield name, first + 1, text


def read(bank: MemoryBank, directory: Path) -> int:
    """How many parts the directory's sources have; what is known already is not written again."""
    drafts = [
        MemoryDraft(
            text=text,
            kind="document",
            title=f"{file.name}, {name}",
            source=f"{file}:{line}",
            tags=("cobol" if file.suffix.lower() in COBOL else "fortran",),
            content_key=f"{file.name}\0{name}\0{text}".encode(),
        )
        for file in sorted(directory.rglob("*"))
        if file.suffix.lower() in COBOL + FORTRAN
        for name, line, text in units(file)
    ]
    if not drafts:
        raise SystemExit(f"{directory} holds no {', '.join(COBOL + FORTRAN)} files")
    return len(bank.remember_many(drafts, namespace=NAMESPACE))


def main(path: str, directory: Path = SOURCES, *questions: str) -> None:
    with MemoryBank.open(path) as bank:
        print(f"{read(bank, directory)} paragraphs and program units")
        for question in questions or QUESTIONS:
            reply = Agent(bank, namespace=NAMESPACE, sampling=BRIEF, k=2).run_sync(question, incognito=True)
            print(f"\n{question}\n{' '.join(reply.text.split())}")
            for rank, recalled in enumerate(reply.memories, 1):
                print(f"  {rank}. {recalled.memory.title} ({recalled.memory.source})")


if __name__ == "__main__":
    bank_path, *rest = sys.argv[1:] or [mkdtemp(prefix="mnemos-")]
    main(bank_path, Path(rest[0]).absolute() if rest else SOURCES, *rest[1:])
