"""The demonstration: three processes over one bank, which are told, asked and made to forget, and asked
again.

Each phase runs in an operating-system process of its own (`python -m mnemos.agent.demo PHASE ...`), so that
nothing can pass from one to the next but the bank. A phase writes JSON lines to its stdout: {"say": text}
for people and, last, {"result": ...}.
"""

import json
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from mnemos.agent.agent import Agent
from mnemos.agent.demo_script import ASKED_AGAIN, FORGOTTEN, GOLD_NEEDED, QUESTIONS, TOLD
from mnemos.agent.reread import reread_ms
from mnemos.attention.models import LanguageModel, load
from mnemos.attention.sampling import Sampling
from mnemos.errors import MnemosError, NotFoundError
from mnemos.memory.bank import MemoryBank
from mnemos.memory.ingest import ingest
from mnemos.memory.records import RecalledMemory
from mnemos.store.receipts import verify_receipt

PHASES = ("tell", "ask", "again")
_SAMPLING = Sampling(max_tokens=40, repetition_penalty=1.1)


@dataclass(frozen=True, slots=True)
class DemoReport:
    """What held. `ok` is the demonstration's verdict."""

    ok: bool
    bank: str
    checks: dict[str, bool]
    phases: dict[str, Any]


def run_demo(bank_path: Path, *, namespace: str, model: str | None, say: Callable[[str], None]) -> DemoReport:
    """Run the three phases over a bank that must not exist yet; `say` gets a line at a time."""
    if bank_path.exists() and any(bank_path.iterdir()):
        raise MnemosError(f"{bank_path} already holds something; name a new directory for the demonstration")
    results = {}
    for number, phase in enumerate(PHASES, 1):
        say(f"\n== process {number} of {len(PHASES)}: {_TITLES[phase]}")
        results[phase] = _run_phase(phase, bank_path, namespace, model, say)
    asked, again = results["ask"], results["again"]
    has_enough = asked["gold_recalled"] >= GOLD_NEEDED
    checks = {
        f"at least {GOLD_NEEDED} of {len(QUESTIONS)} gold memories recalled": has_enough,
        "two memories forgotten, each with a signed receipt": asked["receipts_valid"] == len(FORGOTTEN),
        "nothing forgotten is recalled": not again["recalled_forgotten"],
        "nothing forgotten is found by search": not again["found_forgotten"],
        "nothing forgotten is in the replies": not again["replied_forgotten"],
        "nothing forgotten has words, keys or KV left in the bank": not again["erased_still_there"],
        "nothing forgotten is in the bank's files": not again["files_with_forgotten"],
        "the bank verifies, every frame decrypted": again["verified"],
    }
    return DemoReport(all(checks.values()), str(bank_path), checks, results)


_TITLES = {
    "tell": "the agent is told things, and reads a document",
    "ask": "a new process is asked, then forgets two memories",
    "again": "a third process is asked again",
}


def _run_phase(
    phase: str, bank: Path, namespace: str, model: str | None, say: Callable[[str], None]
) -> dict[str, Any]:
    command = [sys.executable, "-m", "mnemos.agent.demo", phase, str(bank), namespace, model or ""]
    result: dict[str, Any] | None = None
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, encoding="utf-8") as child:
        assert child.stdout is not None
        for line in child.stdout:
            message = json.loads(line)
            if "say" in message:
                say(message["say"])
            else:
                result = message["result"]
    if child.returncode or result is None:
        raise MnemosError(f"the {phase} phase of the demonstration ended with exit status {child.returncode}")
    return result


def tell(
    bank: MemoryBank, namespace: str, model: LanguageModel, say: Callable[[str], None]
) -> dict[str, Any]:
    """Tell the agent facts among small talk, and ingest the example document."""
    with as_file(files("mnemos.agent").joinpath("demo_data", "handbook.md")) as handbook:
        report = ingest(bank, handbook, namespace=namespace)
    say(f"   read {handbook.name}: {report.added} passages")
    agent = Agent(bank, namespace=namespace, model=model, sampling=_SAMPLING, k=0, working_tokens=0)
    for text in TOLD:
        reply = agent.run_sync(text)
        say(f"   you    {text}\n   agent  {_one_line(reply.text)}")
    stats = bank.stats(namespace)
    say(
        f"   the bank now holds {stats.memories} memories: {stats.tokens} tokens of KV "
        f"in {stats.trace_bytes / 1e6:.1f} MB"
    )
    return {
        "told": len(TOLD),
        "passages": report.added,
        "memories": stats.memories,
        "trace_bytes": stats.trace_bytes,
    }


