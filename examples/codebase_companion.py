"""Reads a git repository with its history, and answers with the file or the commit that it knows it from.

    python examples/codebase_companion.py [BANK [REPOSITORY [QUESTION ...]]]

Without a repository it makes a small one. Of a real one it reads the tracked files and the latest 200
commits; run it again later and only what is new is read. git has to be on the PATH.
"""

import os
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from tempfile import mkdtemp

from mnemos import Agent, MemoryBank, MnemosError
from mnemos.attention.sampling import Sampling
from mnemos.memory.ingest import ingest
from mnemos.store.records import MemoryDraft

NAMESPACE = "code"
COMMITS = 200
BRIEF = Sampling(max_tokens=24, repetition_penalty=1.1)
QUESTIONS = (
    "Why did we change rounding to bankers' rounding?",
    "How is the late fee of an invoice computed?",
)
STORY = (  # (file, its content, commit message)
    ("billing.py", "def total(items):\n    return round(sum(items), 2)\n", "Add totals of invoices"),
    (
        "billing.py",
        "from decimal import ROUND_HALF_EVEN, Decimal\n\n\ndef total(items):\n"
        "    return sum(items).quantize(Decimal('0.01'), ROUND_HALF_EVEN)\n",
        "Use bankers' rounding for totals\n\nThe auditors of Marsh & Lowe found a drift of 14 euros a year.",
    ),
    (
        "late_fee.py",
        'def late_fee(invoice, days):\n    """The late fee: 2 per cent a week, at most 40 euros.'
        '"""\n    return min(40, invoice * 0.02 * (days // 7))\n',
        "Charge a late fee",
    ),
    (
        "README.md",
        "# Billing\n\nTotals and fees of invoices. Run the tests with pytest.\n",
        "Describe the project",
    ),
)


def git(repository: Path, *arguments: str) -> str:
    command = ["git", "-C", str(repository), *arguments]
    try:
        ran = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", errors="replace")
    except FileNotFoundError:
        raise SystemExit("git is not on the PATH; install it, this example reads its history") from None
    if ran.returncode:
        raise SystemExit(f"git {arguments[0]} failed in {repository}: {ran.stderr.strip()}")
    return ran.stdout


def make_repository() -> Path:
    repository = Path(mkdtemp(prefix="mnemos-billing-"))
    git(repository, "init", "-q")
    who = ("-c", "user.name=Ines", "-c", "user.email=ines@example.org", "-c", "commit.gpgsign=false")
    for day, (name, content, message) in enumerate(STORY, 1):
        (repository / name).write_text(content, encoding="utf-8")
        git(repository, "add", name)
        date = f"2024-03-{day:02}T10:00:00+00:00"
        os.environ["GIT_COMMITTER_DATE"] = date
        git(repository, *who, "commit", "-q", "-m", message, "--date", date)
    return repository


def read_history(bank: MemoryBank, repository: Path) -> int:
    """One memory for each commit, dated as the commit; how many are known now."""
    form = "--format=%x1e%H%x1f%aI%x1f%an%x1f%B%x1f"  # separators that no message holds
    drafts = []
    for entry in git(repository, "log", f"-{COMMITS}", "--reverse", "--name-only", form).split("\x1e")[1:]:
        commit, date, author, message, names = entry.split("\x1f")
        files = names.split("\n\n")[-1].split("\n")
        changed = [name for name in files if name]
        drafts.append(
            MemoryDraft(
                text=f"{message.strip()[:4000]}\nFiles: {', '.join(changed[:20])}",
                kind="document",
                title=f"commit {commit[:10]} by {author}",
                source=f"{repository}@{commit}",
                tags=("commit", *changed[:20]),
                created_at=datetime.fromisoformat(date),
                content_key=commit.encode(),  # a commit is remembered once
            )
        )
    return len(bank.remember_many(drafts, namespace=NAMESPACE)) if drafts else 0


def read_files(bank: MemoryBank, repository: Path) -> int:
    """The passages that were new. Files that hold no text are passed over."""
    added = 0
    for name in filter(None, git(repository, "ls-files", "-z").split("\0")):
        try:
            added += ingest(bank, repository / name, namespace=NAMESPACE, tags=["file", name]).added
        except MnemosError as error:
            print(f"passed over: {error}", file=sys.stderr)
    return added


def main(path: str, repository: Path | None = None, *questions: str) -> None:
    repository = repository or make_repository()
    git(repository, "rev-parse", "HEAD")  # says so when it is no repository, before a bank is made
    with MemoryBank.open(path) as bank:
        print(f"{read_files(bank, repository)} new passages, {read_history(bank, repository)} commits")
        for question in questions or QUESTIONS:
            agent = Agent(bank, namespace=NAMESPACE, sampling=BRIEF, k=3)
            reply = agent.run_sync(question, incognito=True)
            print(f"\n{question}\n{reply.text.strip()}")
            for rank, recalled in enumerate(reply.memories, 1):
                known = recalled.memory
                print(f"  {rank}. {known.title}, {known.created_at:%Y-%m-%d}, {known.source}")


if __name__ == "__main__":
    bank_path, *rest = sys.argv[1:] or [mkdtemp(prefix="mnemos-")]
    main(bank_path, Path(rest[0]).absolute() if rest else None, *rest[1:])
