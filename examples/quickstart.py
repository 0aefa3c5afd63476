"""Tell an agent something, ask for it in a new session, see why it knew, then forget it for good.

python examples/quickstart.py [BANK]
"""

import sys
from tempfile import mkdtemp

from mnemos import Agent, MemoryBank
from mnemos.attention.sampling import Sampling

BRIEF = Sampling(max_tokens=40, repetition_penalty=1.1)  # the default model is small: keep it short


def main(path: str) -> None:
    with MemoryBank.open(path) as bank:
        print(f"the bank is in {bank.path}, its key in {bank.key_location}")
        first = Agent(bank, namespace="alice", sampling=BRIEF)
        first.run_sync("My sister Clara works as a nurse in Leeds.")

        # Another session knows nothing of the first but what the bank gives back.
        second = Agent(bank, namespace="alice", sampling=BRIEF)
        reply = second.run_sync("What does my sister Clara do for a living?")
        print(f"reply: {reply.text}")
        assert reply.exchange_id is not None
        for used in bank.why(reply.exchange_id, namespace="alice"):  # still known years later
            print(
                f"made with: {used.memory.text} (score {used.score:.2f}, attention {used.attention or 0:.0%})"
            )

        plan = bank.plan_forget(namespace="alice", matching="Clara")
        print(f"forgetting {len(plan.selected)} memories, {plan.bytes_on_disk} bytes")
        receipt = bank.forget(plan)
        print(f"receipt {receipt.id}: {receipt.document['checks']}")
        print(f"left: {len(bank.list('alice'))}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else mkdtemp(prefix="mnemos-"))