def ask(bank: MemoryBank, namespace: str, model: LanguageModel, say: Callable[[str], None]) -> dict[str, Any]:
    """Ask about the facts, each in a new session; then forget two of them."""
    answers: list[dict[str, Any]] = []
    for question in QUESTIONS:
        agent = Agent(bank, namespace=namespace, model=model, sampling=_SAMPLING)
        reply = agent.run_sync(question.text)
        found = any(question.gold in recalled.memory.text for recalled in reply.memories)
        as_text_ms = reread_ms(agent, question.text, reply)
        say(f"   you    {question.text}\n   agent  {_one_line(reply.text)}")
        for recalled in reply.memories:
            say(f"          {recalled.score:5.2f}  {_one_line(recalled.memory.text)}")
        say(
            f"          first token after {reply.usage.first_token_ms:.0f} ms, "
            f"{reply.usage.paged_tokens} tokens paged in; {as_text_ms:.0f} ms when the same memories are "
            "re-read as text"
        )
        answers.append(
            {
                "question": question.text,
                "answer": reply.text,
                "gold_recalled": found,
                "memories": [{"text": r.memory.text, "score": r.score} for r in reply.memories],
                "first_token_ms": reply.usage.first_token_ms,
                "reread_first_token_ms": as_text_ms,
            }
        )
    valid = 0
    for words in FORGOTTEN:
        plan = bank.plan_forget(namespace=namespace, matching=words)
        say(
            f"   forget --match {words}: {len(plan.selected)} memories, {len(plan.dependants)} replies "
            f"made with them, {plan.bytes_on_disk / 1e3:.0f} kB"
        )
        receipt = bank.forget(plan)
        valid += int(bool(receipt.forgotten) and verify_receipt(receipt.document))
        counts = f"{len(receipt.forgotten)} erased, {len(receipt.rewritten)} rewritten"
        say(f"   receipt {receipt.id[:8]}: {counts}, signed")
    recalled_count = sum(answer["gold_recalled"] for answer in answers)
    say(f"   {recalled_count} of {len(QUESTIONS)} gold memories recalled")
    return {"answers": answers, "gold_recalled": recalled_count, "receipts_valid": valid}


def again(
    bank: MemoryBank, namespace: str, model: LanguageModel, say: Callable[[str], None]
) -> dict[str, Any]:
    """Ask about what was forgotten, search for it, and look for it in every byte of the bank."""
    recalled: list[str] = []
    replied: list[str] = []
    for question in ASKED_AGAIN:
        reply = Agent(bank, namespace=namespace, model=model, sampling=_SAMPLING).run_sync(question.text)
        say(f"   you    {question.text}\n   agent  {_one_line(reply.text)}")
        for memory in reply.memories:
            say(f"          {memory.score:5.2f}  {_one_line(memory.memory.text)}")
        recalled += [
            m.memory.id for m in reply.memories if _mentions(f"{m.memory.text} {m.memory.reply or ''}")
        ]
        replied += [question.text] if _mentions(reply.text) else []
    hits: list[RecalledMemory] = []
    for words in FORGOTTEN:
        hits += bank.search(words, namespace=namespace, limit=50, router="lexical")
        hits += bank.search(words, namespace=namespace, limit=50, model=model)
    found = [hit.memory.id for hit in hits if _mentions(f"{hit.memory.text} {hit.memory.reply or ''}")]
    report = bank.verify(deep=True)
    in_files = [
        path.name
        for path in sorted(bank.path.rglob("*"))
        if path.is_file()
        and any(words.casefold().encode() in path.read_bytes().lower() for words in FORGOTTEN)
    ]
    words_sought = ", ".join(FORGOTTEN)
    say(f"   searched for {words_sought}: {len(found)} found; in the bank's files: {len(in_files)} found")
    return {
        "recalled_forgotten": recalled,
        "found_forgotten": found,
        "replied_forgotten": replied,
        "erased_still_there": _still_there(bank, namespace),
        "files_with_forgotten": in_files,
        "verified": report.ok,
    }


def _still_there(bank: MemoryBank, namespace: str) -> list[str]:
    """Ids that a receipt says are erased, and of which the bank still gives out words, KV or routing keys."""
    left = []
    for receipt in bank.store.receipts():
        for memory_id in receipt["erased"]:
            for read in (bank.store.get, bank.store.get_kv, bank.store.get_route):
                try:
                    read(namespace, memory_id)
                except NotFoundError:
                    continue
                left.append(memory_id)
    return left


def _mentions(text: str) -> bool:
    return any(words.casefold() in text.casefold() for words in FORGOTTEN)


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _emit(message: dict[str, Any]) -> None:
    print(json.dumps(message), flush=True)


def main(arguments: list[str]) -> int:
    """One phase, in the process that this is."""
    phase, path, namespace, model_name = arguments
    run = {"tell": tell, "ask": ask, "again": again}[phase]
    try:
        model = load(model_name or None)
        with closing(MemoryBank.open(path)) as bank:
            result = run(bank, namespace, model, lambda line: _emit({"say": line}))
    except MnemosError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    _emit({"result": result})
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
