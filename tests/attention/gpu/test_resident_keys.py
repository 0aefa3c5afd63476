"""Routing keys kept on a device, on the CPU, against the router's own mass."""

from collections.abc import Mapping, Sequence

import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from mnemos.attention.block_mass import span_sums
from mnemos.attention.gpu.resident_keys import ResidentKeys
from mnemos.attention.memory_codec import decode_route, encode_route

HEADS, DIM = 2, 64


def payload(spans: Sequence[int], seed: int) -> bytes:
    generator = torch.Generator().manual_seed(seed)
    return encode_route(
        [torch.randn(HEADS, count, DIM, generator=generator) for count in spans], torch.zeros(4)
    )


def queries(*counts: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    return [torch.randn(count, DIM, generator=generator) for count in counts]


class Bank:
    """What the keys are read from."""

    def __init__(self) -> None:
        self.payloads: dict[tuple[str, str], bytes] = {}
        self.reads: list[str] = []

    def read(self, namespace: str, ids: Sequence[str]) -> Mapping[str, bytes]:
        self.reads += ids
        return {each: self.payloads[namespace, each] for each in ids if (namespace, each) in self.payloads}


def expected(bank: Bank, namespace: str, ids: Sequence[str], rows: Sequence[torch.Tensor]) -> torch.Tensor:
    records = [decode_route(bank.payloads[namespace, each]) for each in ids]
    return span_sums([each * DIM**-0.5 for each in rows], records) / sum(len(each) for each in rows)


def test_the_mass_is_the_routers_over_those_asked_for() -> None:
    bank = Bank()
    for index in range(9):
        bank.payloads["a", f"m{index}"] = payload([1 + index, 40][: 1 + index % 2], index)
    keys = ResidentKeys(bank.read, "cpu")
    rows = queries(3, 5)  # key heads with different numbers of retrieval heads behind them
    for ids in (["m3", "m0"], ["m8", "m3", "m5", "m1"], ["m2"]):
        found = keys.span_mass("a", ids, rows, DIM**-0.5)
        assert found is not None
        assert torch.allclose(found, expected(bank, "a", ids, rows), atol=2e-4)
    assert sorted(bank.reads) == ["m0", "m1", "m2", "m3", "m5", "m8"], "each is read once"
    assert keys.span_mass("a", [], rows, 1.0) is not None


def test_one_without_a_payload_is_left_to_the_caller() -> None:
    bank = Bank()
    bank.payloads["a", "m"] = payload([4], 1)
    keys = ResidentKeys(bank.read, "cpu")
    assert keys.span_mass("a", ["m", "gone"], queries(1, 1), 1.0) is None


def test_within_its_budget_or_not_at_all() -> None:
    bank = Bank()
    for name in ("a", "b"):
        for index in range(6):
            bank.payloads[name, f"m{index}"] = payload([1000], index)
    keys = ResidentKeys(bank.read, "cpu", budget_bytes=5000 * HEADS * DIM)
    rows = queries(2, 2)
    ids = [f"m{index}" for index in range(4)]
    assert keys.span_mass("a", ids, rows, 0.1) is not None
    assert keys.span_mass("b", ids[:2], rows, 0.1) is not None, "another namespace made room"
    known = keys.keys()
    assert {name for name, _ in known} == {"b"}
    others = ["m3", "m4", "m5"]
    found = keys.span_mass("b", others, rows, 0.1)
    assert found is not None, "what was not asked for made room"
    assert torch.allclose(found.sum(), torch.tensor(1.0), atol=1e-4)
    assert keys.nbytes <= 5000 * HEADS * DIM
    assert keys.span_mass("b", [f"m{index}" for index in range(6)], rows, 0.1) is None


def test_what_is_dropped_is_zeroed() -> None:
    bank = Bank()
    for index in range(3):
        bank.payloads["a", f"m{index}"] = payload([30, 5], index)
    keys = ResidentKeys(bank.read, "cpu")
    rows = queries(2, 2)
    keys.span_mass("a", ["m0", "m1", "m2"], rows, 0.1)
    segments = keys._stretches["a"]._segments
    keys.drop("a", "m1")
    assert segments.keys[:35].any() and segments.keys[70:105].any()
    assert not segments.keys[35:70].any() and not segments.scales[1].any()
    del bank.payloads["a", "m1"]
    found = keys.span_mass("a", ["m2", "m0"], rows, 0.1)
    assert found is not None
    assert torch.allclose(
        found, expected(bank, "a", ["m2", "m0"], [each * (0.1 * DIM**0.5) for each in rows]), atol=2e-4
    )
    keys.drop()
    assert not segments.keys.any() and not segments.scales.any() and keys.keys() == []


class Model(RuleBasedStateMachine):
    """Random asking and erasing: the mass is that of what is there, and what was erased is zeros."""

    known = Bundle("known")

    def __init__(self) -> None:
        super().__init__()
        self.bank = Bank()
        self.keys = ResidentKeys(self.bank.read, "cpu", budget_bytes=9000 * HEADS * DIM)
        self.count = 0
        self.rows = queries(2, 1)

    @rule(
        target=known,
        namespace=st.sampled_from("ab"),
        sizes=st.lists(st.sampled_from([1, 700, 2100]), min_size=1, max_size=2),
    )
    def make(self, namespace: str, sizes: list[int]) -> tuple[str, str]:
        self.count += 1
        key = (namespace, f"m{self.count}")
        self.bank.payloads[key] = payload(sizes, self.count)
        return key

    @rule(namespace=st.sampled_from("ab"), data=st.data())
    def ask(self, namespace: str, data: st.DataObject) -> None:
        there = sorted(each for name, each in self.bank.payloads if name == namespace)
        if not there:
            return
        ids = data.draw(st.lists(st.sampled_from(there), min_size=1, unique=True))
        found = self.keys.span_mass(namespace, ids, self.rows, DIM**-0.5)
        if found is not None:
            assert torch.allclose(found, expected(self.bank, namespace, ids, self.rows), atol=3e-4)

    @rule(key=consumes(known))
    def erase(self, key: tuple[str, str]) -> None:
        del self.bank.payloads[key]
        self.keys.drop(*key)

    @rule(target=known, key=consumes(known))
    def drop_only(self, key: tuple[str, str]) -> tuple[str, str]:
        self.keys.drop(*key)
        return key

    @invariant()
    def holds_no_erased_key(self) -> None:
        assert set(self.keys.keys()) <= set(self.bank.payloads)
        for stretch in self.keys._stretches.values():
            covered = torch.zeros(len(stretch._segments.keys), dtype=torch.bool)
            for place in stretch.places.values():
                covered[place.first_token : place.first_token + place.tokens] = True
            assert not stretch._segments.keys[~covered].any()
        assert self.keys.nbytes <= 9000 * HEADS * DIM + 8192 * 3


TestModel = Model.TestCase
TestModel.settings = settings(max_examples=15, stateful_step_count=15, deadline=None)
