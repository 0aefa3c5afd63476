"""Whole turns of the default model over a device's decoder, on the CPU through the torch path."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mnemos.agent.agent import Agent
from mnemos.attention.gpu.decoder import DeviceDecoder
from mnemos.attention.models import LanguageModel, load, load_weights
from mnemos.attention.sampling import Sampling
from mnemos.memory.bank import MemoryBank
from mnemos.memory.device_pager import DevicePager

pytestmark = pytest.mark.model

TOLD = (
    "My sister Clara works as a nurse in Porto.",
    "My dog is called Biscuit and he is afraid of thunder.",
    "I keep my spare key under the blue flower pot.",
)
QUESTION = "What does my sister Clara do?"


@pytest.fixture(scope="module")
def models() -> dict[str, LanguageModel]:
    host = load(dtype="fp32", device="cpu")
    config, weights, _, _ = load_weights()
    decoder = DeviceDecoder(config, weights, dtype=torch.float32, device="cpu")
    return {"host": host, "device": replace(host, decoder=decoder)}


def test_a_turn_on_a_device_is_a_turn_on_a_cpu(tmp_path: Path, models: dict[str, LanguageModel]) -> None:
    replies = {}
    for name, model in models.items():
        with MemoryBank.open(tmp_path / name) as bank:
            for text in TOLD:
                bank.remember(text)
            agent = Agent(bank, model=model, sampling=Sampling(max_tokens=12))
            first = agent.run_sync(QUESTION)
            second = agent.run_sync("And where does she work?")
            replies[name] = [first, second]
            if name == "device":
                pager = bank.recaller().pager
                assert isinstance(pager, DevicePager)
                assert pager.pool.pool.any()
                plan = bank.plan_forget(namespace="default", matching="Clara")
                bank.forget(plan)
                known = pager.keys()
                left = {memory_id for _, memory_id in known}
                assert not left & {each.memory.id for each in first.memories if "Clara" in each.memory.text}
                bank.recaller().close()
                assert not pager.pool.pool.any()
    for ours, twin in zip(replies["device"], replies["host"], strict=True):
        assert ours.text == twin.text
        assert [each.memory.text for each in ours.memories] == [each.memory.text for each in twin.memories]
        shares = [each.attention for each in ours.memories]
        assert shares == pytest.approx([each.attention for each in twin.memories], abs=1e-3)
        assert ours.usage.paged_tokens == twin.usage.paged_tokens
    assert replies["device"][0].memories
