"""Routing keys kept on a device, on the CPU, against the router's own mass."""

from collections.abc import Mapping, Sequence

import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from mnemos.attention.block_mass import _plain_sums
from mnemos.attention.gpu.resident_keys import ResidentKeys
from mnemos.attention.memory_codec import RouteKeys, decode_route, encode_route

HEADS, DIM = 2, 64


def record(spans: Sequence[int], seed: int) -> RouteKeys:
    generator = torch.Generator().manual_seed(seed)
    keys = [torch.randn(HEADS, count, DIM, generator=generator) for count in spans]
    return decode_route(encode_route(keys, torch.zeros(4)), coded=True)


def queries(*counts: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    return [torch.randn(count, DIM, generator=generator) for count in counts]


def expected(records: Mapping[str, RouteKeys], rows: Sequence[torch.Tensor]) -> torch.Tensor:
    scaled = [each * DIM**-0.5 for each in rows]
    return _plain_sums(scaled, list(records.values())) / sum(len(each) for each in rows)


def asked(
    keys: ResidentKeys, namespace: str, records: Mapping[str, RouteKeys], rows: Sequence[torch.Tensor]
) -> torch.Tensor | None:
    return keys.span_mass(namespace, records, rows, DIM**-0.5, as_of=keys.drops)


def test_the_mass_is_the_routers_over_those_asked_for() -> None:
    made = {f"m{index}": record([1 + index, 40][: 1 + index % 2], index) for index in range(9)}
    keys = ResidentKeys("cpu")
    rows = queries(3, 5)  # key heads with different numbers of retrieval heads behind them
    for ids in (["m3", "m0"], ["m8", "m3", "m5", "m1"], ["m2"]):
        records = {each: made[each] for each in ids}
        found = asked(keys, "a", records, rows)
        assert found is not None
        assert torch.allclose(found, expected(records, rows), atol=2e-4)
    assert sorted(keys.keys()) == [("a", each) for each in ("m0", "m1", "m2", "m3", "m5", "m8")]
    assert asked(keys, "a", {}, rows) is not None


def test_what_was_read_before_a_drop_is_not_taken_in() -> None:
    keys, records = ResidentKeys("cpu"), {"m": record([4], 1)}
    as_of = keys.drops
    keys.drop("a", "another")
    assert keys.span_mass("a", records, queries(1, 1), 1.0, as_of=as_of) is None
    assert keys.keys() == []
    in_fp32 = decode_route(encode_route([torch.randn(HEADS, 3, DIM)], torch.zeros(4)))
    assert asked(keys, "a", {"m": in_fp32}, queries(1, 1)) is None


def test_within_its_budget_or_not_at_all() -> None:
    made = {f"m{index}": record([1000], index) for index in range(6)}
    keys = ResidentKeys("cpu", budget_bytes=5000 * HEADS * DIM)
    rows = queries(2, 2)

    def some(*indices: int) -> dict[str, RouteKeys]:
        return {f"m{index}": made[f"m{index}"] for index in indices}

    assert asked(keys, "a", some(0, 1, 2, 3), rows) is not None
    assert asked(keys, "b", some(0, 1), rows) is not None, "another namespace made room"
    known = keys.keys()
    assert {name for name, _ in known} == {"b"}
    found = asked(keys, "b", some(3, 4, 5), rows)
    assert found is not None, "what was not asked for made room"
    assert torch.allclose(found, expected(some(3, 4, 5), rows), atol=2e-4)
    assert keys.nbytes <= 5000 * HEADS * DIM
    assert asked(keys, "b", made, rows) is None


def test_what_is_dropped_is_zeroed() -> None:
    made = {f"m{index}": record([30, 5], index) for index in range(3)}
    keys = ResidentKeys("cpu")
    rows = queries(2, 2)
    asked(keys, "a", made, rows)
    segments = keys._stretches["a"]._segments
    keys.drop("a", "m1")
    assert segments.keys[:35].any() and segments.keys[70:105].any()
    assert not segments.keys[35:70].any() and not segments.scales[1].any()
    left = {each: made[each] for each in ("m2", "m0")}
    found = asked(keys, "a", left, rows)
    assert found is not None
    assert torch.allclose(found, expected(left, rows), atol=2e-4)
    keys.drop()
    assert not segments.keys.any() and not segments.scales.any() and keys.keys() == []


class Model(RuleBasedStateMachine):
    """Random asking and erasing: the mass is that of what is there, and what was erased is zeros."""

    known = Bundle("known")

    def __init__(self) -> None:
        super().__init__()
        self.there: dict[tuple[str, str], RouteKeys] = {}
        self.keys = ResidentKeys("cpu", budget_bytes=9000 * HEADS * DIM)
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
        self.there[key] = record(sizes, self.count)
        return key

    @rule(namespace=st.sampled_from("ab"), data=st.data())
    def ask(self, namespace: str, data: st.DataObject) -> None:
        there = sorted(each for name, each in self.there if name == namespace)
        if not there:
            return
        ids = data.draw(st.lists(st.sampled_from(there), min_size=1, unique=True))
        records = {each: self.there[namespace, each] for each in ids}
        found = asked(self.keys, namespace, records, self.rows)
        if found is not None:
            assert torch.allclose(found, expected(records, self.rows), atol=3e-4)

    @rule(key=consumes(known))
    def erase(self, key: tuple[str, str]) -> None:
        del self.there[key]
        self.keys.drop(*key)

    @rule(target=known, key=consumes(known))
    def drop_only(self, key: tuple[str, str]) -> tuple[str, str]:
        self.keys.drop(*key)
        return key

    @invariant()
    def holds_no_erased_key(self) -> None:
        assert set(self.keys.keys()) <= set(self.there)
        for stretch in self.keys._stretches.values():
            covered = torch.zeros(len(stretch._segments.keys), dtype=torch.bool)
            for place in stretch.places.values():
                covered[place.first_token : place.first_token + place.tokens] = True
            assert not stretch._segments.keys[~covered].any()
        assert self.keys.nbytes <= 9000 * HEADS * DIM + 8192 * 3


TestModel = Model.TestCase
TestModel.settings = settings(max_examples=25, stateful_step_count=15, deadline=None)
