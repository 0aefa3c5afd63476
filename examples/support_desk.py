"""A support desk: each customer has a namespace, none sees another's, and one asks to be erased.

    python examples/support_desk.py [BANK]

The receipt of the erasure is written beside the bank and verified without it, with the bank's public key
alone; `mnemos memory receipt verify FILE` does the same.
"""

import json
import sys
from pathlib import Path
from tempfile import mkdtemp

from mnemos import Agent, MemoryBank
from mnemos.attention.sampling import Sampling
from mnemos.store.receipts import verify_receipt

BRIEF = Sampling(max_tokens=30, repetition_penalty=1.1)
QUESTION = "Which printer do I have, and what is wrong with it?"
TOLD = {
    "desk/amara": (
        "My printer is a Corvid 300 and it jams on thick paper.",
        "I was promised a refund by Friday.",
    ),
    "desk/bruno": ("My printer is a Heron 12 and it prints blank pages.",),
    "desk/celia": ("My printer is a Magpie X and its fan rattles at night.",),
}
SECRETS = ("Corvid 300", "refund by Friday")


def ask_everyone(bank: MemoryBank) -> None:
    for customer in TOLD:
        reply = Agent(bank, namespace=customer, sampling=BRIEF).run_sync(QUESTION)
        print(f"{customer}: {' '.join(reply.text.split())}")
        for recalled in reply.memories:
            assert recalled.memory.namespace == customer
            print(f"  from {recalled.memory.namespace}: {recalled.memory.text}")


def erase(bank: MemoryBank, customer: str) -> Path:
    """All of one customer's memories, in every file of the bank; where the receipt was put."""
    plan = bank.plan_forget(namespace=customer, everything=True)
    receipt = bank.forget(plan)
    print(f"erased {len(receipt.forgotten)} memories of {customer}, {plan.bytes_on_disk} bytes")
    file = bank.path.with_name(f"{bank.path.name}-receipt.json")
    file.write_text(json.dumps(receipt.document), encoding="utf-8")
    return file


def what_is_left(bank: MemoryBank) -> list[str]:
    """Places where the erased words are still found: searches of every namespace, and the bank's bytes."""
    left = []
    for words in SECRETS:
        for customer in bank.namespaces():
            for router in ("lexical", "full", "latent"):
                hits = bank.search(words, namespace=customer, router=router, limit=50)
                left += [f"{customer}, {router} search" for hit in hits if words in hit.memory.text]
        for file in bank.path.rglob("*"):
            left += [str(file)] if file.is_file() and words.encode() in file.read_bytes() else []
    return left


def main(path: str) -> None:
    with MemoryBank.open(path) as bank:
        for customer, words in TOLD.items():
            for text in words:
                bank.remember(text, namespace=customer, tags=["ticket"])
        ask_everyone(bank)
        print(f"\nfound before: {', '.join(sorted(set(what_is_left(bank))))}")
        file = erase(bank, "desk/amara")
        public_key = bank.public_key
        print(f"left of desk/amara: {len(bank.list('desk/amara'))} memories; found: {what_is_left(bank)}")
        untouched = {customer: bank.count(customer) for customer in TOLD if customer != "desk/amara"}
        print(f"untouched: {untouched}; the bank verifies: {bank.verify(deep=True).ok}")
    document = json.loads(file.read_text(encoding="utf-8"))  # from here on without the bank
    print(f"receipt {file}: valid {verify_receipt(document, public_key)}")
    document["memories"] += 1
    print(f"the same with a number changed: valid {verify_receipt(document, public_key)}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else str(Path(mkdtemp(prefix="mnemos-")) / "bank"))
