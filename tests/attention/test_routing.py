import numpy as np
import pytest
import torch

from mnemos.attention.calibration import Calibration, ReadingTemperature, for_model
from mnemos.attention.config import ModelConfig
from mnemos.attention.memory_codec import RouteKeys
from mnemos.attention.projection import similarity
from mnemos.attention.routing import (
    RouteQuery,
    hidden_cosine,
    record_mass,
    span_mass,
    vector_similarity,
)

CALIBRATION = Calibration(
    key_heads=((0, 1), (3, 4), (3, 5)),
    weights={"mass": 1.0},
    hidden_layer=None,
    recall_threshold=3.0,
    reading=(ReadingTemperature(memories=4, temperature=0.9, mass_scale=0.8),),
)
GROUP = 2


def records_of(*spans: tuple[int, ...]) -> list[RouteKeys]:
    torch.manual_seed(len(spans))
    return [RouteKeys(torch.randn(2, sum(sizes), 16), sizes, torch.randn(8)) for sizes in spans]


def naive_mass(query: RouteQuery, records: list[RouteKeys]) -> list[float]:
    """One query token, head and span at a time, in float64."""
    kv_of_head = [0, 1, 1]  # (0, 1) reads KV head (0, 0); (3, 4) and (3, 5) read (3, 2)
    totals = [0.0] * sum(len(record.span_tokens) for record in records)
    heads, tokens, dim = query.queries.shape
    for head in range(heads):
        for row in range(tokens):
            weights = []
            for record in records:
                start = 0
                for size in record.span_tokens:
                    keys = record.keys[kv_of_head[head], start : start + size].double()
                    weights.append(float((keys @ query.queries[head, row].double() * dim**-0.5).exp().sum()))
                    start += size
            for index, weight in enumerate(weights):
                totals[index] += weight / sum(weights) / heads / tokens
    return totals


@pytest.mark.parametrize("spans", [((1,),), ((3,), (5, 1), (63,)), ((65,), (1,), (2, 2, 2))])
def test_span_mass_equals_the_naive_form(spans: tuple[tuple[int, ...], ...]) -> None:
    records = records_of(*spans)
    query = RouteQuery(torch.randn(3, 5, 16), None)
    mass = span_mass(query, records, CALIBRATION, GROUP)
    assert mass.tolist() == pytest.approx(naive_mass(query, records), abs=1e-6)
    assert float(mass.sum()) == pytest.approx(1.0, abs=1e-5)
    per_record = torch.split(mass, [len(record.span_tokens) for record in records])
    expected = [float(part.sum().log()) for part in per_record]
    assert record_mass(mass, records).tolist() == pytest.approx(expected, abs=1e-5)


def test_no_memories_have_no_mass() -> None:
    query = RouteQuery(torch.randn(3, 5, 16), torch.randn(8))
    assert span_mass(query, [], CALIBRATION, GROUP).numel() == 0
    assert hidden_cosine(query, []).numel() == 0


def test_hidden_cosine_points_at_the_like_minded() -> None:
    records = records_of((2,), (3,))
    query = RouteQuery(torch.randn(3, 1, 16), records[1].hidden * 3)
    cosine = hidden_cosine(query, records)
    assert float(cosine[1]) == pytest.approx(1.0, abs=1e-5)
    assert cosine[0] < cosine[1]


def test_a_memory_is_as_near_as_its_nearest_vector_to_the_last_bit() -> None:
    chance = np.random.default_rng(3)
    asked = chance.integers(-127, 128, 384).astype(np.int8)
    sizes = [1, None, 3, 1, 4, None, 2]
    vectors = [
        None if size is None else chance.integers(-127, 128, (size, 384)).astype(np.int8) for size in sizes
    ]
    query = RouteQuery(torch.zeros(1, 1, 4), None, torch.from_numpy(asked))
    found = vector_similarity(query, vectors)
    near = {
        at: similarity(torch.from_numpy(asked), torch.from_numpy(each)).max()
        for at, each in enumerate(vectors)
        if each is not None
    }
    assert all(found[at] == nearest for at, nearest in near.items())
    mean = torch.stack([*near.values()]).mean()
    torch.testing.assert_close(found[[1, 5]], torch.stack([mean, mean]))
    assert vector_similarity(query, [None, None]).tolist() == [0, 0]


def test_an_unknown_model_has_safe_defaults_and_says_so(tiny_config: ModelConfig) -> None:
    calibration = for_model("never-heard-of-it", tiny_config)
    assert not calibration.calibrated
    assert all(
        layer < tiny_config.layers and head < tiny_config.heads for layer, head in calibration.key_heads
    )


def test_reading_constants_follow_the_number_of_memories() -> None:
    calibration = CALIBRATION.model_copy(
        update={
            "reading": (
                ReadingTemperature(memories=1, temperature=1.0, mass_scale=1.0),
                ReadingTemperature(memories=6, temperature=0.9, mass_scale=0.9),
            )
        }
    )
    assert calibration.reading_for(1).temperature == 1.0
    assert calibration.reading_for(2).temperature == 0.9
    assert calibration.reading_for(600).temperature == 0.9
