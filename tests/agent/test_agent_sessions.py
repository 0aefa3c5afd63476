"""An agent on a branch reads the past that it shares, and depends on it."""

from pathlib import Path

import pytest

from mnemos import Agent, MemoryBank
from mnemos.attention.models import LanguageModel
from mnemos.attention.sampling import Sampling

pytestmark = pytest.mark.model
SHORT = Sampling(max_tokens=6)


def test_a_branch_goes_on_from_the_shared_past(tmp_path: Path, language_model: LanguageModel) -> None:
    with MemoryBank.open(tmp_path / "bank") as bank:
        parent = Agent(bank, model=language_model, sampling=SHORT, k=0)
        first = parent.run_sync("My locker code is Kestrel-4417.")
        parent.run_sync("It rains a lot in Porto.")
        branch = bank.branch_session(parent.session_id, at=first.exchange_id)
        agent = Agent(bank, model=language_model, sampling=SHORT, k=0, session=branch.id)
        reply = agent.run_sync("What is my locker code?")
        assert reply.session_id == branch.id
        working = agent._working
        assert working is not None
        read = language_model.tokenizer.decode(working._tokens)
        assert "Kestrel-4417" in read and "Porto" not in read
        plan = bank.plan_forget(ids=[str(first.exchange_id)])
        assert reply.exchange_id in {memory.id for memory in plan.dependants}
        bank.forget(plan)
        assert working._tokens == [], "KV of what was forgotten is overwritten in the branch, too"
        again = agent.run_sync("What is my locker code?")
        assert "Kestrel" not in language_model.tokenizer.decode(working._tokens)
        assert [memory.text for memory in bank.history(branch.id)] == ["What is my locker code?"] * 2
        assert again.exchange_id in {memory.id for memory in bank.history(branch.id)}
