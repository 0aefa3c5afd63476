"""A random workload on a bank, with a line in `acks` for each act. Run with the recorder preloaded.

Arguments: the root, a seed, how many acts, whether the bank is encrypted (0 or 1).
"""

import json
import os
import random
import sys
from pathlib import Path
from typing import Any

from mnemos.store import compacting
from mnemos.store.records import MemoryDraft, Selector, TraceDraft, UseRecord
from mnemos.store.store import Store

NAMESPACES = ("alice", "bob")


def payload(memory_id: str) -> bytes:
    return random.Random(memory_id).randbytes(700)


class Workload:
    def __init__(self, root: Path, seed: int, encrypted: bool) -> None:
        self.bank = root / "bank"
        self.encrypted = encrypted
        self.chance = random.Random(seed)
        self.acks = os.open(root / "acks", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self.held: dict[str, list[str]] = {name: [] for name in NAMESPACES}
        self.store = self.opened()

    def say(self, **event: Any) -> None:
        os.write(self.acks, json.dumps(event).encode() + b"\n")

    def canary(self) -> str:
        return f"canary{self.chance.randrange(10**9):09d}q"

    def opened(self) -> Store:
        store = Store.open(self.bank, encrypted=self.encrypted)
        store._core.segment_bytes = 12_000
        return store

    def add(self, name: str) -> None:
        texts = [f"{self.canary()} is remembered" for _ in range(self.chance.randint(1, 3))]
        records = self.store.add(name, [MemoryDraft(text) for text in texts])
        self.held[name] += [record.id for record in records]
        self.say(act="added", namespace=name, words={record.id: record.text for record in records})

    def trace(self, name: str) -> None:
        for memory_id in self.chance.sample(self.held[name], min(2, len(self.held[name]))):
            self.store.put_traces(
                name, [TraceDraft(memory_id, "m", 3, payload(memory_id), payload(memory_id))]
            )
            self.say(act="traced", namespace=name, ids=[memory_id])

    def answer(self, name: str) -> None:
        asked = self.store.add(name, [MemoryDraft(f"{self.canary()}?", kind="exchange", status="open")])[0]
        self.say(act="added", namespace=name, words={asked.id: asked.text})
        uses = [
            UseRecord(i, 0, 1.0) for i in self.chance.sample(self.held[name], min(1, len(self.held[name])))
        ]
        reply = f"{self.canary()} is the answer"
        self.say(act="completing", namespace=name, ids=[asked.id])
        self.store.complete(name, asked.id, reply, uses=uses)
        self.say(act="completed", namespace=name, ids=[asked.id], reply=reply)
        self.held[name].append(asked.id)

    def forget(self, name: str) -> None:
        if not self.held[name]:
            return
        ids = self.chance.sample(self.held[name], min(self.chance.randint(1, 3), len(self.held[name])))
        self.erase(name, Selector(name, ids=ids))

    def forget_namespace(self, name: str) -> None:
        if self.held[name]:
            self.erase(name, Selector(name, everything=True))

    def erase(self, name: str, selector: Selector) -> None:
        plan = self.store.plan_erase(selector)
        going = [*plan.selected, *plan.dependants]
        ids = [record.id for record in going]
        words = [record.text for record in plan.selected] + [record.reply for record in going if record.reply]
        self.say(act="erasing", namespace=name, ids=ids)
        receipt = self.store.erase(plan)
        self.held[name] = [i for i in self.held[name] if i not in ids]
        self.held[name] += receipt["rewritten"].values()
        self.say(act="erased", namespace=name, ids=ids, words=words, receipt=receipt["id"])

    def compact(self, name: str) -> None:
        compacting.compact(self.store._core, group_bytes=2000, min_dead_share=0.1)

    def reopen(self, name: str) -> None:
        self.store.close()
        self.store = self.opened()

    def run(self, acts: int) -> None:
        choices = [self.add] * 5 + [self.trace] * 3 + [self.answer] * 2 + [self.forget] * 4
        choices += [self.compact] * 2 + [self.reopen, self.forget_namespace]
        for _ in range(acts):
            self.chance.choice(choices)(self.chance.choices(NAMESPACES, (3, 1))[0])


if __name__ == "__main__":
    Workload(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[4] == "1").run(int(sys.argv[3]))
