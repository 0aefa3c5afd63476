"""Tell an agent something, ask for it in a new session, then forget it.

Run it with `python examples/first_steps.py [BANK]`.
"""

import sys
from tempfile import mkdtemp

from mnemos import Agent, MemoryBank


def main(path: str) -> None:
    with MemoryBank.open(path) as bank:
        print(f"the bank is in {bank.path}, its key in {bank.key_location}")
        first = Agent(bank, namespace="alice")
        first.run_sync("My sister Clara works as a nurse in Leeds.")

        # Another session knows nothing of the first but what the bank gives back.
        second = Agent(bank, namespace="alice", model=first.model)
        reply = second.run_sync("What does my sister Clara do for a living?")
        print(reply.text)
        for recalled in reply.memories:
            print(f"  {recalled.score:.2f}  {recalled.memory.text}")

        plan = bank.plan_forget(namespace="alice", matching="Clara")
        print(f"forgetting {len(plan.selected)} memories, {plan.bytes_on_disk} bytes")
        receipt = bank.forget(plan)
        print(f"receipt {receipt.id}: {receipt.document['checks']}")
        print(f"left: {len(bank.list('alice'))}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else mkdtemp(prefix="mnemos-"))
